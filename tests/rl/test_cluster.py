"""A Ray that does not start, or is not there: one clear error, whichever command asked for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError, RaySystemError, RayTaskError, WorkerCrashedError

from rl.cli import main
from rl.cluster import failures_of, gpus_needed, ray_session
from rl.config_schema import RayConfig, RunConfig
from rl.errors import ConfigError, MedrlError, PolicyError
from tests.rl.replay.test_rescore import OWN, a_run, rewards_file

MISMATCH = "Version mismatch: the cluster runs:\n    Ray: 2.9\n    Python: 3.10"


NICENESS = "RAY_worker_niceness"


def raising(error: Exception) -> Callable[..., None]:
    def init(**_: Any) -> None:
        raise error

    return init


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("", Exception("The current node timed out during startup."), "could not be started: The current node timed"),
        ("", RuntimeError("The raylet died."), "could not be started: The raylet died"),
        ("", TimeoutError(), "could not be started: TimeoutError"),
        ("", RaySystemError("no worker"), "no worker"),
        ("head:6379", ConnectionError("nobody answers"), "joined at head:6379: nobody answers"),
        ("head:6379", RuntimeError(MISMATCH), "the cluster runs: Ray: 2.9 Python: 3.10"),
        ("head", ValueError("Malformed address"), "joined at head: Malformed address"),
    ],
)
def test_a_ray_that_is_not_there_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, said: str
) -> None:
    monkeypatch.setattr(ray, "init", raising(error))
    with pytest.raises(MedrlError) as raised, ray_session(RayConfig(address=address), cpus_needed=1):
        pytest.fail("the session is entered")
    assert said in str(raised.value) and "medrl doctor" in str(raised.value)
    assert raised.value.__suppress_context__  # no traceback of Ray behind it


@pytest.mark.parametrize(("set_by_the_user", "niceness"), [(None, "0"), ("5", "5")])
def test_a_local_ray_does_not_run_its_workers_behind_everything_else(
    monkeypatch: pytest.MonkeyPatch, set_by_the_user: str | None, niceness: str
) -> None:
    monkeypatch.setenv(NICENESS, set_by_the_user or "")
    if set_by_the_user is None:
        monkeypatch.delenv(NICENESS)
    seen = []
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ[NICENESS]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session(RayConfig(), cpus_needed=1):
        assert seen == [niceness]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayTaskError("build", "Traceback …", PolicyError("no weights")).as_instanceof_cause(), "no weights"),
        (
            RayTaskError("build", "Traceback …\nKeyError: 'lm_head'", KeyError("lm_head")),
            "it died: KeyError: 'lm_head'",
        ),
        (WorkerCrashedError(), "it died: The worker died unexpectedly"),
    ],
)
def test_what_a_process_fails_with_is_told_without_its_traceback(error: RayError, told: str) -> None:
    with pytest.raises(MedrlError) as raised, failures_of("it"):
        raise error
    assert str(raised.value).startswith(told) and "Traceback" not in str(raised.value)
    assert not isinstance(raised.value, RayError)


def test_too_few_gpus_here_are_told_before_actors_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    config = RunConfig()
    config.rollouts.workers, config.rollouts.gpus_per_worker, config.learner.gpus_per_rank = 2, 0.5, 0.5
    assert gpus_needed(config, learning=False) == 1.0
    with (
        pytest.raises(ConfigError, match=r"ask for 1\.5 GPUs, but there are 1; lower rollouts\.workers"),
        ray_session(RayConfig(), cpus_needed=1, gpus_needed=gpus_needed(config)),
    ):
        pytest.fail("the session is entered")
    with ray_session(RayConfig(address="head:6379"), cpus_needed=1, gpus_needed=1.5):  # which may grow
        pass
    with ray_session(RayConfig(), cpus_needed=1, gpus_needed=1.0):
        pass


def test_a_mistake_in_the_call_of_ray_is_not_told_as_a_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", raising(TypeError("unexpected keyword")))
    with pytest.raises(TypeError), ray_session(RayConfig(), cpus_needed=1):
        pytest.fail("the session is entered")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["train", "run.yaml", "output_dir=trained"], marks=pytest.mark.slow),  # renders its tasks
        ["evaluate", "run.yaml", "--policy", "any", "--out", "evaluated"],
        ["evaluate", "run.yaml", "--policy", "any", "--out", "benched", "--benchmarks", "instructions"],
        ["serve-rewards", "new.yaml", "--port", "0", "--address", "head:6379"],
        ["replay", "logged", "--out", "replayed", "--rewards", "new.yaml", "--address", "head:6379"],
    ],
)
def test_every_command_says_so_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", raising(ConnectionError("nobody answers")))
    monkeypatch.setattr("policies.vlm.check_policy", lambda *_, **__: None)
    a_run(tmp_path / "logged")
    rewards_file(tmp_path, OWN)
    Path("run.yaml").write_text(f"max_steps: 1\nrewards: {{{OWN}}}\n")
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "nobody answers" in said and "Traceback" not in said
