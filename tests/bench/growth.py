"""How a step grows: with tasks, G, completion length, picture size and workers, in time and in memory.

Two halves are measured apart. *Orchestration*: rollout workers, a reward actor, advantages and the trajectory store as
in a run, around engines that only sleep; what they sleep is taken off. *Update*: the learner with the policy ``tiny``.
The exponent is that of the power law through the points: 1 is linear growth.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.config import load_rewards
from rewards.pool import RewardPool
from rl.batch import make_train_batch
from rl.collect import collect, make_requests
from rl.config_schema import RayConfig
from rl.types import SamplingParams
from rollouts.log import LoggedStep, write_step
from rollouts.pool import RolloutPool
from rollouts.prompts import messages_by_task
from tests.bench.harness import Growth, Part, Table, grown, spread
from tests.bench.memory import peak_mb, reset_peak
from tests.bench.setting import learner, picture_tasks, policy, random_batch, run_config
from tests.bench.sleeping import SleepingWorker

SLEEP_S = 0.2
PROMPT_TOKENS = 256
MOST_WORKERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of one step."""

    tasks: int = 64
    group_size: int = 8
    completion_tokens: int = 128
    side_px: int = 56
    workers: int = 2


STEPS: Mapping[str, tuple[Size, str, tuple[int, ...]]] = {
    "tasks": (Size(workers=MOST_WORKERS), "tasks", (16, 64, 256, 1250)),  # 10,000 trajectories at the end
    "G": (Size(), "group_size", (2, 8, 32)),
    "completion tokens": (Size(), "completion_tokens", (64, 256, 1024, 4096)),
    "side of the picture, px": (Size(), "side_px", (56, 112, 224, 448)),
    "workers": (Size(tasks=256), "workers", (1, 4, 16, MOST_WORKERS)),
}
UPDATES: Mapping[str, tuple[Size, str, tuple[int, ...]]] = {
    "tasks": (Size(tasks=4), "tasks", (2, 4, 8, 16)),
    "G": (Size(tasks=4), "group_size", (2, 4, 8, 16)),
    "completion tokens": (Size(tasks=4), "completion_tokens", (32, 64, 128, 256)),
    "side of the picture, px": (Size(tasks=4, completion_tokens=64), "side_px", (56, 112, 224, 448)),
}


def sizes(ladder: tuple[Size, str, tuple[int, ...]], *, quick: bool) -> Iterator[tuple[int, Size]]:
    base, field, steps = ladder
    for value in steps[:2] if quick else steps:
        yield value, replace(base, **{field: value})


def measure(*, turns: int, quick: bool) -> Part:
    growths: list[Growth] = []
    tables: list[Table] = []
    for half, ladders, run in (("Orchestration", STEPS, orchestration), ("Update", UPDATES, updates)):
        for over, rows in run(ladders, turns=turns, quick=quick):
            names = list(rows[0][1])
            tables.append(
                Table(
                    title=f"{half} by {over}",
                    columns=(over, *names),
                    rows=[(float(value), *(spread(found[name]).median for name in names)) for value, found in rows],
                )
            )
            growths += [
                grown(
                    f"{half}: {name}",
                    over=over,
                    unit=name.rpartition(" ")[2],
                    points=[(float(value), found[name]) for value, found in rows],
                )
                for name in (names[0], names[-1])
            ]
    config = {"sleep_s": SLEEP_S, "prompt_tokens": PROMPT_TOKENS, "update_policy": "tiny"}
    return Part(config=config, growths=growths, tables=tables)


Rows = list[tuple[int, dict[str, list[float]]]]
"""What was measured at each size, turn by turn."""
Ladders = Mapping[str, tuple[Size, str, tuple[int, ...]]]


def orchestration(ladders: Ladders, *, turns: int, quick: bool) -> Iterator[tuple[str, Rows]]:
    """Steps around engines that sleep; the time of each part of a step, the peak of the driver's memory."""
    import ray

    from rewards.service import reward_actor
    from rl.cluster import ray_session

    started = 4 if quick else MOST_WORKERS
    session = ray_session(RayConfig(object_store_mb=1024), cpus_needed=started + 2)
    with session, tempfile.TemporaryDirectory() as name, asyncio.Runner() as runner:
        rewards = RewardPool(
            [reward_actor(num_cpus=1).remote(load_rewards({"scorers": {"answer": {"use": "answer"}}}))], timeout_s=600
        )
        sleeping = ray.remote(SleepingWorker).options(num_cpus=1)
        workers = [sleeping.remote(sleep_s=SLEEP_S, prompt_tokens=PROMPT_TOKENS) for _ in range(started)]
        runner.run(RolloutPool(workers, timeout_s=600).ready())
        for over, ladder in ladders.items():
            rows: Rows = []
            for value, size in sizes(ladder, quick=quick):
                pool = RolloutPool(workers[: size.workers], timeout_s=600)
                step = functools.partial(_step, size, pool, rewards, Path(name, over, str(value)))
                numbers = itertools.count(1)
                run = functools.partial(lambda step, numbers: runner.run(step(next(numbers))), step, numbers)
                rows.append((value, _turns(run, turns)))
            yield over, rows


async def _step(size: Size, pool: RolloutPool, rewards: RewardPool, folder: Path, number: int) -> dict[str, float]:
    """One step, as the loop has it, without a learner; no two have the same completions, which would be cached."""
    tasks = picture_tasks(size.tasks, side_px=size.side_px)
    sampling = SamplingParams(max_tokens=size.completion_tokens)
    asked = make_requests(
        tasks, kind="train", step=number, first=0, num_samples=size.group_size, sampling=sampling, seed=0
    )
    before_mb = reset_peak()
    began = time.perf_counter()
    collected = await collect(asked, pool=pool, rewards=rewards)
    gathered = time.perf_counter()
    batch = make_train_batch(
        collected.groups,
        baseline="group_mean",
        scale="std",
        per_reward=False,
        weights={"answer": 1.0},
        gates=(),
        max_shaping=0.0,
        policy_version=0,
    )
    batched = time.perf_counter()
    advantages = {sample.trajectory_id: sample.advantage for sample in batch.samples}
    messages = messages_by_task(collected.groups)
    write_step(folder, LoggedStep(step=number, groups=collected.groups, messages=messages, advantages=advantages))
    ended = time.perf_counter()
    return {
        "all but sleep s": ended - began - SLEEP_S,
        "generate and score s": gathered - began - SLEEP_S,
        "advantages s": batched - gathered,
        "log s": ended - batched,
        "memory MB": peak_mb() - before_mb,
    }


def updates(ladders: Ladders, *, turns: int, quick: bool) -> Iterator[tuple[str, Rows]]:
    """Optimizer steps of one learner; the memory that they take above what it holds between them."""
    trained = learner(policy("tiny"), run_config())
    for over, ladder in ladders.items():
        rows: Rows = []
        for value, size in sizes(ladder, quick=quick):
            batch = random_batch(
                picture_tasks(size.tasks, side_px=size.side_px),
                trained.processor,
                group_size=size.group_size,
                completion_tokens=size.completion_tokens,
            )

            def update(batch: Any = batch) -> dict[str, float]:
                before_mb = reset_peak()
                began = time.perf_counter()
                trained.update(batch)
                return {"update s": time.perf_counter() - began, "memory MB": peak_mb() - before_mb}

            rows.append((value, _turns(update, turns)))
        yield over, rows


def _turns(step: Callable[[], dict[str, float]], turns: int) -> dict[str, list[float]]:
    found = [step() for _ in range(turns)]
    return {name: [each[name] for each in found] for name in found[0]}
