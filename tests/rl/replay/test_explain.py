"""From a step back to what it rests on: shares by hand, safe on a terminal, nothing left out silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewards.tools.terminal import Paint
from rl.config import to_yaml
from rl.config_schema import RunConfig
from rl.errors import LogError
from rl.replay.explain import explain_step
from rl.replay.shares import GradientShare, gradient_shares, keep_shares, loss_weights, read_shares
from rl.types import Group, ScoredTrajectory
from rollouts.log import LoggedStep, write_step
from tests.samples import a_group, a_record, a_sample, a_task, a_trajectory

EVIL = "<think>\x1b[2J\x1b]0;owned\x07‮</think><answer>no\x1b[1A</answer>"


def a_scored(id: str, reward: float, *, tokens: int, text: str = "<answer>yes</answer>") -> ScoredTrajectory:
    trajectory = a_trajectory(
        text,
        id=id,
        task=a_task("case-1", question="Is the mass malignant? " * 10),
        completion_token_ids=np.arange(tokens, dtype=np.int32),
        completion_mask=np.ones(tokens, dtype=bool),
        rollout_logprobs=np.full(tokens, -1.0, dtype=np.float32),
    )
    return ScoredTrajectory(
        trajectory=trajectory, reward=reward, scores={"answer": a_record("answer", reward)}, correct=reward == 1.0
    )


@pytest.fixture
def step() -> LoggedStep:
    good = a_scored("c/0", 1.0, tokens=2, text=f"<answer>{'yes ' * 40}</answer>")
    bad = a_scored("c/1", 0.0, tokens=6, text=EVIL)
    return LoggedStep(
        step=3,
        groups=[
            Group(task=good.trajectory.task, scored=(good, bad)),
            a_group([1.0], unscored=1, id="lone"),
            a_group([1.0, 1.0], id="silent"),
        ],
        drawn_anew=[2],
        advantages={"c/0": 0.5, "c/1": -0.5},
        micro_batches={"c/0": 0, "c/1": 0},
        update={
            "stats": {"total": 0.25, "grad_norm": 2.0, "learning_rate": 1e-3},
            "weights_before": "aa" * 32,
            "weights_after": "bb" * 32,
        },
    )


@pytest.fixture
def run(tmp_path: Path, step: LoggedStep) -> Path:
    config = RunConfig()
    config.rewards.scorers = {"answer": {"use": "answer"}}
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    write_step(tmp_path, step)
    return tmp_path


def explained(run: Path, trajectory: str | None = None) -> str:
    lines = list(explain_step(run, step=3, trajectory=trajectory, gradients=False, paint=Paint()))
    assert all(len(line) <= 80 for line in lines), max(lines, key=len)
    return "\n".join(lines)


def test_loss_weights_are_advantages_times_the_tokens_that_the_loss_counts(step: LoggedStep) -> None:
    # |0.5| x 2 tokens and |-0.5| x 6 tokens; a mean over each sequence knows no length.
    assert loss_weights(step, aggregation="token_mean") == {"c/0": 0.25, "c/1": 0.75}
    assert loss_weights(step, aggregation="sequence_mean") == {"c/0": 0.5, "c/1": 0.5}


def test_gradient_shares_are_projections_that_add_up_to_one() -> None:
    # In the plane: g1 = (4, 3), g2 = (-1, 1), so G = (3, 4), |G|² = 25, g1·G = 24, g2·G = 1.
    samples = [a_sample([1]), a_sample([2])]
    shares = gradient_shares(samples, [(5.0, 24.0), (2**0.5, 1.0)], 5.0)
    one, other = (shares[sample.trajectory_id] for sample in samples)
    assert (one.share, one.cosine) == pytest.approx((24 / 25, 24 / 25))
    assert (other.share, other.cosine) == pytest.approx((1 / 25, 1 / (5 * 2**0.5)))
    assert one.share + other.share == pytest.approx(1.0)


def test_no_gradient_at_all_has_no_shares() -> None:
    (share,) = gradient_shares([a_sample([1])], [(0.0, 0.0)], 0.0).values()
    assert share == GradientShare(share=0.0, norm=0.0, cosine=0.0)


def test_a_step_whose_update_failed_is_not_said_to_have_been_trained_on(run: Path, step: LoggedStep) -> None:
    write_step(run, LoggedStep(step=3, groups=step.groups))
    text = explained(run)
    assert "the log knows of no update" in text
    assert "became" not in text and "without a baseline" not in text


def test_a_step_is_told_with_its_heaviest_trajectory_first_and_what_was_left_out(run: Path) -> None:
    text = explained(run)
    assert "loss 0.25, gradient norm 2, clipped, learning rate 0.001" in text
    assert f"weights {'a' * 16}… → {'b' * 16}…" in text
    assert "left out: 1 trajectories without a reward" in text
    assert "left out: 1 groups with fewer than two rewards" in text
    assert "left out: 1 groups without signal, which others were drawn for" in text
    assert "weight in the loss and not" in text
    assert text.index("75.0%     -0.500") < text.index("25.0%     +0.500")


def test_what_a_model_wrote_cannot_act_on_the_terminal(run: Path) -> None:
    for text in (explained(run), explained(run, "c/1")):
        assert "\x1b" not in text and "\x07" not in text and "‮" not in text
    assert "\\x1b[2J" in explained(run, "c/1")


def test_a_trajectory_is_told_down_to_its_scores(run: Path) -> None:
    text = explained(run, "c/1")
    assert "advantage -0.5000: the step was to make it less likely" in text
    assert "reward 0.0000 in a group of 2 from 0.0000 to 1.0000" in text
    assert "weight in the loss 75.00%, micro-batch 0" in text
    assert "answer  weight 1  value 0.0000  version v" in text


def test_a_trajectory_that_was_not_trained_on_says_why(run: Path) -> None:
    assert "not trained on: its group has fewer than two rewards" in explained(run, "lone/0")
    assert "not trained on: judge failed: time-out" in explained(run, "lone/1")


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"is not the folder of a run: it has no config\.yaml"):
        explained(tmp_path)


def test_an_unknown_trajectory_is_an_error_that_shows_what_ids_look_like(run: Path) -> None:
    with pytest.raises(LogError, match=r"step 3 has no trajectory of the id 'x/9'; its ids are such as 'c/0'"):
        explained(run, "x/9")


def test_measured_shares_replace_the_weights_but_not_once_the_step_was_taken_anew(run: Path, step: LoggedStep) -> None:
    shares = {
        "c/0": GradientShare(share=1.25, norm=2.0, cosine=0.5),
        "c/1": GradientShare(share=-0.25, norm=1.0, cosine=-0.5),
    }
    keep_shares(run, step, shares)
    assert read_shares(run, step) == shares
    text = explained(run)
    assert "one below zero pulled against the step" in text
    assert text.index("125.0%     +0.500") < text.index("-25.0%     -0.500")
    assert "share of the gradient -25.00%: norm 1, cosine to the step's -0.500" in explained(run, "c/1")
    assert read_shares(run, replace(step, update=step.update | {"weights_before": "cc" * 32})) == {}
