"""The worker steps its engine for whoever waits, and loads weights in between: nothing half-written is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rl.errors import RolloutError
from rl.types import SamplingParams, Trajectory
from rollouts.engine import GenerationRequest
from rollouts.worker import RolloutWorker
from tests.fake_engine import REFUSED, FakeEngine, a_worker
from tests.samples import a_task


def a_request(id: str, lengths: Sequence[int] = (3,), **task: Any) -> GenerationRequest:
    return GenerationRequest(
        id=id,
        task=a_task(id, extra={"lengths": list(lengths)}, **task),
        num_samples=len(lengths),
        seed=0,
        sampling=SamplingParams(),
    )


async def written(worker: RolloutWorker, *requests: GenerationRequest) -> list[Trajectory]:
    return [trajectory async for group in worker.generate(requests) for trajectory in group]


async def steps(engine: FakeEngine, count: int) -> None:
    """Let the worker go on until its engine has made so many steps in all."""
    while engine.steps < count:
        await asyncio.sleep(0)


async def test_weights_that_are_loaded_between_two_steps_lose_nothing_and_every_token_knows_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(max_num_seqs=3)
    worker = a_worker(engine, monkeypatch)
    answers = asyncio.create_task(written(worker, a_request("a", [2, 6]), a_request("b", [3]), a_request("c", [2])))
    await steps(engine, 4)  # a/0 is done after two steps, b after three; c was taken up when a/0 was done
    engine.load_weights({}, version=1)
    found = {trajectory.id: trajectory.token_versions.tolist() for trajectory in await answers}
    assert found == {"a/0": [0, 0], "a/1": [0, 0, 0, 0, 1, 1], "b/0": [0, 0, 0], "c/0": [0, 0]}
    assert engine.loads == [(1, 1)]


async def test_two_calls_share_the_engine_and_each_gets_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    worker = a_worker(engine, monkeypatch)
    one, other = await asyncio.gather(
        written(worker, a_request("a"), a_request("b", [9])), written(worker, a_request("c", [5]))
    )
    assert [trajectory.id for trajectory in one] == ["a/0", "b/0"]
    assert [trajectory.id for trajectory in other] == ["c/0"]
    assert engine.steps == 9  # a step serves both


async def test_a_probe_goes_before_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(max_num_seqs=1)
    worker = a_worker(engine, monkeypatch)
    answers = asyncio.create_task(written(worker, *(a_request(id, [5]) for id in "abc")))
    await steps(engine, 2)
    probed = await worker.generate_all([a_request("p"), a_request("q")])
    assert [group[0].id for group in probed] == ["p/0", "q/0"]
    # What is left of a, then p and q, and not b; the other call may step once more while this one is answered.
    assert engine.steps <= 5 + 3 + 3 + 1
    assert [trajectory.id for trajectory in await answers] == ["a/0", "b/0", "c/0"]


async def test_a_refused_request_ends_its_own_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    worker = a_worker(engine, monkeypatch)
    refused, sound = await asyncio.gather(
        written(worker, a_request("a", [9]), a_request("bad", question=REFUSED)),
        written(worker, a_request("b", [6])),
        return_exceptions=True,
    )
    assert isinstance(refused, RolloutError) and "task 'bad' cannot be given" in str(refused)
    assert [trajectory.id for trajectory in sound] == ["b/0"]
    assert not engine.drafts and not engine.answers  # nobody waits for a any more


async def test_a_call_that_is_given_up_leaves_nothing_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(max_num_seqs=1)
    worker = a_worker(engine, monkeypatch)
    call = worker.generate([a_request("a"), a_request("b"), a_request("c")])
    await anext(call)
    await call.aclose()
    engine.step()
    assert not engine.drafts and not engine.answers
