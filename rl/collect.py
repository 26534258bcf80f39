"""Generate and score: trajectories are scored as they finish, while others are still being written."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from policies.contract import Anchors
from rl.errors import ScorerError
from rl.timeline import Span
from rl.types import Group, SamplingParams, ScoredTrajectory, Task, Trajectory, Unscored
from rollouts.engine import GenerationRequest


class Pool(Protocol):
    """What the loop needs of the rollout pool."""

    def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[Trajectory, ...]]:
        """The trajectories of each request as it finishes."""
        ...


class Rewards(Protocol):
    """What the loop needs of the reward service."""

    async def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        """One outcome per trajectory, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Collected:
    """Groups in the order of their requests, and when they were made.

    ``spans`` says what ran when; ``waits``, what was waited for: the engines, then the scores, then the learner's
    forward passes. ``drawn_anew`` are the groups that others were drawn for, ``anchors`` what those passes gave.
    """

    groups: list[Group]
    spans: Sequence[Span]
    waits: Sequence[Span]
    drawn_anew: Sequence[Group] = ()
    anchors: Anchors = field(default_factory=Anchors)

    def waited_s(self, phase: str, *, since_s: float = -math.inf) -> float:
        """Seconds that were waited for ``phase``, of those after a moment."""
        return sum(wait.after(since_s) for wait in self.waits if wait.phase == phase)


def make_requests(
    tasks: Sequence[Task], *, kind: str, step: int, first: int, num_samples: int, sampling: SamplingParams, seed: int
) -> list[GenerationRequest]:
    """One request per task, with ids and seeds that depend on ``seed``, the step and the place within it alone.

    ``first`` numbers the first task, so that a refill within a step neither repeats an id nor a seed.
    """
    return [
        GenerationRequest(
            id=f"{kind}-{step:06d}-{place:04d}",
            task=task,
            num_samples=num_samples,
            seed=int(np.random.SeedSequence([seed, kind == "eval", step, place]).generate_state(1)[0] >> 2),
            sampling=sampling,
        )
        for place, task in enumerate(tasks, start=first)
    ]


async def collect(
    requests: Sequence[GenerationRequest],
    *,
    pool: Pool,
    rewards: Rewards,
    workers: int = 1,
    scored: Callable[[Group], None] | None = None,
) -> Collected:
    """Generate all ``requests`` and score each group as soon as it is complete, then call ``scored`` on it.

    Requests go round ``workers``.
    """
    began_s = time.time()
    worker_of = {request.id: place % workers for place, request in enumerate(requests)}
    written: list[Span] = []
    scoring: dict[str, asyncio.Task[Group]] = {}
    try:
        async for trajectories in pool.generate(requests):
            request_id = trajectories[0].id.rpartition("/")[0]
            now_s = time.time()
            taken_up_s = now_s - max(trajectory.duration_s for trajectory in trajectories)
            written.append(Span(phase="generate", began_s=taken_up_s, ended_s=now_s, worker=worker_of[request_id]))
            scoring[request_id] = asyncio.create_task(_score_group(trajectories, rewards, scored))
        generated_s = time.time()
        groups = [await scoring[request.id] for request in requests]
    finally:
        for task in scoring.values():
            task.cancel()
    scored_s = time.time()
    first_s = min((span.ended_s for span in written), default=scored_s)
    waits = [
        Span(phase="generate", began_s=began_s, ended_s=generated_s),
        Span(phase="score", began_s=generated_s, ended_s=scored_s),
    ]
    return Collected(groups, [*_by_worker(written), Span(phase="score", began_s=first_s, ended_s=scored_s)], waits)


def _by_worker(written: Sequence[Span]) -> list[Span]:
    """One span per worker, from the first request that it took up to the last that it answered."""
    return [
        Span(
            phase="generate",
            began_s=min(span.began_s for span in written if span.worker == worker),
            ended_s=max(span.ended_s for span in written if span.worker == worker),
            worker=worker,
        )
        for worker in sorted({span.worker for span in written})
    ]


async def _score_group(
    trajectories: Sequence[Trajectory], rewards: Rewards, scored: Callable[[Group], None] | None
) -> Group:
    group = group_outcomes(trajectories[0].task, await rewards.score(trajectories))
    if scored is not None:
        scored(group)
    return group


def group_outcomes(task: Task, outcomes: Sequence[ScoredTrajectory | Unscored]) -> Group:
    """The outcomes of one task's trajectories as a group, in their order."""
    return Group(
        task=task,
        scored=tuple(outcome for outcome in outcomes if isinstance(outcome, ScoredTrajectory)),
        unscored=tuple(outcome for outcome in outcomes if isinstance(outcome, Unscored)),
    )


def check_unscored(groups: Sequence[Group], *, max_fraction: float) -> None:
    """Raise ScorerError where more than ``max_fraction`` of the trajectories got no reward; names the scorers."""
    unscored = [trajectory for group in groups for trajectory in group.unscored]
    total = len(unscored) + sum(len(group.scored) for group in groups)
    if len(unscored) <= max_fraction * total:
        return
    culprits = Counter(
        name
        for trajectory in unscored
        for name, record in trajectory.scores.items()
        if record.outcome in ("failed", "invalid_input")
    )
    named = ", ".join(f"{name} ({count})" for name, count in culprits.most_common())
    failed = f"Failed scorers: {named}. " if named else ""  # none did where the engines gave the completions up
    raise ScorerError(
        f"{len(unscored)} of {total} trajectories could not be scored; at most {max_fraction:.0%} are allowed "
        f"(rewards.max_unscored_fraction). {failed}First reason: {unscored[0].reason}"
    )
