"""The reward service: how much it scores and how soon, over how many actors, and how long a step waits for it.

Rules are the four scorers of the quickstart; judges are scorers that answer after 1 or 50 ms, as those at the other end
of a network do. Latencies are those of one trajectory among `IN_FLIGHT`, its waiting for its turn included.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rewards.config import ConfiguredScorer, load_rewards
from rewards.pool import RewardPool
from rewards.scorer import Score, Scorer, Trajectory
from rewards.service import RewardService
from rl.metrics import read_metrics
from rollouts.cytology import load_cytology
from tests.bench.harness import Figure, Part, Spread, Table, spread
from tests.samples import a_trajectory

TRAJECTORIES = 1024
GROUP_SIZE = 8
IN_FLIGHT = 128
"""Trajectories that are being scored at a time, as a step of 16 groups of 8 has them."""
ACTORS = (1, 2, 4, 8)
STEPS = 6
WAITING_AIM = 0.02
RULES = {
    "answer": {"use": "answer"},
    "grounding": {"use": "hallucination", "weight": 0.5},
    "form": {"use": "rubric", "weight": 0.25, "path": "rewards/cytology.yaml"},
    "safety": {"use": "rubric", "path": "rewards/cytology_safety.yaml", "gate": True},
}
Scorers = Sequence[ConfiguredScorer]


@dataclass(frozen=True, kw_only=True)
class Judge(Scorer):
    """Answers after ``latency_s``."""

    isolated: ClassVar[bool] = False

    latency_s: float

    async def score(self, trajectory: Trajectory) -> Score:
        await asyncio.sleep(self.latency_s)
        return Score(1.0)


@dataclass(frozen=True, slots=True)
class Served:
    """What a service did with one lot of trajectories."""

    per_s: float
    p50_ms: float
    p99_ms: float


def measure(*, turns: int, quick: bool) -> Part:
    count = IN_FLIGHT + GROUP_SIZE if quick else TRAJECTORIES
    rows = {
        **asyncio.run(one_service(count, turns=turns)),
        **dict(several_actors(count, turns=turns, actors=ACTORS[:2] if quick else ACTORS)),
    }
    return Part(
        config={"trajectories": count, "in_flight": IN_FLIGHT, "group_size": GROUP_SIZE, "steps": STEPS},
        figures=[*scaling(rows), waiting(steps=2 if quick else STEPS)],
        tables=[
            Table(
                title=f"Trajectories/s, and latency with {IN_FLIGHT} in flight",
                columns=("", "trajectories/s", "25 %", "75 %", "p50 ms", "p99 ms"),
                rows=[(what, *_row(served)) for what, served in rows.items()],
            )
        ],
    )


def _row(served: Sequence[Served]) -> tuple[float, ...]:
    rate = spread([each.per_s for each in served])
    middle, tail = ([getattr(each, name) for each in served] for name in ("p50_ms", "p99_ms"))
    return rate.median, rate.low, rate.high, statistics.median(middle), statistics.median(tail)


def scaling(rows: Mapping[str, Sequence[Served]]) -> Iterator[Figure]:
    """How much more several actors do than one."""
    for kind in ("rules", "judge of 50 ms"):
        found = {int(what.split()[-2]): served for what, served in rows.items() if what.startswith(f"{kind}, behind")}
        alone = spread([each.per_s for each in found[1]]).median
        for actors, served in found.items():
            if actors > 1:
                value = spread([each.per_s / alone for each in served])
                yield Figure(what=f"{kind}: trajectories/s of {actors} actors over those of one", value=value)


def answers(numbers: Sequence[int]) -> list[Trajectory]:
    """Different answers to the built-in cases, with the trace that the quickstart's policy learns to write."""
    tasks = load_cytology("train", seed=0)
    made = []
    for number in numbers:
        task = tasks[number % len(tasks)]
        cited = [f"- {name} {each.value:g} {each.unit} {each.reading}" for name, each in list(task.record.items())[:4]]
        findings = "\n".join(cited)
        text = f"<think>\nFindings:\n{findings}\nConclusion: malignant {number}\n</think>\n<answer>yes</answer>"
        made.append(a_trajectory(text, id=f"{number}/0", task=task))
    return made


def lots(count: int) -> Iterator[list[Trajectory]]:
    """Lot after lot of ``count`` trajectories, none of which a cache has seen."""
    for first in itertools.count(step=count):
        yield answers(range(first, first + count))


