"""The handle on all ranks of the learner: which of them is named where a call fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from policies.worker import LearnerGroup
from rl.errors import LearnerError


def test_the_rank_that_dies_while_weights_are_gathered_is_named_and_not_the_one_that_waits_for_it() -> None:
    from ray.exceptions import RayError

    async def publish() -> None:
        waiting, dead = (asyncio.get_running_loop().create_future() for _ in range(2))
        dead.set_exception(RayError("out of memory"))
        await LearnerGroup([_rank(waiting), _rank(dead)], timeout_s=2).weights()

    with pytest.raises(LearnerError, match="rank 1 died: out of memory"):
        asyncio.run(publish())


def _rank(described: asyncio.Future[Any]) -> Any:
    """An actor whose weights are the object of no reference, described once the future is done."""
    call = SimpleNamespace(remote=lambda: (None, described))
    return SimpleNamespace(weights=SimpleNamespace(options=lambda num_returns: call))
