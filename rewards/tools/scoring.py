"""Scores a stream of trajectories of any length: in order, nothing dropped, a bounded number of them in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable

from rewards.config import RewardsFile
from rewards.judges.config import reach_judges
from rewards.service import RewardService
from rl.types import ScoredTrajectory, Trajectory, Unscored

DEFAULT_CONCURRENCY = 32


def score_stream(
    trajectories: Iterable[Trajectory],
    rewards: RewardsFile,
    *,
    receive: Callable[[ScoredTrajectory | Unscored], None],
    concurrency: int = DEFAULT_CONCURRENCY,
) -> None:
    """Score every trajectory and hand the outcomes to ``receive`` in the order of the trajectories.

    At most ``concurrency`` of them are under way or wait for one before them.
    """
    rewards = dataclasses.replace(rewards, scorers=reach_judges(rewards.scorers, kept_will_do=True))
    asyncio.run(_score_stream(trajectories, rewards, receive=receive, concurrency=concurrency))


async def _score_stream(
    trajectories: Iterable[Trajectory],
    rewards: RewardsFile,
    *,
    receive: Callable[[ScoredTrajectory | Unscored], None],
    concurrency: int,
) -> None:
    under_way: deque[asyncio.Task[ScoredTrajectory | Unscored]] = deque()
    with reward_service(rewards) as service:
        try:
            for trajectory in trajectories:
                under_way.append(asyncio.create_task(service.score(trajectory)))
                if len(under_way) == concurrency:
                    receive(await under_way.popleft())
            while under_way:
                receive(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()


def reward_service(rewards: RewardsFile) -> RewardService:
    """The service that a rewards file describes."""
    return RewardService(
        rewards.scorers,
        length_penalty=rewards.length_penalty,
        length_soft_tokens=rewards.length_soft_tokens,
        cache=rewards.cache,
    )
