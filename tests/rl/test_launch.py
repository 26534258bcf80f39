"""What a run begins with, and what it says of itself at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl.config_schema import RunConfig
from rl.errors import PolicyError
from rl.launch import Prepared, _initial_policy, _verdict

SUMMARY = {"steps": 4, "wall_s": 61.6, "accuracy_before": 0.5, "accuracy_after": 0.75}
REWARDED = {"reward_before": 0.25, "reward_after": 0.5}


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (SUMMARY | REWARDED, "4 steps in 62 s: held-out accuracy 0.500 -> 0.750, held-out reward 0.250 -> 0.500"),
        (
            SUMMARY | REWARDED | {"yardstick_accuracy": 0.953},
            "4 steps in 62 s: held-out accuracy 0.500 -> 0.750 (logistic regression on the same measurements: 0.953), "
            "held-out reward 0.250 -> 0.500",
        ),
        # No scorer can tell what is right: there is nothing to lay the yardstick beside.
        (
            SUMMARY | REWARDED | dict.fromkeys(("accuracy_before", "accuracy_after")) | {"yardstick_accuracy": 0.953},
            "4 steps in 62 s: held-out accuracy not evaluated, held-out reward 0.250 -> 0.500",
        ),
    ],
)
def test_a_run_says_how_it_went_and_what_to_lay_beside_it(summary: dict[str, Any], said: str) -> None:
    assert _verdict(summary) == said


@pytest.mark.parametrize(("of_a_rank", "asked"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, 1.0)])
async def test_the_policy_is_prepared_on_one_gpu_where_the_learner_has_some(
    of_a_rank: float, asked: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_apart(*_: Any, gpus: float, **__: Any) -> None:
        raise PolicyError(f"asked for {gpus}")

    monkeypatch.setattr("rl.cluster.run_apart", run_apart)
    config = RunConfig()
    config.learner.gpus_per_rank = of_a_rank
    with pytest.raises(PolicyError, match=f"asked for {asked}"):
        await _initial_policy(Prepared(config, tmp_path, (), (), ()))
