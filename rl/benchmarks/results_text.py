"""The results of an evaluation, and of two beside each other, as the terminal shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rl.benchmarks.statistics import Paired


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """One line a benchmark, then its breakdowns, and what stayed out of the numbers."""
    yield f"{results['model']}, {_drawn(results['sampling'])}"
    yield f"{'benchmark':27}{'metric':10}{'value':>8}  {'95 % interval':15}{'tasks':>7}{'lost':>6}{'unscored':>10}"
    for name, found in results["benchmarks"].items():
        figures = f"{figure(found['value']):>8}  {interval(found['interval']):15}"
        yield f"{name:27}{found['metric']:10}{figures}{found['tasks']:7,}{found['lost']:6,}{found['unscored']:10,}"
        yield from _samples(found)
        for table, parts in found["tables"].items():
            if len(parts) > 1:
                yield from (_part(table, part) for part in parts)
        if found["contamination"]:
            yield f"    overlapping with training tasks: {overlap(found['contamination'])}"
        yield from (f"    lost {count:,}: {reason}" for reason, count in found["lost_reasons"].items())
    if results.get("unfinished"):
        yield f"not finished: {', '.join(results['unfinished'])}"


def compared(name: str, found: Paired) -> str:
    """A benchmark on which two models were compared."""
    figures = f"{found.before:8.3f}{found.after:8.3f}{found.difference:+9.3f}"
    spread = f"[{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]" if found.interval else "-"
    return f"{name:27}{figures}  {spread:18}{found.better:7,}{found.worse:7,}  p {found.p:.4f} ({found.test})"


COMPARED_HEAD = f"{'benchmark':27}{'before':>8}{'after':>8}{'change':>9}  {'95 % interval':18}{'better':>7}{'worse':>7}"


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def interval(bounds: Any) -> str:
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "-"


def overlap(contamination: Mapping[str, Any]) -> str:
    """How many tasks were trained on, and the value of the others."""
    without = contamination["without"]
    left = f"{figure(without['value'])} {interval(without['interval'])} without them" if without["answered"] else "all"
    return f"{contamination['tasks']:,}, {left}" if contamination["tasks"] else "none"


def _drawn(sampling: Mapping[str, Any]) -> str:
    return "greedy" if sampling["temperature"] == 0 else f"temperature {sampling['temperature']:g}"


def _samples(found: Mapping[str, Any]) -> Iterator[str]:
    if "pass_at" in found:
        shares = ", ".join(f"pass@{k} {figure(share)}" for k, share in found["pass_at"].items())
        yield f"    {shares}, majority {figure(found['majority'])} of {found['samples']} samples"


def _part(table: str, part: Mapping[str, Any]) -> str:
    label = f"{table}: {part['name']}"
    return f"    {label[:40]:41}{figure(part['value']):>8}  {interval(part['interval']):15}{part['answered']:7,}"
