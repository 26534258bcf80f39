"""``medrl submit`` against a real ``ray start --head``: follows the log, returns the job's exit status."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rl.errors import ConfigError, MedrlError
from rl.submit import submit

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = "rewards: {scorers: {letters: {use: 'tests.scorers:LetterShare'}}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "project" / "run.yaml"
    path.parent.mkdir()
    path.write_text(MINIMAL)
    return path


def test_without_an_address_nothing_is_submitted(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"no cluster to submit to: pass --address .* or set RAY_ADDRESS"):
        submit(str(config), [], address="", working_dir=None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["group_size=1"], "group_size must be >= 2"),
        (["sampling.temperature=0.7", "sampling.top_p=0.9"], "sampling.top_p must be 1"),
    ],
)
def test_a_bad_config_is_refused_before_the_cluster_is_asked(config: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        submit(str(config), overrides, address="http://127.0.0.1:1", working_dir=None)


def test_a_working_dir_that_does_not_hold_the_config_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="--working-dir must hold the config"):
        submit(str(config), [], address="http://127.0.0.1:1", working_dir=tmp_path / "other")


def test_a_variable_that_is_to_be_sent_along_must_be_set(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_JUDGES_KEY", raising=False)
    with pytest.raises(ConfigError, match="--forward-env A_JUDGES_KEY: this environment variable is not set here"):
        submit(str(config), [], address="http://127.0.0.1:1", working_dir=None, forwarded=["A_JUDGES_KEY"])


class _Cluster:
    """Takes every job, and ends it at once."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    def submit_job(self, **job: Any) -> str:
        self.jobs.append(job)
        return "job"

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: True)

    def get_job_logs(self, job: str) -> str:
        return ""

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(driver_exit_code=0)


@pytest.mark.parametrize("forwarded", [[], ["A_JUDGES_KEY"]])
def test_a_key_goes_along_only_where_it_is_asked_for_and_is_not_printed(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forwarded: list[str]
) -> None:
    cluster = _Cluster()
    monkeypatch.setattr("rl.submit._client", lambda address: cluster)
    monkeypatch.setenv("A_JUDGES_KEY", "sk-secret")
    assert submit(str(config), [], address="http://127.0.0.1:1", working_dir=None, forwarded=forwarded) == 0
    assert cluster.jobs[0]["runtime_env"]["env_vars"] == dict.fromkeys(forwarded, "sk-secret")
    assert "sk-secret" not in "".join(capsys.readouterr())


OWN_TOOL = """
from dataclasses import dataclass
from rollouts.tools.tool import Tool, ToolResult

@dataclass(frozen=True, kw_only=True)
class Greeting(Tool):
    description, parameters = "Greets.", {"type": "object"}

    def call(self, arguments, scene):
        return ToolResult(text="good day")
"""
TOOLS = """
rollouts:
  tools:
    look_up: {use: look_up, path: texts/guidelines.jsonl}
    greet: {use: "own_tools:Greeting"}
"""
JOB = """
import sys
from rl.config import load_config
from rollouts.tools.config import build_tools

_, _, path, *overrides = sys.argv[1:]
rollouts = load_config(path, overrides).rollouts
tools = build_tools(rollouts.tools, rollouts.tools_dir)
print(tools["look_up"].call({"query": "sepsis"}, None).text, tools["greet"].call({}, None).text, sep="|")
"""


@pytest.mark.parametrize("place", ["", "configs"])
def test_texts_and_code_of_tools_go_along_with_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    project = tmp_path / "project"
    beside = project / place
    (beside / "texts").mkdir(parents=True)
    (beside / "run.yaml").write_text(MINIMAL + TOOLS)
    (beside / "own_tools.py").write_text(OWN_TOOL)
    (beside / "texts" / "guidelines.jsonl").write_text('{"title": "Sepsis", "text": "Fluids."}\n')
    cluster = _Cluster()
    monkeypatch.setattr("rl.submit._client", lambda address: cluster)
    submit(str(beside / "run.yaml"), [], address="http://127.0.0.1:1", working_dir=project)
    sent = Path(cluster.jobs[0]["runtime_env"]["working_dir"]).rename(tmp_path / "on_the_node")
    ran = subprocess.run(
        [sys.executable, "-c", JOB, *shlex.split(cluster.jobs[0]["entrypoint"])],
        cwd=sent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "Sepsis\nFluids.|good day\n", ran.stderr


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_in_one_line(config: Path) -> None:
    with pytest.raises(MedrlError, match=r"no Ray cluster answers at http://127.0.0.1:1"):
        submit(str(config), [], address="http://127.0.0.1:1", working_dir=None)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own with a dashboard, and the environment to reach it with a token."""
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text("0" * 64)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=4", "--port=6399",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--dashboard-port=8299",
            "--dashboard-agent-listen-port=52399",
            "--object-store-memory=268435456", "--temp-dir=/tmp/medrl_ray_test",
        ],
        env=os.environ | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for_dashboard("http://127.0.0.1:8299", head, folder / "head.log")
        yield environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        time.sleep(2)  # for the head to say goodbye to its own; whatever is left goes with the group
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=30)
        log.close()


def _wait_for_dashboard(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
            return
        except urllib.error.HTTPError:  # it answers, if only to ask for a token
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def medrl_submit(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rl.cli", "submit", *map(str, arguments), "--address", "http://127.0.0.1:8299"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_a_submitted_run_trains_on_the_cluster_and_its_log_is_followed(
    cluster: dict[str, str], config: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    config.write_text(
        MINIMAL
        + f"""
max_steps: 2
tasks_per_step: 2
group_size: 2
policy: {{path: {tiny_policy}, dtype: float32}}
sampling: {{max_tokens: 16}}
rollouts: {{max_model_len: 256, kv_cache_mb: 64}}
evaluation: {{max_tasks: 2}}
"""
    )
    done = medrl_submit(cluster, config, f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout and "report:" in done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_a_submitted_run_that_fails_returns_its_exit_status(
    cluster: dict[str, str], config: Path, tmp_path: Path
) -> None:
    done = medrl_submit(cluster, config, f"output_dir={tmp_path / 'run'}", f"policy.path={tmp_path / 'nothing'}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "PolicyError" in done.stdout
