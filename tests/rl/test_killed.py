"""A run that is killed, stopped or damaged, and resumed each time, ends as the undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from rl.checkpoint import checkpoint_folders
from rl.metrics import read_metrics
from tests.killing import Moment
from tests.rl.conftest import ROOT, STEPS, assert_same_logs, belongs_to, killed, train, weights_hash

pytestmark = pytest.mark.slow

MOMENTS = (
    Moment("evaluation", 1, 0.3),
    Moment("gathering", 1),
    Moment("publication", 1, 0.02),
    Moment("generation", 1, 0.05),
    Moment("scoring", 3),
    Moment("generation", 2, 0.4),
    Moment("update", 1),
    Moment("update", 2, 0.3),
    Moment("log", 2, 0.001),
    Moment("metrics", 4, None),
    Moment("checkpoint", 1),
    Moment("checkpoint shards", 1, 0.005),
    Moment("checkpoint flush", 1, None),  # steps 1 and 2 are done and no checkpoint is whole
    Moment("checkpoint", 1, None),  # from here on the run goes on from step 2
    Moment("generation", 1, 0.2),
    Moment("update", 1, 0.1),
    Moment("publication", 3, None),
    Moment("evaluation", 1, 0.1),  # at step 4
    Moment("checkpoint shards", 1, None),
    Moment("final policy", 1, 0.02),
)

NOT_REPEATED = ("time/", "throughput/")  # what a clock measured


def test_a_run_killed_stopped_and_damaged_ends_as_the_undisturbed_one(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    killed(config, folder, Moment("generation", 2, 0.2))  # no checkpoint yet: it begins anew
    stopped_after = stopped(config, folder)
    assert 1 <= stopped_after < STEPS
    killed(config, folder, Moment("final policy", 1, 0.02))
    damage(folder / "checkpoints" / "step_000004" / "learner" / "rank_00000.safetensors")
    done = train(config, folder, "resume=true")
    assert "step_000004 is damaged (the checksum of learner/rank_00000.safetensors does not match)" in done.stderr
    assert f"resuming after step {max(2, stopped_after)}" in done.stderr
    assert_same_run(folder, undisturbed)


@pytest.mark.skipif(os.environ.get("MEDRL_TEST_KILLS") != "all", reason="twenty restarts: MEDRL_TEST_KILLS=all")
def test_a_run_killed_at_twenty_moments_ends_as_the_undisturbed_one(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    for moment in MOMENTS:
        lasted_s = killed(config, folder, moment)
        print(f"{moment}: {state_of(folder)}, its last process ended {lasted_s:.1f} s after it")
    train(config, folder, "resume=true")
    assert_same_run(folder, undisturbed)


OTHER_MODES = (
    "policy.dtype=bfloat16", "policy.lora.rank=4", "loss.kl_coef=0.05", "loss.entropy_coef=0.01",
    "learner.ranks=2", "learner.zero_stage=2", "learner.offload_optimizer=true", "learner.minibatches=2",
    "learner.warmup_steps=3", "learner.learning_rate=1e-2", "dynamic_sampling={enabled: true, max_rounds: 2}",
    "rewards.scorers.letters.letter=Q", "advantage.per_reward=true", "rollouts.workers=2",
    "rollouts.max_logprob_difference=0.2",
)  # fmt: skip
"""The letter is rare enough for groups without signal, which are drawn anew."""


def test_a_killed_run_of_two_engines_and_two_sharded_ranks_ends_as_the_undisturbed_one(
    config: Path, tmp_path: Path
) -> None:
    train(config, tmp_path / "undisturbed", *OTHER_MODES)
    records = read_metrics(tmp_path / "undisturbed" / "metrics.jsonl")
    assert sum(record.get("group/refilled", 0) for record in records) > 0
    killed(config, tmp_path / "killed", Moment("update", 3, 0.1), *OTHER_MODES)
    train(config, tmp_path / "killed", *OTHER_MODES, "resume=true")
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


def stopped(config: Path, folder: Path) -> int:
    """Start or resume the run and end it with SIGTERM once a step is done; returns how many it then had done."""
    settings = [f"output_dir={folder}", "checkpoint.every_steps=100", *(["resume=true"] if folder.exists() else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "rl.cli", "train", str(config), *settings],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 130, "".join(lines)
    assert "Go on with resume=true" in "".join(lines)
    assert not [child for child in psutil.process_iter() if belongs_to(child, folder)]
    return int(json.loads((folder / "summary.json").read_text())["steps"])


def damage(path: Path) -> None:
    """Turn a single bit."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def state_of(folder: Path) -> str:
    steps = [folder.name for folder in checkpoint_folders(folder)]
    return f"checkpoints {', '.join(steps) or 'none'}"


def assert_same_run(one: Path, other: Path) -> None:
    assert weights_hash(one) == weights_hash(other)
    assert_same_logs(one, other)
    assert_same_metrics(one, other)


def assert_same_metrics(one: Path, other: Path) -> None:
    """Every number once per step, and the same but for what a clock measured."""
    written = Counter(
        (record["step"], name)
        for record in map(json.loads, (one / "metrics.jsonl").read_text().splitlines())
        for name in record
        if name != "step"
    )
    assert set(written.values()) == {1}
    kept, expected = (
        [{k: v for k, v in record.items() if not k.startswith(NOT_REPEATED)} for record in read_metrics(path)]
        for path in (one / "metrics.jsonl", other / "metrics.jsonl")
    )
    assert kept == expected
    assert [record["step"] for record in kept] == list(range(STEPS + 1))
