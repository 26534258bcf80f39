"""Submit a training run as a Ray job, follow its log, and end with its exit status."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.config import SHIPPED_CONFIGS, find_config, load_config
from rl.config_schema import RunConfig
from rl.errors import ConfigError, MedrlError
from rl.launch import check_sampling

POLL_S = 1.0
AGENT_WAIT_S = 60.0


def submit(
    config_path: str,
    overrides: Sequence[str],
    *,
    address: str,
    working_dir: Path | None,
    forwarded: Sequence[str] = (),
) -> int:
    """Run ``medrl train`` on the cluster at ``address`` (RAY_ADDRESS where empty); returns its exit status.

    The config is checked here first. ``working_dir`` (the config's folder by default) is sent along, so that rubrics
    and scorers beside the config are found; data, policies and the run folder must lie where every node sees them.
    Environment variables go along only where ``forwarded`` names them: Ray shows them to all who see its dashboard.
    """
    path = find_config(config_path)
    config = load_config(path, overrides)
    check_sampling(config.sampling)
    folder = (working_dir or path.parent).resolve()
    if not path.resolve().is_relative_to(folder):
        raise ConfigError(f"--working-dir must hold the config; got {folder}, and the config is {path.resolve()}")
    if unset := [name for name in forwarded if name not in os.environ]:
        raise ConfigError(f"--forward-env {unset[0]}: this environment variable is not set here")
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise ConfigError("no cluster to submit to: pass --address http://HEAD:8265 or set RAY_ADDRESS")
    command = [
        "medrl",
        "train",
        str(path.resolve().relative_to(folder)),
        *overrides,
        *_absolute_paths(config, sent=folder),
    ]
    client = _client(address)
    runtime_env = {"working_dir": str(folder), "env_vars": {name: os.environ[name] for name in forwarded}}
    job = _submitted(client, entrypoint=shlex.join(command), runtime_env=runtime_env)
    print(f"submitted {job} to {address}; stop it with: ray job stop --address {address} {job}", file=sys.stderr)
    return _follow(client, job)


def _absolute_paths(config: RunConfig, *, sent: Path) -> list[str]:
    """Overrides that make local paths absolute: a job starts in a folder of its own, with what is ``sent`` along.

    A mapping that is sent along, or shipped, is found there under the name that the config has for it.
    """
    paths = {
        "tasks.source": config.tasks.source,
        "tasks.eval_source": config.tasks.eval_source,
        "policy.path": config.policy.path,
    }
    mapping = Path(config.tasks.mapping)
    if not any(mapping.is_relative_to(folder) for folder in (sent, SHIPPED_CONFIGS)):
        paths["tasks.mapping"] = config.tasks.mapping
    existing = {key: Path(value).resolve() for key, value in paths.items() if value and Path(value).exists()}
    return [f"{key}={path}" for key, path in {"output_dir": Path(config.output_dir).resolve(), **existing}.items()]


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MedrlError(f"no Ray cluster answers at {address}: {reason}. Is its dashboard running there?") from None


def _submitted(client: Any, **job: Any) -> str:
    """Submit; a cluster that has just started may have no agent for jobs yet, which is worth a wait."""
    deadline = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            submitted: str = client.submit_job(**job)
            return submitted
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                reason = str(error).strip().splitlines()[-1]
                raise MedrlError(f"the cluster did not take the job: {reason}") from None
        time.sleep(POLL_S)


def _follow(client: Any, job: str) -> int:
    """Print the job's log as it grows, until it ends. An interrupt stops the job, which saves before it ends."""
    shown = 0
    try:
        while True:
            ended = client.get_job_status(job).is_terminal()
            log = client.get_job_logs(job)
            print(log[shown:], end="", flush=True)
            shown = len(log)
            if ended:
                break
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"\nstopping {job}", file=sys.stderr)
        return 130
    details = client.get_job_info(job)
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    print(f"job {job} ended as {details.status}: {details.message}", file=sys.stderr)
    return 1
