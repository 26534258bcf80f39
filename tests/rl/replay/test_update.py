"""A step made again: what differs from the log is found and named, down to the token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rl.config import to_yaml
from rl.config_schema import RunConfig
from rl.errors import ConfigError, LogError
from rl.replay.rewind import logged_batch
from rl.replay.update import (
    Check,
    ReplayedStep,
    Turn,
    advantages_check,
    described,
    logprobs_check,
    numbers_check,
    replay_step,
    what_if_configs,
)
from rl.types import ScoredTrajectory
from rollouts.log import LoggedStep, write_step
from tests.samples import a_group, a_record, a_task, a_trajectory

REWARDS = [1.0, 0.0, 0.5]  # centred: 0.5, -0.5, 0.0


@pytest.fixture
def config() -> RunConfig:
    config = RunConfig()
    config.rewards.scorers = {"answer": {"use": "answer"}}
    return config


def a_step(**changed: float) -> LoggedStep:
    advantages = {"g/0": 0.5, "g/1": -0.5, "g/2": 0.0} | {name.replace("_", "/"): v for name, v in changed.items()}
    return LoggedStep(step=7, groups=[a_group(REWARDS, unscored=1), a_group([1.0], id="lone")], advantages=advantages)


def a_run(folder: Path, config: RunConfig, logged: LoggedStep) -> Path:
    (folder / "config.yaml").write_text(to_yaml(config))
    write_step(folder, logged)
    return folder


def test_advantages_are_made_again_without_a_learner(tmp_path: Path, config: RunConfig) -> None:
    replayed = replay_step(a_run(tmp_path, config, a_step()), step=7, through="advantages")
    assert replayed.same and replayed.checks == (Check(part="advantages", compared="3 trajectories"),)


def test_an_advantage_that_does_not_follow_from_the_rewards_is_named(tmp_path: Path, config: RunConfig) -> None:
    replayed = replay_step(a_run(tmp_path, config, a_step(g_1=-0.5000000000000001)), step=7, through="advantages")
    assert replayed.checks[0].difference == ("g/1: logged -0.5000000000000001, now -0.5; 1 of 3 trajectories differ")
    assert not replayed.same


def test_a_trajectory_that_should_not_have_been_trained_on_is_named(config: RunConfig) -> None:
    logged = a_step()
    check = advantages_check(logged_batch(logged), replace(logged, advantages={"g/0": 0.5, "g/1": -0.5}))
    assert check.difference == "g/2: logged not trained on, now 0.0; 1 of 3 trajectories differ"


def test_a_log_without_updates_says_that_only_advantages_can_be_made_again(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(LogError, match="only its advantages can be made again"):
        from rl.replay.rewind import read_update

        read_update(a_run(tmp_path, config, a_step()), 7)


def test_a_group_that_was_drawn_anew_was_not_in_the_batch(tmp_path: Path, config: RunConfig) -> None:
    logged = a_step()
    anew = replace(logged, groups=[*logged.groups, a_group([0.5, 0.5], id="silent")], drawn_anew=[2])
    assert replay_step(a_run(tmp_path, config, anew), step=7, through="advantages").same
    assert len(logged_batch(anew).samples) == 3


def test_the_batch_of_the_log_has_the_logged_advantages_and_no_sample_without_one() -> None:
    batch = logged_batch(a_step(g_0=0.25))
    assert [(sample.trajectory_id, sample.advantage, sample.group) for sample in batch.samples] == [
        ("g/0", 0.25, 0),
        ("g/1", -0.5, 0),
        ("g/2", 0.0, 0),
    ]
    assert batch.loss_tokens == 6 and batch.policy_version == 6


def logprobs_step(learner: list[float]) -> tuple[LoggedStep, np.ndarray]:
    """One trajectory of four tokens, the second of which a tool wrote; its logprobs as the learner has them now."""
    trajectory = a_trajectory(
        id="t/0",
        completion_token_ids=np.array([40, 41, 42, 43], dtype=np.int32),
        completion_mask=np.array([True, False, True, True]),
        rollout_logprobs=np.array([-1.0, np.nan, -2.0, -3.0], dtype=np.float32),
    )
    scored = ScoredTrajectory(trajectory=trajectory, reward=1.0, scores={"answer": a_record("answer", 1.0)})
    logged = LoggedStep(
        step=1,
        groups=[replace(a_group([]), task=a_task(), scored=(scored,))],
        advantages={"t/0": 1.0},
        learner_logprobs={"t/0": np.array([-1.0, np.nan, -2.0, -3.0], dtype=np.float32)},
    )
    return logged, np.array(learner, dtype=np.float32)


def test_the_first_token_that_differs_is_named_by_its_place_in_the_completion() -> None:
    logged, now = logprobs_step([-1.0, -2.25, -3.5])
    check = logprobs_check(logged_batch(logged), [now], logged, tolerance=0.0)
    assert check.difference == (
        "t/0, token 2 of its completion (id 42): logged -2, now -2.25; 2 of 3 tokens differ, by 0.5 at most"
    )


def test_logprobs_are_compared_to_the_last_bit_or_within_the_tolerance() -> None:
    logged, now = logprobs_step([-1.0, float(np.nextafter(np.float32(-2.0), np.float32(0.0))), -3.0])
    batch = logged_batch(logged)
    assert "1 of 3 tokens differ" in logprobs_check(batch, [now], logged, tolerance=0.0).difference
    assert logprobs_check(batch, [now], logged, tolerance=1e-6).difference == ""


def test_a_logprob_that_is_not_a_number_is_never_the_same() -> None:
    logged, now = logprobs_step([-1.0, np.nan, -3.0])
    assert "token 2" in logprobs_check(logged_batch(logged), [now], logged, tolerance=1.0).difference


def test_the_first_number_that_differs_is_named() -> None:
    logged = {"total": 1.0, "policy": 200.0, "grad_norm": 3.0}
    now = {"total": 1.0, "policy": 200.1, "grad_norm": 9.0}
    assert numbers_check("loss", now, logged, leave=["grad_norm"], tolerance=0.0).difference == (
        "policy: logged 200.0, now 200.1"
    )
    # Relative above 1: 0.1 of 200 is within a thousandth.
    assert numbers_check("loss", now, logged, leave=["grad_norm"], tolerance=1e-3).difference == ""


def test_what_if_takes_only_what_a_logged_step_can_be_judged_under(tmp_path: Path, config: RunConfig) -> None:
    run = a_run(tmp_path, config, a_step())
    with pytest.raises(ConfigError, match=r"--what-if takes rewards\.…, advantage\.…, loss\.….*got 'learner\.ranks=2'"):
        what_if_configs(run, ["learner.ranks=2"])
    variants = what_if_configs(run, ["advantage.scale=std", "loss.clip_low=0.1"])
    assert list(variants) == ["advantage.scale=std", "loss.clip_low=0.1", "all of these"]
    assert [(v.advantage.scale, v.loss.clip_low) for v in variants.values()] == [
        ("std", 0.2), ("none", 0.1), ("std", 0.1)
    ]  # fmt: skip


def test_the_outcome_names_the_first_difference_and_lays_the_gradients_side_by_side() -> None:
    replayed = ReplayedStep(
        step=7,
        began="checkpoint step_000006",
        tolerance=0.0,
        checks=(
            Check(part="advantages", compared="3"),
            Check(part="loss", compared="total", difference="d"),
        ),
        norm=2.0,
        turns=(Turn(setting="advantage.scale=std", norm=4.0, cosine=0.5, flipped=1, rescored=0),),
    )
    whole = list(described(replace(replayed, minibatches=2)))
    assert "It was taken in 2, each at the weights" in " ".join(whole)
    assert whole[-2].split() == ["as", "one", "step", "2", "1.0000"]
    lines = list(described(replayed))
    assert lines[-2].split() == ["as", "it", "was", "2", "1.0000"]
    assert lines[0] == "step 7, from checkpoint step_000006; compared to the bit"
    assert lines[1].split() == ["advantages", "same", "3"] and "DIFFERS" in lines[2]
    assert lines[3] == "first difference: loss: d"
    assert lines[-1].split() == ["advantage.scale=std", "4", "0.5000", "1", "0"]
