"""The learner's Ray actors, one per rank, and the handle through which the loop speaks to all of them at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.contract import Anchors, Gradients, LearnerSettings, RankUpdate, Update, Weights, merge_updates
from rl.errors import LearnerError, MedrlError
from rl.types import TrainBatch, TrainSample


class LearnerWorker:
    """One rank; made an actor by `rl.cluster`."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def address(self) -> tuple[str, int]:
        """Host and a free port on it, for the process group to meet at; asked of rank 0."""
        import socket

        from ray.util import get_node_ip_address

        with socket.socket() as probe:
            probe.bind(("", 0))
            return get_node_ip_address(), probe.getsockname()[1]

    def build(self, settings: LearnerSettings, loss: Any, *, host: str, port: int) -> None:
        """Join the process group and build the DeepSpeed engine."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.ranks),
            LOCAL_RANK="0",  # Ray shows each actor its own device alone
            LOCAL_SIZE=str(self.ranks),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        if not settings.on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        if not settings.on_gpu:
            import deepspeed.ops

            # An optional op for one-host collectives that would be compiled for a minute at first use.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if settings.on_gpu else "gloo")
        from policies.learner import Learner

        self.learner = Learner(settings, loss, rank=self.rank, ranks=self.ranks)

    def update(self, batch: TrainBatch, *, known: Anchors | None = None) -> RankUpdate:
        return self.learner.update(batch, known=known)

    def anchors(self, samples: Sequence[TrainSample]) -> Anchors:
        return self.learner.anchors(samples)

    def logprobs(self, samples: Sequence[TrainSample]) -> dict[int, np.ndarray]:
        return self.learner.logprobs(samples)

    def gradients(self, batch: TrainBatch, *, by_sample: bool, variants: Sequence[tuple[TrainBatch, Any]]) -> Gradients:
        return self.learner.gradients(batch, by_sample=by_sample, variants=variants)

    def weights(self) -> tuple[dict[str, np.ndarray] | None, Weights | None]:
        """See `policies.learner.Learner.weights`."""
        return self.learner.weights()

    def connect(self, group: Mapping[str, Any]) -> None:
        """See `policies.broadcast.Broadcast`; asked of rank 0."""
        from policies.broadcast import Broadcast

        self.broadcast = Broadcast(group)

    def gather(self) -> dict[str, list[Any]] | None:
        """See `policies.broadcast.Broadcast.announce`; on rank 0 alone, the others only take part in gathering."""
        gathered = self.learner.gather()
        return self.broadcast.announce(gathered) if self.rank == 0 else None

    def send(self) -> Weights:
        """Send what was gathered; its digest is taken when the engines have it. Asked of rank 0."""
        from policies.weights import host_arrays

        return self.learner.publisher.known(host_arrays(self.broadcast.send()))

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def load(self, folder: Path) -> None:
        self.learner.load(folder)

    def save_policy(self, folder: Path) -> None:
        self.learner.save_policy(folder)


class LearnerGroup:
    """All ranks of the learner. A rank that dies or hangs ends the call with one LearnerError."""

    def __init__(self, workers: Sequence[Any], *, timeout_s: float) -> None:
        self.workers = tuple(workers)
        self.timeout_s = timeout_s
        self._turn = 0

    async def build(self, settings: LearnerSettings, loss: Any) -> None:
        """Build the engine on every rank; ``loss`` is a picklable loss function."""
        host, port = await self.address()
        await self._all("build", settings, loss, host=host, port=port)

    async def address(self) -> tuple[str, int]:
        """The host of rank 0 and a port that is free there."""
        found: tuple[str, int] = await self._wait(self.workers[0].address.remote(), rank=0)
        return found

    async def update(self, batch: TrainBatch, *, known: Anchors | None = None) -> Update:
        """One optimizer step on ``batch`` per mini-batch; ``known`` is what `anchors` gave for some of its groups."""
        return merge_updates(await self._all("update", batch, known=known))

    async def anchors(self, samples: Sequence[TrainSample]) -> Anchors:
        """What the next update will compare one group with, where a rank can tell alone; ranks take turns."""
        self._turn = (self._turn + 1) % len(self.workers)
        found: Anchors = await self._wait(self.workers[self._turn].anchors.remote(samples), rank=self._turn)
        return found

    async def logprobs(self, samples: Sequence[TrainSample]) -> list[np.ndarray]:
        """Logprobs float32 [loss_token] of the trained tokens of every sample, under the current weights."""
        found = {place: part for share in await self._all("logprobs", samples) for place, part in share.items()}
        return [found[place] for place in range(len(samples))]

    async def gradients(
        self, batch: TrainBatch, *, by_sample: bool = False, variants: Sequence[tuple[TrainBatch, Any]] = ()
    ) -> Gradients:
        """See `policies.learner.Learner.gradients`; for a learner of one rank that shards nothing."""
        (found,) = await self._all("gradients", batch, by_sample=by_sample, variants=variants)
        gradients: Gradients = found
        return gradients

    async def weights(self) -> tuple[Any, Weights]:
        """A Ray reference to the weights that changed since the last call (at first, and after `load`, to all), by
        checkpoint name, and what all of them are known by. The arrays stay in the object store."""
        calls = [worker.weights.options(num_returns=2).remote() for worker in self.workers]
        described = await self._each([known for _, known in calls])
        return calls[0][0], described[0]

    async def connect(self, group: Mapping[str, Any]) -> None:
        """Have rank 0 meet the engines in an NCCL group, see `policies.broadcast.Broadcast`."""
        await self._wait(self.workers[0].connect.remote(group), rank=0)

    async def gather(self) -> dict[str, list[Any]]:
        """Gather what training may have changed, for `send`; what an engine must know to receive it."""
        announced: dict[str, list[Any]] = (await self._all("gather"))[0]
        return announced

    async def send(self) -> Weights:
        """Send what was gathered to the engines, which must receive it meanwhile; what all weights are known by."""
        known: Weights = await self._wait(self.workers[0].send.remote(), rank=0)
        return known

    async def save(self, folder: Path) -> None:
        await self._all("save", folder)

    async def load(self, folder: Path) -> None:
        await self._all("load", folder)

    async def save_policy(self, folder: Path) -> None:
        await self._all("save_policy", folder)

    async def _all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call every rank at once."""
        import ray

        shared = [ray.put(arg) for arg in args]
        return await self._each([getattr(worker, method).remote(*shared, **kwargs) for worker in self.workers])

    async def _each(self, calls: Sequence[Any]) -> list[Any]:
        """The answers of all ranks. The first failure ends the wait: other ranks may hang in a collective."""
        tasks = [asyncio.ensure_future(self._wait(call, rank=rank)) for rank, call in enumerate(calls)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _wait(self, call: Any, *, rank: int) -> Any:
        from ray.exceptions import RayError

        try:
            return await asyncio.wait_for(call, self.timeout_s)
        except TimeoutError:
            raise LearnerError(
                f"learner rank {rank} did not answer for {self.timeout_s:.0f} s (learner.timeout_s); it may hang in a "
                f"collective that another rank never joined"
            ) from None
        except RayError as error:
            if isinstance(cause := getattr(error, "cause", None), MedrlError):
                raise cause from None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise LearnerError(f"learner rank {rank} died: {lines[-1] if lines else type(error).__name__}") from None
