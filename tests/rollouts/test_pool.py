"""The pool over workers that behave and workers that do not. They stand in for Ray's actor handles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rl.errors import PolicyError, RolloutError
from rl.types import SamplingParams, Trajectory
from rollouts.engine import GenerationRequest
from rollouts.pool import RolloutPool
from tests.samples import a_task, a_trajectory

Answer = tuple[Trajectory, ...]


def a_request(id: str) -> GenerationRequest:
    return GenerationRequest(id=id, task=a_task(id), num_samples=1, seed=0, sampling=SamplingParams())


class Worker:
    """Answers its requests in order, ``pace_s`` seconds apart; a subclass says what goes wrong."""

    def __init__(self, *, pace_s: float = 0.0) -> None:
        self.pace_s = pace_s
        self.calls = 0
        self.seen: list[str] = []
        self.generate = SimpleNamespace(options=self._streaming)
        self.generate_all = SimpleNamespace(remote=self._all)
        self.ready = SimpleNamespace(remote=self.answer)
        self.load_weights = SimpleNamespace(remote=self.load)
        self.connect = SimpleNamespace(remote=self.meet)

    def _streaming(self, *, num_returns: str) -> Any:
        assert num_returns == "streaming"
        self.calls += 1
        return SimpleNamespace(remote=self.stream)

    async def _all(self, requests: Sequence[GenerationRequest]) -> list[Answer]:
        return [await answer async for answer in self.stream(requests)]

    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Awaitable[Answer]]:
        for request in requests:
            self.seen.append(request.id)
            await asyncio.sleep(self.pace_s)
            yield self.answer(request)

    async def answer(self, request: GenerationRequest | None = None) -> Answer:
        return (a_trajectory(id=f"{request.id}/0"),) if request else ()

    async def meet(self, group: dict[str, Any]) -> None:
        self.group = group

    async def load(self, weights: Any, *, version: int) -> None:
        self.loaded = (weights, version)


class Remote(Exception):
    """As Ray raises it: what was raised over there is the ``cause``, the text a remote traceback."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        if cause is not None:
            self.cause = cause


class Raising(Worker):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def answer(self, request: GenerationRequest | None = None) -> Answer:
        raise self.error


class Silent(Worker):
    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Awaitable[Answer]]:
        await asyncio.Event().wait()
        yield self.answer()

    async def answer(self, request: GenerationRequest | None = None) -> Answer:
        await asyncio.Event().wait()
        return ()


class Unfetchable(Silent):
    """Says that an answer is there, but it never arrives: its node is gone."""

    stream = Worker.stream


class GivingUp(Worker):
    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Awaitable[Answer]]:
        yield self.answer(requests[0])


async def generated(pool: RolloutPool, ids: Sequence[str]) -> list[str]:
    return [group[0].id async for group in pool.generate([a_request(id) for id in ids])]


async def test_request_i_goes_to_worker_i_modulo_their_number() -> None:
    workers = [Worker(), Worker(), Worker()]
    found = await generated(RolloutPool(workers, timeout_s=5), "abcdefg")
    assert sorted(found) == ["a/0", "b/0", "c/0", "d/0", "e/0", "f/0", "g/0"]
    assert [worker.seen for worker in workers] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


async def test_trajectories_come_as_they_finish_not_in_the_order_of_workers() -> None:
    slow, quick = Worker(pace_s=0.3), Worker()
    # The slow one has a and c, the quick one b and d.
    assert await generated(RolloutPool([slow, quick], timeout_s=5), "abcd") == ["b/0", "d/0", "a/0", "c/0"]


async def test_a_worker_without_a_request_is_not_called() -> None:
    idle = Worker()
    assert await generated(RolloutPool([Worker(), idle], timeout_s=5), "a") == ["a/0"]
    assert idle.calls == 0


async def test_a_probe_gives_every_request_to_every_worker_in_order() -> None:
    workers = [Worker(pace_s=0.02), Worker()]
    found = await RolloutPool(workers, timeout_s=5).probe([a_request("a"), a_request("b")])
    assert [trajectory.id for trajectory in found] == ["a/0", "b/0", "a/0", "b/0"]
    assert [worker.seen for worker in workers] == [["a", "b"], ["a", "b"]]


async def test_weights_reach_every_worker_with_their_version() -> None:
    workers = [Worker(), Worker()]
    await RolloutPool(workers, timeout_s=5).load_weights("weights", version=3)
    assert [worker.loaded for worker in workers] == [("weights", 3), ("weights", 3)]


