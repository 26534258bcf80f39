"""What stands in for NCCL, and for the streams of a GPU, on a machine that has none.

All else is what runs on GPUs: how the two ends meet, vLLM's packing and unpacking in pieces, its receiving engine. What
was sent goes through the store that the group met at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from policies.worker import LearnerWorker
from rollouts.worker import RolloutWorker

_chosen: list[Any] = []
"""The streams that the process has entered, and not left."""


class Stream:
    def synchronize(self) -> None:
        """What was asked of it is done."""


class Communicator:
    """Takes the place of vLLM's PyNcclCommunicator, over the same group."""

    disabled = False

    def __init__(self, group: Any, *, device: Any) -> None:
        # vLLM would change the thread's stream here, were none chosen; what the engine computes on is its own affair.
        assert _chosen or group.rank > 0
        self.group = group

    def broadcast(self, tensor: Any, src: int) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(self.group.broadcast(tensor, src=src))


@contextmanager
def entered(stream: Any) -> Iterator[None]:
    _chosen.append(stream)
    yield
    _chosen.pop()


def install() -> None:
    """Take the place of NCCL and CUDA in this process."""
    import torch
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import packed_tensor

    pynccl.PyNcclCommunicator = Communicator
    packed_tensor._get_streams = lambda device, count: [Stream() for _ in range(count)]
    torch.cuda.stream = entered  # type: ignore[assignment]
    torch.cuda.current_stream = Stream  # type: ignore[assignment]
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.synchronize = lambda: None


class Learner(LearnerWorker):
    def connect(self, group: Mapping[str, Any]) -> None:
        install()
        super().connect(group)


class Rollouts(RolloutWorker):
    def connect(self, group: dict[str, Any]) -> None:
        install()
        super().connect(group)
