"""One self-contained HTML page for a run, and its main curves as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.replay.compare import Comparison
from rl.replay.examples import Pair
from rl.report.charts import LARGE, Series, format_value, line_plot
from rl.report.comparison import comparison_page
from rl.report.input import RunRecord, read_run
from rl.report.markup import Markup, element, join
from rl.report.page import page
from rl.report.results import results_page

_PICTURE_STYLE = """
svg { --ink: #1b2430; --dim: #5d6878; --line: #dfe4ea; --surface: #ffffff;
  --c1: #009e96; --c2: #385dbe; --c3: #a65208; --c4: #592870; --c5: #a08441; --c6: #7d2347; --c7: #6a6b6c; }
@media (prefers-color-scheme: dark) { svg { --ink: #e8ecf1; --dim: #9aa6b5; --line: #2b333e; --surface: #12171e;
  --c1: #2fe6d5; --c2: #8eb0ff; --c3: #f09a6c; --c4: #a967c9; --c5: #f5d55c; --c6: #e0677f; --c7: #b8babe; } }
text { font-family: Inter, ui-sans-serif, system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--dim);
  font-size: 12px; }
.title { fill: var(--ink); font-size: 14px; font-weight: 600; } .ground { fill: var(--surface); }
.rule { stroke: var(--line); } .level { stroke: var(--dim); stroke-dasharray: 5 4; }
.curve { stroke-width: 2; stroke-linejoin: round; } .raw { stroke-width: 1; opacity: .3; }
"""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder from what lies there.

    A run that broke off is reported as far as it got. The page loads nothing from anywhere. Raises LogError where the
    folder holds nothing to report.
    """
    return _written(run_dir, page(read_run(run_dir)))


def write_comparison_report(
    out: Path, found: Comparison, examples: Sequence[Pair], *, roles: Mapping[str, str]
) -> Path:
    """Write ``report.html`` of two scorings into the folder ``out`` (see `rl.report.comparison`)."""
    return _written(out, comparison_page(found, examples, roles=roles))


def write_results_report(out: Path, results: Mapping[str, Any]) -> Path:
    """Write ``report.html`` of an evaluation's results into the folder ``out`` (see `rl.report.results`)."""
    return _written(out, results_page(out.resolve().name, results))


def _written(folder: Path, content: str) -> Path:
    path = folder / "report.html"
    beside = folder / ".report.html.tmp"
    beside.write_text(content, encoding="utf-8", errors="replace")
    os.replace(beside, path)
    return path


def curves_svg(run_dirs: Sequence[Path]) -> str:
    """Held-out accuracy and reward of several runs, laid over each other, as one picture that stands for itself."""
    runs = [read_run(run_dir) for run_dir in run_dirs]
    yardstick = next((run.summary["yardstick_accuracy"] for run in runs if "yardstick_accuracy" in run.summary), None)
    panels = [
        _panel(runs, "Held-out accuracy", "eval/accuracy", unit="fraction", level=yardstick),
        _panel(runs, "Held-out reward", "eval/reward", unit="reward", level=None),
    ]
    top, legend = 34.0, 30.0
    picture = element(
        "svg",
        element("style", Markup(_PICTURE_STYLE)),
        element("rect", class_="ground", width="100%", height="100%", rx=10),
        *(
            element("g", panel, transform=f"translate({12 + index * (LARGE.width + 16):g} {top:g})")
            for index, panel in enumerate(panels)
        ),
        element("g", *_legend(runs, yardstick), transform=f"translate(24 {top + LARGE.height + 14:g})"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {2 * LARGE.width + 40:g} {top + LARGE.height + legend:g}",
        role="img",
        aria_label="Held-out accuracy and reward over training steps",
    )
    return str(picture) + "\n"


def _panel(runs: Sequence[RunRecord], title: str, metric: str, *, unit: str, level: float | None) -> Markup:
    series = [
        Series(label=run.name, points=run.metrics.get(metric, ()), colour=f"--c{index % 7 + 1}", dots=True)
        for index, run in enumerate(runs)
    ]
    plot = line_plot(series, unit=unit, bounds=(0.0, 1.0), level=level, size=LARGE)
    return join(element("text", title, class_="title", x=8, y=-8), plot.marks)


def _legend(runs: Sequence[RunRecord], yardstick: float | None) -> list[Markup]:
    entries, x = [], 0.0
    for index, run in enumerate(runs):
        entries.append(
            element("line", x1=x, x2=x + 16, y1=-4, y2=-4, stroke=f"var(--c{index % 7 + 1})", stroke_width=3)
        )
        entries.append(element("text", run.name, x=x + 22, y=0))
        x += 40 + 6.6 * len(run.name)
    if yardstick is not None:
        label = f"logistic regression on the same measurements, {format_value(yardstick, 'fraction')}"
        entries.append(element("line", class_="level", x1=x, x2=x + 16, y1=-4, y2=-4))
        entries.append(element("text", label, x=x + 22, y=0))
    return entries
