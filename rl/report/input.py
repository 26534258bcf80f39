"""What a report is made of, read from a run's folder alone. What is missing or damaged is noted, not fatal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from entities.reference import Coordinates
from rl.errors import LogError
from rl.metrics import NONFINITE, is_declared, read_metrics
from rl.replay.shares import Shares, shares_of
from rl.report.charts import Point
from rl.timeline import Span, read_timeline
from rl.types import ScoredTrajectory, Unscored
from rollouts.log import Kind, LoggedStep, logged_steps, read_step

TRAINING_STEPS_READ = 5
"""Steps whose trajectories are offered to the report, evenly spaced from the first to the last."""

Item = ScoredTrajectory | Unscored


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as its folder tells it; a part that is missing is empty, and ``notes`` say so.

    ``metrics`` maps a name to its (step, value), NaN where the value was not finite. ``evaluations`` are the first
    and the last held-out evaluation (one where there was one), ``training`` some steps between the first and the last,
    with the ``shares`` of their trajectories; ``timeline`` is what ran when, by step.
    """

    name: str
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    versions: Mapping[str, str]
    metrics: Mapping[str, Sequence[Point]]
    evaluations: Sequence[LoggedStep]
    training: Sequence[LoggedStep]
    shares: Mapping[int, Shares]
    steps_logged: int
    timeline: Mapping[int, Sequence[Span]]
    notes: Sequence[str]

    def first(self, metric: str) -> float | None:
        return next((value for _, value in self.metrics.get(metric, ()) if math.isfinite(value)), None)

    def last(self, metric: str) -> float | None:
        return next((value for _, value in reversed(self.metrics.get(metric, ())) if math.isfinite(value)), None)


def read_run(run_dir: Path) -> RunRecord:
    """Read a run's folder. Raises LogError where there is nothing in it to report."""
    records = read_metrics(run_dir / "metrics.jsonl")
    evaluated, trained = logged_steps(run_dir, kind="eval"), logged_steps(run_dir)
    if not records and not evaluated and not trained:
        raise LogError(f"{run_dir} holds neither metrics.jsonl nor trajectories; is it a run's folder?")
    notes: list[str] = []
    config_text = _text(run_dir / "config.yaml", notes)
    config = _parsed(config_text, "config.yaml", yaml.safe_load, notes)
    summary_path = run_dir / "summary.json"
    summary = _parsed(_text(summary_path, notes), "summary.json", json.loads, notes) if summary_path.is_file() else {}
    if not summary or summary.get("finished") is False:
        notes.append(_unfinished(records, config.get("max_steps")))
    versions = _parsed(_text(run_dir / "versions.json", notes), "versions.json", json.loads, notes)
    notes.extend(_nonfinite(records))
    training = list(_read_steps(run_dir, _spread(trained, TRAINING_STEPS_READ), notes, kind="train"))
    aggregation = (config.get("loss") or {}).get("aggregation", "token_mean")
    return RunRecord(
        name=run_dir.resolve().name,
        summary=summary,
        config=config,
        config_text=config_text,
        versions={name: str(value) for name, value in versions.items()},
        metrics=_by_name(records, notes),
        evaluations=list(_read_steps(run_dir, _spread(evaluated, 2), notes, kind="eval")),
        training=training,
        shares={logged.step: shares_of(run_dir, logged, aggregation=aggregation) for logged in training},
        steps_logged=len(trained),
        timeline=read_timeline(run_dir / "timeline.jsonl"),
        notes=notes,
    )


def config_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """What each scorer's score is used for, in the words of the config."""
    section = config.get("rewards") or {}
    scorers = section.get("scorers") or {}
    return {
        name: "gate" if entry.get("gate") else f"weight {entry.get('weight', 1.0)}"
        for name, entry in scorers.items()
        if isinstance(entry, dict)
    }


def box_coordinates(config: Mapping[str, Any]) -> Coordinates:
    """The coordinates that the policy writes boxes in, as the scorers of the config were told; pixels if none was."""
    scorers = (config.get("rewards") or {}).get("scorers") or {}
    said = [entry.get("box_coordinates") for entry in scorers.values() if isinstance(entry, dict)]
    known: tuple[Coordinates, ...] = get_args(Coordinates)
    return next((name for each in said for name in known if each == name), "pixel")


def box_coordinates_in(folder: Path) -> Coordinates:
    """Those of the run in a folder, or of the run that the replay in it was made of."""
    record = _parsed(_text(folder / "replay.json", []), "replay.json", json.loads, [])
    config = Path(record.get("source", folder)) / "config.yaml"
    return box_coordinates(_parsed(_text(config, []), config.name, yaml.safe_load, []))


def _text(path: Path, notes: list[str]) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    notes.append(f"{path.name} is missing.")
    return ""


def _parsed(text: str, name: str, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    """What the file says as a mapping; empty, and noted, where it says none."""
    if not text:
        return {}
    try:
        found = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        notes.append(f"{name} is damaged: {error}.")
        return {}
    return found if isinstance(found, dict) else {}


def _unfinished(records: Sequence[Mapping[str, float]], planned: object) -> str:
    done = f"its last recorded step is {records[-1]['step']:g}" if records else "it recorded no step"
    return f"This run did not finish: {done}" + (f" of {planned}." if planned else ".")


def _nonfinite(metrics: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """A note for each metric that was not finite somewhere, with its steps."""
    where: dict[str, list[int]] = {}
    for record in metrics:
        for name, value in record.items():
            if name != NONFINITE and not math.isfinite(value):
                where.setdefault(name, []).append(int(record["step"]))
    for name, steps in where.items():
        shown = ", ".join(map(str, steps[:8])) + (" …" if len(steps) > 8 else "")
        yield f"{name} was not a finite number at {len(steps)} step{'s' if len(steps) > 1 else ''}: {shown}."


def _by_name(records: Sequence[Mapping[str, float]], notes: list[str]) -> dict[str, list[Point]]:
    points: dict[str, list[Point]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                points.setdefault(name, []).append((record["step"], value))
    if foreign := sorted(name for name in points if not is_declared(name)):
        notes.append(f"metrics.jsonl has names that this release does not know: {', '.join(foreign)}.")
    return {name: part for name, part in points.items() if name not in foreign}


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the steps, evenly spaced, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def _read_steps(run_dir: Path, steps: Sequence[int], notes: list[str], *, kind: Kind) -> Iterator[LoggedStep]:
    for step in steps:
        try:
            yield read_step(run_dir, step, kind=kind)
        except LogError as error:
            notes.append(f"{error}.")
