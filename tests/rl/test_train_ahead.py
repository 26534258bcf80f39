"""The loop with engines and a learner that only take time: what runs while what, and what each step is trained on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.contract import Anchors, Update, Weights
from rl.config_schema import RunConfig
from rl.errors import LearnerError, PublicationError, RolloutError
from rl.metrics import MetricsLog, read_metrics
from rl.stopping import Interrupted
from rl.timeline import Timeline, read_timeline
from rl.train import Run
from rl.types import Group, ScoredTrajectory, TrainBatch, TrainSample, Trajectory
from rollouts.log import read_step
from rollouts.pool import RolloutPool
from tests.fake_engine import FakeEngine, Handle, a_worker
from tests.samples import a_record, a_task

STEPS = 6


class Learner:
    """Takes ``update_s`` for a step, and makes no difference to the weights but their version."""

    def __init__(self, engine: FakeEngine, *, update_s: float) -> None:
        self.engine, self.update_s = engine, update_s
        self.version = 0
        self.steps_meanwhile: list[int] = []
        self.asked_at: list[int] = []
        self.known: list[bool] = []

    async def anchors(self, samples: Sequence[TrainSample]) -> Anchors:
        self.asked_at.append(self.engine.steps)
        await asyncio.sleep(0)
        found = {sample.trajectory_id: np.zeros(int(sample.loss_mask.sum()), np.float32) for sample in samples}
        return Anchors(reference=found, before=found)

    async def update(self, batch: TrainBatch, *, known: Anchors) -> Update:
        assert batch.policy_version == self.version
        asked = {sample.trajectory_id for sample in batch.samples}
        self.known.append(set(known.reference) == asked == set(known.before))
        before = self.engine.steps
        await asyncio.sleep(self.update_s)
        self.steps_meanwhile.append(self.engine.steps - before)
        self.version += 1
        return Update(
            stats={"total": 0.0, "grad_norm": 1.0, "learning_rate": 1e-3},
            logprobs=[sample.rollout_logprobs[sample.loss_mask] for sample in batch.samples],
            micro_batches=[0] * len(batch.samples),
        )

    async def logprobs(self, samples: Sequence[TrainSample]) -> list[np.ndarray]:
        return [sample.rollout_logprobs[sample.loss_mask] for sample in samples]

    async def weights(self) -> tuple[Any, Weights]:
        return {}, Weights(size_bytes=1, sha256=f"version {self.version}")

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "version").write_text(str(self.version))


class Rewards:
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Any]:
        return [
            ScoredTrajectory(trajectory=each, reward=(place % 2) * 1.0, scores={"a": a_record("a", 1.0)})
            for place, each in enumerate(trajectories)
        ]


class Loop:
    """A run of `STEPS` steps over four tasks each; its engines take four completions at a time."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        max_staleness: int,
        update_s: float = 0.02,
        engine_step_s: float = 0.001,
        kl_coef: float = 0.0,
        minibatches: int = 1,
    ) -> None:
        self.folder = folder
        self.engine = FakeEngine(max_num_seqs=4, step_s=engine_step_s)
        self.learner = Learner(self.engine, update_s=update_s)
        self.stop = asyncio.Event()
        config = RunConfig(max_steps=STEPS, tasks_per_step=4, group_size=2)
        config.async_.max_staleness = max_staleness
        config.loss.kl_coef, config.learner.minibatches = kl_coef, minibatches
        config.evaluation.every_steps = 3
        config.checkpoint.every_steps = 2
        self.tasks = tuple(a_task(f"t{number}", extra={"lengths": [3 + number % 5, 6]}) for number in range(40))
        self.eval_tasks = (a_task("held-out", extra={"lengths": [4]}),)
        self.metrics = MetricsLog(folder / "metrics.jsonl")
        self.timeline = Timeline(folder / "timeline.jsonl")
        self.run = Run(
            config,
            folder,
            pool=RolloutPool([Handle(a_worker(self.engine, monkeypatch))], timeout_s=30),
            rewards=Rewards(),
            learner=self.learner,
            tasks=self.tasks,
            eval_tasks=self.eval_tasks,
            weights={"a": 1.0},
            gates=frozenset(),
            max_shaping=0.0,
            metrics=self.metrics,
            timeline=self.timeline,
            stop=self.stop,
        )

    async def to_the_end(self) -> None:
        with self.metrics, self.timeline:
            await asyncio.wait_for(self.run.loop(), timeout=60)

    def trained(self, *, after: int = 0) -> dict[int, list[Trajectory]]:
        return {step: of_step(read_step(self.folder, step).batch) for step in range(after + 1, self.run.step + 1)}

    def tasks_trained(self, *, after: int = 0) -> list[str]:
        """One id per group, in order of the steps."""
        return [each.task.id for trajectories in self.trained(after=after).values() for each in trajectories[::2]]


