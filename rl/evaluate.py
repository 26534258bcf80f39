"""Held-out evaluation: one greedy trajectory per task, scored by the same rewards as training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rl.collect import Rewards, collect, make_requests
from rl.metrics import evaluation_metrics
from rl.types import Group, SamplingParams, Task
from rollouts.pool import RolloutPool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scored trajectories of an evaluation and what they amount to, under the declared ``eval/`` names."""

    groups: list[Group]
    metrics: dict[str, float]


async def evaluate(
    tasks: Sequence[Task],
    *,
    step: int,
    pool: RolloutPool,
    rewards: Rewards,
    sampling: SamplingParams,
    seed: int,
    with_tools: bool,
) -> Evaluation:
    """Greedy pass@1 on ``tasks``; ``step`` is the number of training steps that the policy has had, ``with_tools``
    whether it may call tools."""
    requests = make_requests(tasks, kind="eval", step=step, first=0, num_samples=1, sampling=sampling, seed=seed)
    collected = await collect(requests, pool=pool, rewards=rewards)
    return Evaluation(collected.groups, evaluation_metrics(collected.groups, with_tools=with_tools))
