from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.pool import RewardPool
from rl.errors import ScorerError

pytestmark = pytest.mark.slow  # loads Ray


def a_worker(*, takes_s: float, counts: Callable[[], Any]) -> Any:
    """What a Ray actor looks like from here: each method has a ``remote`` that gives an awaitable."""

    async def score_many(trajectories: Any) -> list[Any]:
        await asyncio.sleep(takes_s)
        return list(trajectories)

    async def counted() -> Any:
        return counts()

    return SimpleNamespace(score_many=SimpleNamespace(remote=score_many), counts=SimpleNamespace(remote=counted))


async def test_a_worker_that_makes_scores_may_take_its_time() -> None:
    """Six times as long as what would be a hang, with a score done every now and then."""
    made = itertools.count()
    pool = RewardPool([a_worker(takes_s=3.0, counts=lambda: next(made))], timeout_s=0.5)
    assert await pool.score(["a", "b"]) == ["a", "b"]  # type: ignore[list-item]


async def test_one_that_makes_none_is_taken_to_hang() -> None:
    pool = RewardPool([a_worker(takes_s=60, counts=lambda: 7)], timeout_s=0.05)
    with pytest.raises(ScorerError, match="the reward service finished no score for 0 s"):
        await pool.score([])


async def test_one_that_answers_nothing_at_all_is_taken_to_hang() -> None:
    worker = a_worker(takes_s=60, counts=lambda: 7)
    worker.counts.remote = lambda: asyncio.sleep(60)
    with pytest.raises(ScorerError, match="finished no score"):
        await RewardPool([worker], timeout_s=0.05).score([])
