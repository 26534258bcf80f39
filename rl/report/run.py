"""The self-contained HTML page of a folder: of a run, of a comparison of two scorings, or of an evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.replay.compare import Comparison, compare
from rl.replay.examples import Pair, read_examples
from rl.report.comparison import comparison_page
from rl.report.input import box_coordinates_in, read_run
from rl.report.page import page
from rl.report.results import results_page


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a folder from what lies there, whatever kind of folder it is.

    An evaluation on benchmarks gets the page of its results, a replay that of the comparison with its source, all else
    that of a run, which is reported as far as it got. The page loads nothing from anywhere. Raises LogError where the
    folder holds nothing to report, or a replay's source is gone.
    """
    from rl.benchmarks.results import RESULTS
    from rl.replay.rescore import RECORD

    if (folder / RESULTS).is_file():
        return write_results_report(folder, _read_json(folder / RESULTS))
    if (folder / RECORD).is_file():
        return _write_replay_report(folder, source=Path(_read_json(folder / RECORD)["source"]))
    return _written(folder, page(read_run(folder)))


def _write_replay_report(folder: Path, *, source: Path) -> Path:
    from rl.replay.rescore import choose_steps, roles_of
    from rollouts.log import KINDS

    found = compare(source, folder, tuple(choose_steps(folder, steps=None, kinds=KINDS)))
    examples = read_examples(found, source, folder)
    return write_comparison_report(folder, found, examples, roles=roles_of(folder), before=source)


def write_comparison_report(
    out: Path, found: Comparison, examples: Sequence[Pair], *, roles: Mapping[str, str], before: Path
) -> Path:
    """Write ``report.html`` of two scorings, the former in ``before``, into the folder ``out`` (see
    `rl.report.comparison`)."""
    return _written(out, comparison_page(found, examples, roles=roles, coordinates=box_coordinates_in(before)))


def write_results_report(out: Path, results: Mapping[str, Any]) -> Path:
    """Write ``report.html`` of an evaluation's results into the folder ``out`` (see `rl.report.results`)."""
    return _written(out, results_page(out.resolve().name, results))


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _written(folder: Path, content: str) -> Path:
    path = folder / "report.html"
    beside = folder / ".report.html.tmp"
    beside.write_text(content, encoding="utf-8", errors="replace")
    os.replace(beside, path)
    return path