def judge(latency_s: float, *, isolated: bool = False) -> Scorers:
    return (ConfiguredScorer(name="judge", scorer=Judge(latency_s=latency_s), isolated=isolated),)


async def served(
    score: Callable[[Sequence[Trajectory]], Awaitable[object]], batches: Sequence[Sequence[Trajectory]], *, at_once: int
) -> Served:
    """Score all ``batches``, so many at a time; the time of each runs from its turn to its scores."""
    places = asyncio.Semaphore(at_once)
    latencies_ms: list[float] = []

    async def one(batch: Sequence[Trajectory]) -> None:
        async with places:
            began = time.perf_counter()
            await score(batch)
            latencies_ms.append(1e3 * (time.perf_counter() - began))

    began = time.perf_counter()
    await asyncio.gather(*map(one, batches))
    wall_s = time.perf_counter() - began
    cuts = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    return Served(sum(map(len, batches)) / wall_s, cuts[49], cuts[98])


async def one_service(count: int, *, turns: int) -> dict[str, list[Served]]:
    """One service in this process, single trajectories."""
    apart = {name: spec | {"isolated": True} for name, spec in RULES.items()}
    cases: dict[str, Scorers] = {
        "rules": load_rewards({"scorers": RULES}),
        "rules, each isolated": load_rewards({"scorers": apart}),
        "judge of 1 ms": judge(0.001),
        "judge of 50 ms": judge(0.05),
        "judge of 50 ms, isolated": judge(0.05, isolated=True),
    }
    rows: dict[str, list[Served]] = {}
    for name, scorers in cases.items():
        with RewardService(scorers) as service:
            lot = lots(count)
            await service.score_many(next(lot))  # starts processes
            rows[name] = []
            for _ in range(turns):
                singles = [[each] for each in next(lot)]
                rows[name].append(await served(service.score_many, singles, at_once=IN_FLIGHT))
            if service.cache_counts()[1]:
                again = [await served(service.score_many, singles, at_once=IN_FLIGHT) for _ in range(turns)]
                rows[f"{name}, seen before"] = again
    return rows


def several_actors(count: int, *, turns: int, actors: Sequence[int]) -> Iterator[tuple[str, list[Served]]]:
    """Reward actors behind the pool of a run, groups of `GROUP_SIZE`."""
    import ray

    from rewards.service import reward_actor

    ray.init(num_cpus=max(actors), include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False)
    try:
        for name, scorers in (("rules", load_rewards({"scorers": RULES})), ("judge of 50 ms", judge(0.05))):
            for number in actors:
                workers = [reward_actor(num_cpus=1).remote(scorers) for _ in range(number)]
                pool = RewardPool(workers, timeout_s=120.0)
                yield f"{name}, behind {number} actors", asyncio.run(_by_pool(pool, count, number, turns=turns))
                for worker in workers:
                    ray.kill(worker)
    finally:
        ray.shutdown()


async def _by_pool(pool: RewardPool, count: int, actors: int, *, turns: int) -> list[Served]:
    lot = lots(count)
    warm = next(lot)[:GROUP_SIZE]
    for _ in range(actors):  # one group to each, so that all have started
        await pool.score(warm)
    found = []
    for _ in range(turns):
        made = next(lot)
        groups = [made[at : at + GROUP_SIZE] for at in range(0, count, GROUP_SIZE)]
        found.append(await served(pool.score, groups, at_once=IN_FLIGHT // GROUP_SIZE))
    return found


def waiting(*, steps: int) -> Figure:
    """The share of a step of the quickstart in which nothing is done but wait for rewards."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output_dir={folder}/run", f"max_steps={steps}", "warmstart.steps=60", "evaluation.max_tasks=8"]
        command = [sys.executable, "-m", "rl.cli", "train", "quickstart", *overrides]
        subprocess.run(command, check=True, capture_output=True)
        records = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    timed_steps = [record for record in records if "time/score_s" in record][1:]  # the first one also warms up
    shares = [record["time/score_s"] / record["time/step_s"] for record in timed_steps]
    value: Spread = spread(shares)
    return Figure(
        what="Quickstart: share of a step that waits for rewards",
        value=value,
        unit="",
        aim=WAITING_AIM,
        better="lower",
        note="scores arrive while others still generate",
    )
