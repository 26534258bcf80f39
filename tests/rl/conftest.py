"""A small run from end to end, through the command line, that the tests of the loop share."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.killing import Moment

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


def medrl(*arguments: object, timeout_s: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rl.cli", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def train(config: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    done = medrl("train", config, f"output_dir={folder}", *overrides)
    assert done.returncode == 0, done.stderr
    return done


def killed(config: Path, folder: Path, moment: Moment, *overrides: str) -> float:
    """Start or resume the run and let it be killed; returns for how many seconds any of its processes outlived it."""
    settings = [f"output_dir={folder}", *overrides, *(["resume=true"] if folder.exists() else [])]
    mark = f"{os.environ['MEDRL_TEST_SESSION']}-{time.monotonic_ns()}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", *moment.arguments, "train", config, *settings],
        cwd=ROOT,
        env=os.environ | {"MEDRL_TEST_KILL": mark},
        capture_output=True,
        text=True,
        timeout=600,
    )
    died = time.monotonic()
    assert done.returncode == -signal.SIGKILL, f"{moment} was never met:\n{done.stderr}"
    while left := [process.pid for process in psutil.process_iter() if has_mark(process, mark)]:
        assert time.monotonic() - died < 90, f"processes outlive their killed run: {left}"
        time.sleep(0.2)
    return time.monotonic() - died


def has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("MEDRL_TEST_KILL") == mark
    except psutil.Error:
        return False


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "policy" / "model.safetensors").read_bytes()).hexdigest()


def logged(folder: Path, kind: str) -> list[Any]:
    """What the trajectory store holds of every step of a kind, as plain rows."""
    import pyarrow.parquet as pq

    columns = [
        "trajectory_id", "completion_token_ids", "rollout_logprobs", "reward", "policy_version", "advantage",
        "drawn_anew", "learner_logprobs",
    ]  # fmt: skip
    files = sorted((folder / "trajectories").rglob(f"{kind}*.parquet"))
    return [pq.read_table(path).select(columns).to_pylist() for path in files]


def assert_same_logs(one: Path, other: Path) -> None:
    assert len(logged(one, "step")) == STEPS and len(logged(one, "eval")) == 3  # at 0, 2 and 4
    for kind in ("step", "eval"):
        assert repr(logged(one, kind)) == repr(logged(other, kind))  # repr: NaN equals NaN


def belongs_to(process: psutil.Process, folder: Path) -> bool:
    """Whether the process was started with the run's folder in its command line."""
    try:
        return str(folder) in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(
        f"""
max_steps: {STEPS}
tasks_per_step: 4
group_size: 4
policy: {{path: {tiny_policy}, dtype: float32}}
sampling: {{max_tokens: 24}}
rollouts: {{max_model_len: 256, kv_cache_mb: 64}}
rewards:
  scorers:
    letters: {{use: "tests.scorers:LetterShare", letter: e}}
    answer: {{use: answer}}
advantage: {{scale: std}}
loss: {{kl_coef: 0.05}}
learner: {{learning_rate: 1.0e-3, micro_batch_tokens: 2048}}
evaluation: {{every_steps: 2, max_tasks: 4}}
checkpoint: {{every_steps: 2, keep: 0}}
"""
    )
    return path


@pytest.fixture(scope="session")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(config, folder)
    return folder
