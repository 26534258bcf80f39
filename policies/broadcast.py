"""The sending end of weights by NCCL, whose other end is vLLM's own: from GPU to GPU, many small ones in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch
from vllm.distributed.weight_transfer.nccl_common import trainer_init
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

from rl.errors import PublicationError


class Broadcast:
    """Rank 0 of a group with all processes of all engines.

    ``group`` says where they meet, how many they are and how large a piece is, as vLLM's NCCLWeightTransferInitInfo
    does. Returns once all have come. Raises PublicationError where the NCCL library cannot be loaded.
    """

    def __init__(self, group: Mapping[str, Any]) -> None:
        self.chunk_bytes: int = group["packed_buffer_size_bytes"]
        # Where no stream was chosen, vLLM moves the whole thread to a new one, which DeepSpeed would not wait for.
        with torch.cuda.stream(torch.cuda.current_stream()):
            self.communicator = trainer_init(dict(group))
        if self.communicator.disabled:  # vLLM says nothing, and would send nothing
            raise PublicationError("the learner cannot load the NCCL library, or VLLM_DISABLE_PYNCCL is set")
        self.weights: dict[str, torch.Tensor] = {}

    def announce(self, weights: dict[str, torch.Tensor]) -> dict[str, list[Any]]:
        """Take ``weights``, which `send` sends; returns what an engine must know to receive them."""
        self.weights = weights
        return {
            "names": list(weights),
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in weights.values()],
            "shapes": [list(weight.shape) for weight in weights.values()],
        }

    def send(self) -> dict[str, torch.Tensor]:
        """Send what was announced, all engines receiving it meanwhile; returns it."""
        weights, self.weights = self.weights, {}
        torch.accelerator.synchronize()  # pieces are put together on streams that do not wait for the default one
        packed_nccl_broadcast_producer(
            iter(weights.items()),
            group=self.communicator,
            src=0,
            post_iter_func=itemgetter(1),
            buffer_size_bytes=self.chunk_bytes,
        )
        return weights
