"""What an evaluation amounts to, read from its log alone: numbers with intervals, tables, and what stays out of them.

A benchmark's folder holds its trajectories and `RECORD`, what the evaluation knew of it besides: so that the same
numbers come out whenever they are made again. ``results.schema.json`` describes the outcome.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.answer import read_answer
from rl.benchmarks.statistics import bootstrap_interval, majority_correct, pass_at_k
from rl.errors import LogError
from rl.types import Group, ScoredTrajectory, Task
from rollouts.log import read_step
from rollouts.mapping import fill_template

RECORD = "benchmark.json"
RESULTS = "results.json"
SCHEMA_VERSION = 1
_FREQUENCIES = ((0, "never"), (9, "1–9 times"), (99, "10–99 times"))
_OFTEN, _NO_ENTITY = "100 times or more", "no entity"
_ORDER = [*(name for _, name in _FREQUENCIES), _OFTEN, _NO_ENTITY]


@dataclass(frozen=True, slots=True)
class TaskValue:
    """A task's number under the benchmark's metric: the mean over its scored samples; none of them, no number."""

    task: Task
    value: float
    samples: tuple[ScoredTrajectory, ...]

    @property
    def cluster(self) -> str:
        """Tasks about one image are drawn together."""
        return self.task.images[0].sha256 if self.task.images else self.task.id


def read_record(folder: Path) -> dict[str, Any]:
    """What the evaluation knew of the benchmark in ``folder``. Raises LogError where it is none's."""
    path = folder / RECORD
    if not path.is_file():
        raise LogError(f"{folder} has no {RECORD}; is it a benchmark's folder of an evaluation?")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def task_values(folder: Path) -> tuple[list[Group], list[TaskValue]]:
    """The logged groups of a benchmark, and the value of every task that was answered and scored."""
    value_of = _VALUES[read_record(folder)["metric"]]
    groups = list(read_step(folder, 0, kind="eval").groups)
    values = []
    for group in groups:
        found = [(item, value) for item in group.scored if (value := value_of(item)) is not None]
        if found:
            mean = float(np.mean([value for _, value in found]))
            values.append(TaskValue(group.task, mean, tuple(item for item, _ in found)))
    return groups, values


def benchmark_results(folder: Path) -> dict[str, Any]:
    """One benchmark's entry of ``results.json``."""
    record = read_record(folder)
    groups, values = task_values(folder)
    unscored = [item for group in groups for item in group.unscored]
    lost = [item for item in unscored if item.trajectory.finish_reason == "abort"]
    trajectories = [item.trajectory for group in groups for item in group.scored] + [u.trajectory for u in unscored]
    told = ("title", "citation", "licence", "split", "metric", "checked")
    return {
        **{key: record[key] for key in told},
        "tasks": len(groups),
        **_figures(values, metric=record["metric"]),
        "trajectories": len(trajectories),
        "lost": len(lost),
        "lost_reasons": dict(Counter(item.reason for item in lost).most_common(5)),
        "unscored": len(unscored) - len(lost),
        "truncated": sum(each.finish_reason == "length" for each in trajectories),
        **_of_samples(values, record),
        "tables": _tables(values, record),
        "contamination": _contamination(values, record),
    }


def _figures(values: Sequence[TaskValue], *, metric: str) -> dict[str, Any]:
    """The mean over tasks with its interval. HealthBench's is cut to [0, 1] as a mean, and only then."""
    numbers = [each.value for each in values]
    value = float(np.mean(numbers)) if numbers else None
    interval = bootstrap_interval(numbers, [each.cluster for each in values])
    if metric == "unclipped":
        value = None if value is None else min(1.0, max(0.0, value))
        interval = interval and (min(1.0, max(0.0, interval[0])), min(1.0, max(0.0, interval[1])))
    return {"answered": len(values), "value": value, "interval": list(interval) if interval else None}


def _of_samples(values: Sequence[TaskValue], record: Mapping[str, Any]) -> dict[str, Any]:
    """pass@k and the majority vote, where there are several samples of right or wrong answers."""
    asked = record["samples"]
    if asked < 2 or record["metric"] != "accuracy":
        return {}
    whole = [each for each in values if len(each.samples) == asked]
    found: dict[str, Any] = {"samples": asked, "complete": len(whole)}
    if whole:
        found["pass_at"] = {
            str(k): float(np.mean([pass_at_k(asked, sum(map(_right, each.samples)), k=k) for each in whole]))
            for k in record["pass_at"]
        }
        votes = [[(read_answer(item.trajectory), _right(item)) for item in each.samples] for each in whole]
        found["majority"] = float(np.mean(list(map(majority_correct, votes))))
    return found


def _tables(values: Sequence[TaskValue], record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    frequencies = record["entity_frequency"]
    by: dict[str, Callable[[Task], str]] = {
        "modality": lambda task: fill_template(record["modality"], task.extra),
        "answer form": lambda task: str(task.answer["type"]),
    }
    if frequencies is not None:
        by["entity frequency"] = lambda task: _frequency(frequencies.get(task.id))
    for column in record["slices"]:
        by[column] = lambda task, column=column: str(task.extra[column])  # type: ignore[misc]
    return {name: _table(values, part_of, metric=record["metric"]) for name, part_of in by.items()}


def _table(values: Sequence[TaskValue], part_of: Callable[[Task], str], *, metric: str) -> list[dict[str, Any]]:
    parts: dict[str, list[TaskValue]] = {}
    for each in values:
        parts.setdefault(part_of(each.task), []).append(each)
    names = sorted(parts, key=lambda name: (_ORDER.index(name) if name in _ORDER else -1, name))
    return [{"name": name, **_figures(parts[name], metric=metric)} for name in names]


def _frequency(count: int | None) -> str:
    """How often the corpus names the rarest entity of a task."""
    if count is None:
        return _NO_ENTITY
    return next((name for most, name in _FREQUENCIES if count <= most), _OFTEN)


def _contamination(values: Sequence[TaskValue], record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How many tasks overlap with the training tasks, and the number without them; null where nobody looked."""
    overlaps = record["contaminated"]
    if overlaps is None:
        return None
    clean = [each for each in values if each.task.id not in overlaps]
    return {"tasks": len(overlaps), "without": _figures(clean, metric=record["metric"])}


def _right(item: ScoredTrajectory) -> bool:
    return bool(item.correct)


def _accuracy(item: ScoredTrajectory) -> float | None:
    return None if item.correct is None else float(item.correct)


def _unclipped(item: ScoredTrajectory) -> float | None:
    found = (record.score.metrics.get("unclipped") for record in item.scores.values() if record.score)
    return next((value for value in found if value is not None), None)


_VALUES: Mapping[str, Callable[[ScoredTrajectory], float | None]] = {
    "accuracy": _accuracy,
    "score": lambda item: item.reward,
    "unclipped": _unclipped,
}
