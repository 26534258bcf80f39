"""Learners in Ray actors, as a run starts them, for as long as a test uses them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from policies.contract import LearnerSettings


def with_learner(
    use: Callable[[Any], Awaitable[Any]], settings: LearnerSettings, *, ranks: int, ray: Any, **loss: Any
) -> Any:
    """What ``use`` makes of a learner of so many ranks, which ends with it; ``loss`` are settings of its loss."""
    from rl.cluster import start_learner
    from rl.config_schema import LearnerConfig
    from rl.loss import LossSettings, policy_loss

    async def session() -> Any:
        function = functools.partial(policy_loss, settings=LossSettings(correction="none", **loss))
        learner = await start_learner(settings, LearnerConfig(ranks=ranks, timeout_s=300), function)
        try:
            return await use(learner)
        finally:
            for worker in learner.workers:
                ray.kill(worker)

    return asyncio.run(session())
