"""The folders that are looked at, by name: runs, replays, and the benchmarks of evaluations."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from entities.reference import Coordinates
from rl.errors import LogError
from rl.metrics import read_metrics
from rl.report.input import box_coordinates, config_roles

_DEPTH = 2  # runs/ holds an evaluation, which holds its benchmarks
_NAMES_LISTED = 3


def find_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Each folder that holds trajectories or metrics, among ``folders`` and what lies in them, by a name of its own.

    Raises LogError for a folder in which there is none.
    """
    found: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise LogError(f"{folder} is not a folder; name runs, replays, evaluations, or a folder that holds some")
        whole = Path(os.path.abspath(folder))  # a link keeps the name that it was given
        below = list(_below(whole, depth=_DEPTH))
        if not below:
            raise LogError(
                f"{folder} holds neither trajectories/*.parquet nor metrics.jsonl, nor do the folders in it "
                f"({_listed(folder)}); is it the folder of a run, a replay or an evaluation?"
            )
        for path in below:
            inside = path.relative_to(whole)
            found.setdefault(path, str(inside) if inside.parts else path.name)
    return _unique(found)


def _below(folder: Path, *, depth: int) -> Iterator[Path]:
    if (folder / "metrics.jsonl").is_file() or any(folder.glob("trajectories/*.parquet")):
        yield folder
    elif depth:
        for child in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
            yield from _below(child, depth=depth - 1)


def _listed(folder: Path) -> str:
    names = sorted(child.name for child in folder.iterdir())
    more = ", …" if len(names) > _NAMES_LISTED else ""
    return ", ".join(names[:_NAMES_LISTED]) + more if names else "it is empty"


def _unique(found: Mapping[Path, str]) -> dict[str, Path]:
    """A name that is taken gets as much of its path in front as tells the folders apart."""
    unique: dict[str, Path] = {}
    for path, name in found.items():
        parts = len(Path(name).parts)
        while name in unique:
            parts += 1
            name = str(Path(*path.parts[-parts:]))
        unique[name] = path
    return unique


def roles_in(folder: Path) -> dict[str, str]:
    """What each scorer's score is used for: as the replay's record says, else the run's config."""
    replayed = _parsed(folder / "replay.json").get("scorers")
    if replayed:
        return {name: "gate" if each["gate"] else f"weight {each['weight']:g}" for name, each in replayed.items()}
    return config_roles(_parsed(folder / "config.yaml"))


def box_coordinates_in(folder: Path) -> Coordinates:
    """The coordinates that the policy writes boxes in (see `rl.report.input.box_coordinates`)."""
    return box_coordinates(config_of(folder))


def config_of(folder: Path) -> Mapping[str, Any]:
    """The resolved config; a replay has that of the run that it replays. Empty where there is none."""
    return _parsed(made_in(folder) / "config.yaml")


def made_in(folder: Path) -> Path:
    """The folder of the run that made the trajectories: that of a replay is elsewhere."""
    source = _parsed(folder / "replay.json").get("source")
    return Path(source) if isinstance(source, str) else folder


def metrics_of(folder: Path) -> Sequence[Mapping[str, float]]:
    """The records of ``metrics.jsonl``, read again when it has grown; none where there is no such file."""
    path = folder / "metrics.jsonl"
    return _metrics(path, _state(path))


@functools.lru_cache(maxsize=256)
def _metrics(path: Path, _state: tuple[int, int]) -> Sequence[Mapping[str, float]]:
    return read_metrics(path)


def _parsed(path: Path) -> Mapping[str, Any]:
    return _mapping(path, _state(path))


@functools.lru_cache(maxsize=256)
def _mapping(path: Path, _state: tuple[int, int]) -> Mapping[str, Any]:
    """What a JSON or YAML file says; nothing where it is missing or damaged, which `medrl report` tells of."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