def of_step(groups: Sequence[Group]) -> list[Trajectory]:
    return [item.trajectory for group in groups for item in group.items]


async def test_strictly_on_policy_nothing_is_written_during_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=0)
    await loop.to_the_end()
    assert loop.learner.steps_meanwhile == [0] * STEPS
    assert loop.engine.loads == [(version, 0) for version in range(STEPS + 1)]
    for step, trajectories in loop.trained().items():
        assert {int(version) for each in trajectories for version in each.token_versions} == {step - 1}


@pytest.mark.parametrize("max_staleness", [1, 2])
async def test_ahead_weights_change_under_what_is_half_written_and_the_bound_holds(
    max_staleness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=max_staleness, update_s=0.01, engine_step_s=0.004)
    await loop.to_the_end()
    # Not during every one: a disk that is slow to take a step's log leaves time to write all that the bound allows.
    assert any(steps > 0 for steps in loop.learner.steps_meanwhile)
    assert any(half_written for _, half_written in loop.engine.loads)
    trained = loop.trained()
    lags = [
        step - 1 - trajectory.token_versions for step, trajectories in trained.items() for trajectory in trajectories
    ]
    assert 0 < max(lag.max() for lag in lags) <= max_staleness
    assert min(lag.min() for lag in lags) >= 0
    assert all((np.diff(lag) <= 0).all() for lag in lags)  # versions never go back within a completion
    assert any(trajectory.later_versions for trajectories in trained.values() for trajectory in trajectories)
    assert [len(trajectories) for trajectories in trained.values()] == [8] * STEPS  # none is lost for being late
    asked = [trajectory.id for trajectories in trained.values() for trajectory in trajectories]
    assert max(Counter(asked).values()) == 1
    recorded = read_metrics(tmp_path / "metrics.jsonl")
    assert max(record.get("rollout/version_lag_max", 0) for record in recorded) <= max_staleness


async def test_ahead_each_task_is_trained_on_once_and_an_evaluation_is_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=2)
    await loop.to_the_end()
    tasks = loop.tasks_trained()
    assert sorted(tasks) == sorted(set(tasks)) and len(tasks) == 4 * STEPS  # 24 of 40: less than an epoch
    for step in (0, 3, 6):
        held_out = of_step(read_step(tmp_path, step, kind="eval").groups)
        assert [set(trajectory.token_versions.tolist()) for trajectory in held_out] == [{step}]


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_a_run_that_is_stopped_draws_again_what_was_in_flight(
    max_staleness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Loop(tmp_path / "first", monkeypatch, max_staleness=max_staleness)

    async def stop_in_step_3() -> None:
        while first.run.step < 2 or not first.engine.drafts:
            await asyncio.sleep(0)
        first.stop.set()

    stopping = asyncio.create_task(stop_in_step_3())
    with pytest.raises(Interrupted):
        await first.to_the_end()
    await stopping
    assert first.run.state()["sampler"]["undone"]
    second = Loop(tmp_path / "second", monkeypatch, max_staleness=max_staleness)
    second.run.restore(first.run.state())
    second.learner.version = first.run.step
    await second.to_the_end()
    undisturbed = Loop(tmp_path / "undisturbed", monkeypatch, max_staleness=0)
    with undisturbed.metrics, undisturbed.timeline:
        expected = [task.id for task in undisturbed.run.sampler.next_batch(4 * STEPS)]
    assert first.tasks_trained() + second.tasks_trained(after=first.run.step) == expected


async def test_a_token_beyond_the_bound_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=0)
    load = loop.engine.load_weights
    monkeypatch.setattr(loop.engine, "load_weights", lambda update, version: load(update, version=min(version, 1)))
    with pytest.raises(RolloutError, match=r"written by versions 1 to 1 .* at version 2 none but 2 to 2"):
        await loop.to_the_end()