def every_call(pool: RolloutPool) -> Iterator[Callable[[], Awaitable[Any]]]:
    yield lambda: generated(pool, "ab")
    yield pool.ready
    yield lambda: pool.probe([a_request("a")])


async def test_an_error_of_our_own_comes_back_as_it_was_raised() -> None:
    ours = PolicyError("the policy has no image processor")
    pool = RolloutPool([Worker(), Raising(Remote("ray::RolloutWorker\n  traceback", ours))], timeout_s=5)
    for call in every_call(pool):
        with pytest.raises(PolicyError) as caught:
            await call()
        assert caught.value is ours


async def test_a_worker_that_died_is_named_with_the_last_line_of_what_happened() -> None:
    death = Remote("ray::RolloutWorker.generate()\n  File x, line 1\n\nRuntimeError: out of memory\n")
    for call in every_call(RolloutPool([Worker(), Raising(death)], timeout_s=5)):
        with pytest.raises(RolloutError, match=r"\Arollout worker 1 died: RuntimeError: out of memory\Z"):
            await call()


async def test_the_first_failure_is_told_though_a_worker_before_it_waits_for_the_one_that_failed() -> None:
    death = Remote("RuntimeError: out of memory")
    for call in every_call(RolloutPool([Silent(), Raising(death)], timeout_s=5)):
        with pytest.raises(RolloutError, match="rollout worker 1 died: RuntimeError: out of memory"):
            await asyncio.wait_for(call(), 2)


async def test_every_process_of_every_engine_has_a_rank_of_its_own_behind_the_learners() -> None:
    workers = [Worker(), Worker(), Worker()]
    await RolloutPool(workers, timeout_s=5).connect({"world_size": 7}, tensor_parallel=2)
    # Rank 0 is the learner's; engine 0 has ranks 1 and 2, engine 1 has 3 and 4, engine 2 has 5 and 6.
    assert [worker.group for worker in workers] == [
        {"world_size": 7, "rank_offset": 1},
        {"world_size": 7, "rank_offset": 3},
        {"world_size": 7, "rank_offset": 5},
    ]


async def test_an_error_without_words_is_named_by_its_type() -> None:
    with pytest.raises(RolloutError, match="rollout worker 0 died: OSError"):
        await RolloutPool([Raising(OSError())], timeout_s=5).ready()


@pytest.mark.parametrize("kind", [Silent, Unfetchable])
async def test_a_worker_that_does_not_answer_ends_the_call_at_the_deadline(kind: type[Worker]) -> None:
    for call in every_call(RolloutPool([Worker(), kind()], timeout_s=0.05)):
        with pytest.raises(RolloutError, match=r"rollout worker 1 did not answer for 0 s \(rollouts.timeout_s\)"):
            await asyncio.wait_for(call(), 2)


async def test_the_deadline_is_for_one_answer_not_for_all_of_them() -> None:
    # Five answers 0.3 s apart: 1.5 s together, each of them within the 1.2 s.
    found = await generated(RolloutPool([Worker(pace_s=0.3)], timeout_s=1.2), "abcde")
    assert found == ["a/0", "b/0", "c/0", "d/0", "e/0"]


class Queueing(Worker):
    """Answers the request "last" only after all others, however many calls they came in."""

    async def stream(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Awaitable[Answer]]:
        for request in requests:
            await asyncio.sleep(0.8 if request.id == "last" else 0.05)
            yield self.answer(request)


async def test_a_call_that_waits_behind_another_is_not_taken_for_dead_while_its_worker_answers() -> None:
    # The last one takes 800 ms, more than the deadline of 700; the worker answers another every 50 ms up to 500.
    pool = RolloutPool([Queueing()], timeout_s=0.7)
    others, last = await asyncio.gather(generated(pool, "abcdefghij"), generated(pool, ["last"]))
    assert len(others) == 10 and last == ["last/0"]


async def test_a_worker_that_ends_before_all_is_answered_is_an_error_not_a_smaller_batch() -> None:
    found = []
    with pytest.raises(RolloutError, match="rollout worker 0 ended before all its requests were answered"):
        async for group in RolloutPool([GivingUp()], timeout_s=5).generate([a_request("a"), a_request("b")]):
            found.append(group[0].id)
    assert found == ["a/0"]


async def test_after_a_failure_no_reader_goes_on() -> None:
    slow = Worker(pace_s=0.05)
    with pytest.raises(RolloutError):
        await generated(RolloutPool([slow, Raising(Remote("dead"))], timeout_s=5), "abcdef")
    await asyncio.sleep(0.12)
    assert slow.seen == ["a"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
