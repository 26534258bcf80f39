"""How far generation runs ahead, and that no token older than the bound is trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rl.ahead import Ahead, check_staleness, staleness_metrics
from rl.collect import Collected
from rl.errors import RolloutError
from rl.types import Group, Unscored
from tests.samples import a_task, a_trajectory

NOTHING = Collected(groups=[], spans=[], waits=[])


@pytest.mark.parametrize(
    ("max_staleness", "begun"),
    [(0, [[1], [1, 2], [1, 2, 3]]), (1, [[1, 2], [1, 2, 3], [1, 2, 3]]), (5, [[1, 2, 3]] * 3)],
)
async def test_a_step_is_begun_once_the_engines_hold_a_version_that_is_young_enough(
    max_staleness: int, begun: list[list[int]]
) -> None:
    # Version k - 1 is there when step k is asked for. Step j may be begun at version v where (j - 1) - v <= the bound.
    seen: list[int] = []

    async def collect(step: int) -> Collected:
        seen.append(step)
        return NOTHING

    async with Ahead(collect, max_staleness=max_staleness, last_step=3) as ahead:
        for step, expected in enumerate(begun, start=1):
            await ahead.collected(step)
            await asyncio.sleep(0)
            assert seen == expected


async def test_what_may_run_ahead_is_begun_at_the_publication_and_strictly_on_policy_nothing_is() -> None:
    seen: list[tuple[int, int]] = []

    def collecting(max_staleness: int) -> Ahead:
        async def collect(step: int) -> Collected:
            seen.append((max_staleness, step))
            return NOTHING

        return Ahead(collect, max_staleness=max_staleness, last_step=9)

    async with collecting(0) as on_policy, collecting(1) as ahead:
        on_policy.published(4)
        ahead.published(4)  # steps 5 and 6 train on versions 4 and 5
        await asyncio.sleep(0)
    assert seen == [(1, 5), (1, 6)]


async def test_a_failure_ahead_is_told_when_its_step_comes_and_the_others_are_given_up() -> None:
    given_up = []

    async def collect(step: int) -> Collected:
        if step == 2:
            raise RolloutError("rollout worker 0 died")
        if step == 3:
            try:
                await asyncio.Event().wait()
            finally:
                given_up.append(step)
        return NOTHING

    with pytest.raises(RolloutError, match="worker 0 died"):
        async with Ahead(collect, max_staleness=2, last_step=9) as ahead:
            await ahead.collected(1)
            await asyncio.sleep(0)
            await ahead.collected(2)
    assert given_up == [3]


def written_by(*versions: int, told: Sequence[int] = ()) -> Group:
    """Tokens of these versions, of which the policy was ``told`` those at some places."""
    starts = [place for place in range(1, len(versions)) if versions[place] != versions[place - 1]]
    trajectory = a_trajectory(
        completion_token_ids=np.zeros(len(versions), dtype=np.int32),
        completion_mask=~np.isin(np.arange(len(versions)), told),
        policy_version=versions[0] if versions else 0,
        later_versions=tuple((place, versions[place]) for place in starts),
    )
    return Group(task=a_task(), scored=(), unscored=(Unscored(trajectory=trajectory, scores={}, reason="lost"),))


def test_a_token_older_than_the_bound_is_an_error() -> None:
    check_staleness([written_by(5, 6, 7)], learner_version=7, max_staleness=2)
    with pytest.raises(RolloutError, match=r"versions 4 to 7 .* at version 7 none but 5 to 7 .*max_staleness=2"):
        check_staleness([written_by(7), written_by(4, 5, 7)], learner_version=7, max_staleness=2)


def test_a_token_of_weights_that_the_learner_does_not_have_yet_is_an_error() -> None:
    with pytest.raises(RolloutError, match="versions 7 to 8"):
        check_staleness([written_by(7, 8)], learner_version=7, max_staleness=2)


def test_a_completion_without_tokens_has_no_age() -> None:
    check_staleness([written_by()], learner_version=7, max_staleness=0)
    assert staleness_metrics([written_by()], learner_version=7) == {}


def test_staleness_is_measured_over_tokens() -> None:
    # Lags 2, 1, 1, 0 and 0, 0: four versions behind over six tokens; one completion of two is mixed.
    groups = [written_by(5, 6, 6, 7), written_by(7, 7)]
    assert staleness_metrics(groups, learner_version=7) == {
        "rollout/version_lag": pytest.approx(4 / 6),
        "rollout/version_lag_max": 2.0,
        "rollout/mixed_fraction": 0.5,
    }


def test_what_the_policy_was_told_has_no_age() -> None:
    group = written_by(4, 6, 6, 7, told=[0, 3])
    check_staleness([group], learner_version=6, max_staleness=0)
    assert staleness_metrics([group], learner_version=6)["rollout/version_lag_max"] == 0.0


def test_token_versions_of_a_completion_that_one_version_wrote_are_all_the_same() -> None:
    trajectory = replace(a_trajectory(), policy_version=3)
    assert trajectory.token_versions.tolist() == [3, 3]
