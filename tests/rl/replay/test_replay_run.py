"""A step of a real run made again and taken apart by a real learner, through the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rollouts.log import read_step, write_step
from tests.rl.conftest import STEPS, medrl

pytestmark = pytest.mark.slow


def test_a_step_between_checkpoints_is_made_again_to_the_bit_and_otherwise(undisturbed: Path) -> None:
    settings = ("loss.clip_low=0.1", "advantage.scale=none", "rewards.scorers.letters.letter=a", "loss.kl_coef=0.1")
    done = medrl("replay", undisturbed, "--step", STEPS, "--what-if", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines = done.stdout.splitlines()
    assert head == "step 4, from checkpoint step_000002, step 3 made again; compared to the bit"
    parts = ["advantages", "weights before", "micro-batches", "learner logprobs", "loss", "gradient", "weights after"]
    for part, line in zip(parts, lines, strict=False):
        assert line.split(part, 1)[1].split()[0] == "same", line
    assert lines[len(parts)] == "no difference"

    norms, cosines, flipped, rescored = {}, {}, {}, {}
    for line in lines[-len(settings) - 1 : -1]:
        name, *numbers = line.split()
        norms[name], cosines[name] = map(float, numbers[:2])
        flipped[name], rescored[name] = map(int, numbers[2:])
    taken = float(next(line for line in lines if line.startswith("as it was")).split()[3])
    clip, scale, letter, kl = settings
    # On-policy every ratio is 1: no bound is met, wherever it is. The reference has drifted away by step 4.
    assert (norms[clip], cosines[clip]) == (taken, 1.0)
    assert norms[scale] < taken and 0 < cosines[scale] < 1
    assert rescored == {clip: 0, scale: 0, letter: 16, kl: 0}  # another letter: 4 tasks x 4 trajectories
    assert flipped[letter] > 0 and cosines[letter] < cosines[scale]
    assert 0 < cosines[kl] <= 1 and norms[kl] != taken


def test_a_changed_log_is_found_out_and_the_token_is_named(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "changed"
    shutil.copytree(undisturbed, run)
    logged = read_step(run, 1)
    name = list(logged.advantages)[5]
    logprobs = logged.learner_logprobs[name].copy()
    logprobs[3] *= 1.0001
    write_step(run, replace(logged, learner_logprobs={**logged.learner_logprobs, name: logprobs}))
    done = medrl("replay", run, "--step", 1)
    assert done.returncode == 1
    assert "step 1, from the policy that the run started from; compared to the bit" in done.stdout
    assert f"first difference: learner logprobs: {name}, token 3 of its completion" in done.stdout
    assert "1 of " in done.stdout and "weights after     same" in done.stdout


def test_the_shares_of_a_gradient_add_up_and_are_kept(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "explained"
    shutil.copytree(undisturbed, run)
    done = medrl("explain", run, "--step", 2, "--gradients")
    assert done.returncode == 0, done.stderr
    assert "the projection of a trajectory's gradient on the step's" in done.stdout
    kept = json.loads((run / "explained" / "step_000002.json").read_text())
    logged = read_step(run, 2)
    assert kept["shares"].keys() == logged.advantages.keys()
    assert sum(part["share"] for part in kept["shares"].values()) == pytest.approx(1.0, abs=1e-4)
    silent = [name for name, advantage in logged.advantages.items() if advantage == 0]
    assert all(kept["shares"][name]["norm"] == 0 for name in silent)
    again = medrl("explain", run, "--step", 2)  # without a learner
    assert again.stdout == done.stdout
