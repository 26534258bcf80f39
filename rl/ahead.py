"""What is done ahead: what an update compares with, and generation, never further than the bound on staleness.

Step k trains on the learner's version k - 1. Its tokens may be as old as version k - 1 - max_staleness: so it is begun
as soon as the engines hold that version, and not before. Each step keeps the tasks that it was begun with, however long
they take: none is dropped for being late, and short completions are not trained on first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import numpy as np

from policies.contract import Anchors
from rl.batch import train_sample
from rl.collect import Collected
from rl.errors import RolloutError
from rl.timeline import Span
from rl.types import Group


class Ahead:
    """Collects the groups of the coming steps. With ``max_staleness`` 0 a step is begun when it is asked for."""

    def __init__(
        self, collect: Callable[[int], Coroutine[Any, Any, Collected]], *, max_staleness: int, last_step: int
    ) -> None:
        self._collect = collect
        self.max_staleness, self.last_step = max_staleness, last_step
        self._begun: dict[int, asyncio.Task[Collected]] = {}

    def published(self, version: int) -> None:
        """The engines hold ``version``: begin what its tokens may still be trained for, where that is ahead."""
        if self.max_staleness:
            self._begin(version + 1, through=version + 1 + self.max_staleness)

    async def collected(self, step: int) -> Collected:
        """The groups of ``step``. To be called in order, once the engines hold version ``step - 1``."""
        self._begin(step, through=step + self.max_staleness)
        return await self._begun.pop(step)

    def _begin(self, step: int, *, through: int) -> None:
        for coming in range(step, min(through, self.last_step) + 1):
            if coming not in self._begun:
                self._begun[coming] = asyncio.create_task(self._collect(coming))

    async def __aenter__(self) -> Ahead:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give up what was begun. Its failures are of no consequence: nothing was trained on it."""
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)


class EarlyAnchors:
    """What the update will compare finished groups with, by a learner that rests while others are still written."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self._asked: list[asyncio.Task[Anchors]] = []
        self._spans: list[Span] = []

    def begin(self, group: Group) -> None:
        """Ask for those of a scored group; one without a baseline is not trained on."""
        if len(group.scored) >= 2:
            self._asked.append(asyncio.create_task(self._anchors(group)))

    async def known(self) -> tuple[Anchors, list[Span]]:
        """All that was asked for, and when the learner was at it."""
        found = [await each for each in self._asked]
        return Anchors(
            reference={name: logprobs for each in found for name, logprobs in each.reference.items()},
            before={name: logprobs for each in found for name, logprobs in each.before.items()},
        ), self._spans

    async def _anchors(self, group: Group) -> Anchors:
        asked_s = time.time()
        samples = [train_sample(scored.trajectory, group=0, advantage=0.0) for scored in group.scored]
        found: Anchors = await self._learner.anchors(samples)
        began_s = max([asked_s, *(span.ended_s for span in self._spans)])  # the learner takes one after the other
        self._spans.append(Span(phase="forward", began_s=began_s, ended_s=time.time()))
        return found

    async def __aenter__(self) -> EarlyAnchors:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)


def check_staleness(groups: Sequence[Group], *, learner_version: int, max_staleness: int) -> None:
    """Raise RolloutError for a token that is older than the bound allows, or newer than the learner."""
    for trajectory in (item.trajectory for group in groups for item in group.items):
        if not trajectory.length_tokens:
            continue
        versions = trajectory.token_versions[trajectory.completion_mask]
        oldest, newest = versions.min(), versions.max()
        if oldest < learner_version - max_staleness or newest > learner_version:
            raise RolloutError(
                f"trajectory {trajectory.id} was written by versions {oldest} to {newest} of the policy; at version "
                f"{learner_version} none but {max(learner_version - max_staleness, 0)} to {learner_version} may be "
                f"used (async.max_staleness={max_staleness})"
            )


def staleness_metrics(groups: Iterable[Group], *, learner_version: int) -> dict[str, float]:
    """How old the tokens of a step are, under declared names."""
    written = [item.trajectory for group in groups for item in group.items if item.trajectory.length_tokens]
    if not written:
        return {}
    lags = learner_version - np.concatenate([each.token_versions[each.completion_mask] for each in written])
    return {
        "rollout/version_lag": float(lags.mean()),
        "rollout/version_lag_max": float(lags.max()),
        "rollout/mixed_fraction": float(np.mean([bool(trajectory.later_versions) for trajectory in written])),
    }
