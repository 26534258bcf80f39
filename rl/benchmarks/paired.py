"""Two models on the same benchmarks: a paired test for each, from the two logs alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rl.benchmarks.results import RESULTS, task_values
from rl.benchmarks.statistics import Paired, paired_test
from rl.errors import LogError
from rl.run_folder import write_summary
from rl.types import Message, Task


def is_evaluation(folder: Path) -> bool:
    """Whether `medrl evaluate --benchmarks` wrote the folder."""
    return (folder / RESULTS).is_file()


def compare_evaluations(before: Path, after: Path, *, out: Path | None = None) -> dict[str, Paired]:
    """Compare two evaluations on every benchmark that both have, over the tasks that both have a number for.

    Writes ``comparison.json`` into ``out`` where it is named. Raises LogError where no benchmark is in both, and where
    tasks of one id were not the same question.
    """
    names = [json.loads((folder / RESULTS).read_text(encoding="utf-8"))["benchmarks"] for folder in (before, after)]
    shared = [name for name in names[0] if name in names[1]]
    if not shared:
        raise LogError(
            f"{before} and {after} have no benchmark in common: {', '.join(names[0])}; {', '.join(names[1])}"
        )
    found = {name: _compared(before / name, after / name) for name in shared}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        told = {name: dataclasses.asdict(each) for name, each in found.items()}
        write_summary(out, {"before": str(before), "after": str(after), "benchmarks": told}, name="comparison.json")
    return found


def _compared(before: Path, after: Path) -> Paired:
    earlier, later = ({each.task.id: each for each in task_values(folder)[1]} for folder in (before, after))
    shared = [id for id in earlier if id in later]
    if changed := [id for id in shared if _asked(earlier[id].task) != _asked(later[id].task)]:
        raise LogError(f"task {changed[0]!r} of {before} is another question in {after}: two versions of a benchmark?")
    if not shared:
        raise LogError(f"no task has a number in both {before} and {after}")
    return paired_test(
        [earlier[id].value for id in shared],
        [later[id].value for id in shared],
        [earlier[id].cluster for id in shared],
    )


def _asked(task: Task) -> tuple[Any, ...]:
    messages = (Message(text=task.question, images=task.images), *task.follow_ups)
    return task.answer, [(each.text, [image.sha256 for image in each.images]) for each in messages]