async def test_the_trajectories_that_an_update_failed_on_are_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=0)
    update = loop.learner.update

    async def failing_at_2(batch: TrainBatch, *, known: Anchors) -> Update:
        if batch.policy_version == 1:
            raise LearnerError("the loss is nan")
        return await update(batch, known=known)

    monkeypatch.setattr(loop.learner, "update", failing_at_2)
    with pytest.raises(LearnerError, match="the loss is nan"):
        await loop.to_the_end()
    failed = read_step(tmp_path, 2)
    assert len(of_step(failed.batch)) == 8
    assert not failed.advantages and not failed.update  # nothing was trained on them
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


async def test_the_trajectories_of_a_step_whose_weights_did_not_arrive_are_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=0)

    async def apart_at_2(samples: Sequence[TrainSample]) -> list[np.ndarray]:
        return [sample.rollout_logprobs[sample.loss_mask] + (loop.learner.version == 2) for sample in samples]

    monkeypatch.setattr(loop.learner, "logprobs", apart_at_2)
    with pytest.raises(PublicationError, match=r"after publishing version 2: the mean difference .* is 1,"):
        await loop.to_the_end()
    assert len(of_step(read_step(tmp_path, 2).batch)) == 8


@pytest.mark.slow
async def test_the_timeline_shows_generation_beside_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for max_staleness in (0, 1):
        folder = tmp_path / str(max_staleness)
        await Loop(folder, monkeypatch, max_staleness=max_staleness, update_s=0.05).to_the_end()
        steps = read_timeline(folder / "timeline.jsonl")
        phases = {step: {span.phase: span for span in spans} for step, spans in steps.items()}
        assert set(phases[2]) == {"generate", "score", "update", "publish", "log", "checkpoint"}
        assert "evaluate" in phases[3]
        began_ahead = [
            phases[step + 1]["generate"].began_s < phases[step]["update"].ended_s for step in range(1, STEPS)
        ]
        assert began_ahead == [bool(max_staleness)] * (STEPS - 1)


@pytest.mark.parametrize("settings", [{"kl_coef": 0.1}, {"minibatches": 2}])
async def test_a_resting_learner_goes_over_what_is_done_while_others_are_still_written(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=0, **settings)
    await loop.to_the_end()
    assert loop.learner.known == [True] * STEPS  # nothing of it is left to the update
    # Four groups a step, two at a time: the first of a step is asked for before the engine has written the last.
    firsts, lasts = loop.learner.asked_at[::4], loop.learner.asked_at[3::4]
    assert len(firsts) == STEPS and all(first < last for first, last in zip(firsts, lasts, strict=True))
    phases = [span.phase for span in read_timeline(tmp_path / "timeline.jsonl")[1]]
    assert phases.count("forward") == 4


async def test_a_learner_that_updates_meanwhile_is_not_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, monkeypatch, max_staleness=1, kl_coef=0.1)
    await loop.to_the_end()
    assert not loop.learner.asked_at and loop.learner.known == [False] * STEPS
