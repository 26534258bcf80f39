"""The rollout pool: requests fanned out over the workers, trajectories back as they finish."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rl.errors import MedrlError, RolloutError
from rl.types import Trajectory
from rollouts.engine import GenerationRequest


class RolloutPool:
    """All rollout workers of a run. A worker that dies or falls silent ends the call with a RolloutError."""

    def __init__(self, workers: Sequence[Any], *, timeout_s: float) -> None:
        self.workers = tuple(workers)
        self.timeout_s = timeout_s
        self._answered_s = [-math.inf] * len(self.workers)

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[Trajectory, ...]]:
        """Yield the trajectories of each request as it finishes.

        Request i always goes to worker i mod workers, so that a repeated run gives every engine the same batch.
        """
        queue: asyncio.Queue[tuple[Trajectory, ...] | BaseException] = asyncio.Queue()
        shares = [requests[start :: len(self.workers)] for start in range(len(self.workers))]
        readers = [
            asyncio.create_task(self._read(worker, index, share, queue))
            for index, (worker, share) in enumerate(zip(self.workers, shares, strict=True))
            if share
        ]
        try:
            for _ in requests:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            for reader in readers:
                reader.cancel()

    async def ready(self) -> None:
        """Wait until every worker has built its engine. Raises its error where one could not."""
        await self._each([worker.ready.remote() for worker in self.workers])

    async def probe(self, requests: Sequence[GenerationRequest]) -> list[Trajectory]:
        """The trajectories of ``requests`` from every engine, each of which gets all of them."""
        answers = await self._each([worker.generate_all.remote(requests) for worker in self.workers])
        return [trajectory for answer in answers for group in answer for trajectory in group]

    async def load_weights(self, weights: Any, *, version: int) -> None:
        """Publish ``weights`` (a Ray object reference) to every engine."""
        await self._each([worker.load_weights.remote(weights, version=version) for worker in self.workers])

    async def connect(self, group: Mapping[str, Any], *, tensor_parallel: int) -> None:
        """Have every engine meet the learner, whose rank is 0, in an NCCL group; see `VllmEngine.connect`."""
        calls = [
            worker.connect.remote({**group, "rank_offset": 1 + index * tensor_parallel})
            for index, worker in enumerate(self.workers)
        ]
        await self._each(calls)

    async def receive_weights(self, announced: Mapping[str, Any], *, version: int) -> None:
        """Have every engine receive what the learner sends meanwhile; ``announced`` says what that is."""
        await self._each([worker.receive_weights.remote(announced, version=version) for worker in self.workers])

    async def drop_caches(self) -> None:
        """Have every engine forget the prompts that it has seen."""
        await self._each([worker.drop_caches.remote() for worker in self.workers])

    async def _each(self, calls: Sequence[Any]) -> list[Any]:
        """The result of one call per worker. The first failure ends the wait: others may wait for that worker."""
        answers = [asyncio.ensure_future(self._result(index, call)) for index, call in enumerate(calls)]
        try:
            return await asyncio.gather(*answers)
        finally:
            for answer in answers:
                answer.cancel()

    async def _result(self, index: int, call: Any) -> Any:
        try:
            return await self._answer(index, call)
        except Exception as error:
            raise self._failure(index, error) from None

    async def _answer(self, index: int, call: Any) -> Any:
        """What a worker answers. Raises TimeoutError where it has answered no call at all for `timeout_s`."""
        answer = asyncio.ensure_future(call)
        try:
            began_s = time.monotonic()
            while not answer.done():
                last_s = max(began_s, self._answered_s[index])
                left_s = last_s + self.timeout_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait({answer}, timeout=left_s)
        finally:
            answer.cancel()
        self._answered_s[index] = time.monotonic()
        return answer.result()

    async def _read(
        self,
        worker: Any,
        index: int,
        requests: Sequence[GenerationRequest],
        queue: asyncio.Queue[tuple[Trajectory, ...] | BaseException],
    ) -> None:
        stream = worker.generate.options(num_returns="streaming").remote(requests)
        try:
            for _ in requests:
                queue.put_nowait(await self._answer(index, await self._answer(index, anext(stream))))
        except StopAsyncIteration:
            queue.put_nowait(RolloutError(f"rollout worker {index} ended before all its requests were answered"))
        except Exception as error:
            queue.put_nowait(self._failure(index, error))

    def _failure(self, index: int, error: Exception) -> MedrlError:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MedrlError):
            return cause
        if isinstance(error, TimeoutError):
            return RolloutError(
                f"rollout worker {index} did not answer for {self.timeout_s:.0f} s (rollouts.timeout_s); it may hang "
                f"or be overloaded"
            )
        return RolloutError(f"rollout worker {index} died: {last_line(error)}")


def last_line(error: Exception) -> str:
    """The one line of an actor's failure that says what happened, without the remote traceback above it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
