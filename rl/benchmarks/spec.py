"""Benchmarks: one YAML each, checked against ``benchmark.schema.json``, and the tasks that its data give."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonschema import Draft202012Validator

from rewards.places import line_of
from rl.config import SHIPPED_CONFIGS
from rl.errors import ConfigError, TaskError
from rl.types import Task
from rollouts.mapping import SourceMapping, Yaml, parse_template, read_mapping
from rollouts.tasks import load_tasks
from rollouts.validation import describe, suggestion

SHIPPED = SHIPPED_CONFIGS / "benchmarks"
DATA_VARIABLE = "MEDRL_DATA"

Metric = Literal["accuracy", "score", "unclipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What a benchmark's file says; ``benchmark.schema.json`` describes the fields.

    ``name`` is the file's, ``rewards`` the section that scores it, relative to the file's folder.
    """

    name: str
    path: Path
    title: str
    citation: str
    licence: str
    source: Mapping[str, Any]
    split: str
    modality: str
    metric: Metric
    checked: Literal["run", "fields", "unverified"]
    fields: str
    mapping: SourceMapping
    rewards: Mapping[str, Any]
    slices: tuple[str, ...] = ()
    judge: bool = False
    note: str = ""

    @property
    def answer_types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task.answer.type for task in self.mapping.tasks))


def find_benchmarks(names: Sequence[str] = ()) -> tuple[Benchmark, ...]:
    """The benchmarks of these names or files; all shipped ones without any. Raises ConfigError for one there is not."""
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    found = []
    for name in names or shipped:
        path = shipped.get(name, Path(name))
        if not path.is_file():
            known = ", ".join(shipped)
            raise ConfigError(f"there is no benchmark {name!r}{suggestion(name, shipped)}; shipped ones are {known}")
        found.append(load_benchmark(path))
    return tuple(found)


def load_benchmark(path: Path) -> Benchmark:
    """Read and check a benchmark. Raises ConfigError with ``file:line``, the key, what is allowed and a close name."""
    try:
        text = path.read_text(encoding="utf-8")
        content, root = yaml.load(text, Yaml), yaml.compose(text, Yaml)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"benchmark {path} cannot be read as YAML: {error}") from error
    if fault := next(iter(_validator().iter_errors(content)), None):
        at = list(fault.absolute_path)
        if fault.validator == "additionalProperties":
            at.append(next(key for key in fault.instance if key not in fault.schema["properties"]))
        raise ConfigError(f"{path}:{line_of(root, at)}: {describe(fault)}")
    try:
        mapping = read_mapping(content["mapping"], path=str(path))
    except TaskError as error:
        raise ConfigError(f"{path}:{_named_line(root, 'mapping', str(error))}: {error}") from error
    benchmark = Benchmark(
        **content | {"name": path.stem, "path": path, "mapping": mapping, "slices": tuple(content.get("slices", ()))}
    )
    for key, column in _columns_shown(benchmark):
        if column not in mapping.extra:
            raise ConfigError(f"{path}:{line_of(root, [key])}: {key} names {column!r}, which mapping.extra lacks")
    return benchmark


def benchmark_tasks(
    benchmark: Benchmark, *, data: Path | None = None, max_image_pixels: int, limit: int = 0
) -> tuple[Task, ...]:
    """The tasks of a benchmark, the first ``limit`` of them (0 for all). ``data`` is the folder that ``source.path``
    starts from, MEDRL_DATA if left out. Raises TaskError where the data are not there or cannot be used."""
    source, subsets = _place(benchmark, data), benchmark.source.get("subsets", [""])
    tasks: list[Task] = []
    for subset in subsets:
        mapping = dataclasses.replace(
            benchmark.mapping, subset=subset, revision=benchmark.source.get("revision", ""), file=_part(benchmark)
        )
        left = limit - len(tasks) if limit else 0
        found = load_tasks(source, mapping=mapping, split="eval", max_image_pixels=max_image_pixels, limit=left)
        tasks += [dataclasses.replace(task, id=f"{subset}-{task.id}") for task in found] if subset else found
        if limit and len(tasks) >= limit:
            break
    return tuple(tasks)


def has_data(benchmark: Benchmark, data: Path | None = None) -> bool:
    """Whether its files lie on this machine; those of the hub are not looked for."""
    try:
        return "hub" not in benchmark.source and Path(_place(benchmark, data)).exists()
    except TaskError:
        return False


def _place(benchmark: Benchmark, data: Path | None) -> str:
    source = benchmark.source
    if "hub" in source:
        return str(source["hub"])
    if "shipped" in source:
        return str(benchmark.path.parent / source["shipped"])
    folder = data or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if folder is None:
        what = f"benchmark {benchmark.name} reads {source['path']} (from {source['from']})"
        raise TaskError(f"{what}: name the folder that holds it with --data, or in {DATA_VARIABLE}")
    place = folder / source["path"]
    if not place.exists():
        raise TaskError(
            f"benchmark {benchmark.name}: {place} does not exist; it is to be had from {source['from']}, and --data "
            f"(or {DATA_VARIABLE}) names the folder that {source['path']} lies in"
        )
    return str(place)


def _part(benchmark: Benchmark) -> str:
    """The split of a hub data set, or the file of a folder."""
    return benchmark.split if "hub" in benchmark.source else benchmark.mapping.file


def _columns_shown(benchmark: Benchmark) -> list[tuple[str, str]]:
    modality = [column for _, column in parse_template(benchmark.modality) if column]
    return [*(("modality", column) for column in modality), *(("slices", column) for column in benchmark.slices)]


def _named_line(root: yaml.Node | None, section: str, message: str) -> int:
    """The line of the first dotted key of ``section`` that a message quotes, or of the section."""
    keys = [quoted.split(".") for quoted in re.findall(r"'([\w.]+)'", message)]
    lines = [line_of(root, [section, *(int(part) if part.isdecimal() else part for part in key)]) for key in keys]
    return max(lines, default=line_of(root, [section]))


@functools.cache
def _validator() -> Draft202012Validator:
    schema = importlib.resources.files(__package__).joinpath("benchmark.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(schema))
