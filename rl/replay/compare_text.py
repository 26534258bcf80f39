"""A comparison of two scorings as the terminal shows it, and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from rl.replay.compare import Comparison, Shift


def lines(found: Comparison) -> Iterator[str]:
    """The comparison in a dozen lines."""
    yield f"{found.trajectories:,} trajectories in {found.groups:,} groups of {found.steps:,} steps"
    yield f"{'':14}{'before':>9}{'after':>9}{'shift':>9}{'moved':>9}{'changed':>10}  version"
    for name, shift in found.shifts.items():
        yield f"{name:14}{_figures(shift)}  {versions(shift)}"
        yield from (f"{'':14}{text}" for text in _unscored(shift))
    yield f"{'reward':14}{_figures(found.rewards)}"
    yield ranks(found)
    yield signs(found)
    yield winners(found)


def verdict(found: Comparison) -> str:
    """Whether the run's own rewards gave the same scores again, and where not, whose version is another."""
    share = found.unchanged / max(found.trajectories, 1)
    if found.reproduced:
        return f"all {found.trajectories:,} trajectories have the scores that were logged"
    said = [f"{name} ({_cause(shift)})" for name, shift in found.shifts.items() if shift.changed]
    return (
        f"{found.unchanged:,} of {found.trajectories:,} trajectories ({share:.1%}) have the scores that were logged; "
        + (f"others come from {', '.join(said)}" if said else "the others have another reward, or other scorers")
    )


def _cause(shift: Shift) -> str:
    if shift.changed_alike == shift.changed:
        return f"{shift.changed:,} under the same version: its score depends on more than the trajectory"
    return f"{shift.changed:,}, version {versions(shift)}"


def ranks(found: Comparison) -> str:
    """The rank correlation within groups, in words."""
    if not found.rank_correlations:
        return "rank correlation: no group has rewards that vary in both"
    values = np.array(found.rank_correlations)
    return (
        f"rank correlation within groups: mean {values.mean():.3f}, median {np.median(values):.3f}, lowest "
        f"{values.min():.3f}, over the {len(values):,} groups whose rewards vary in both"
    )


def signs(found: Comparison) -> str:
    """How many advantages change sign, in words."""
    share = found.signs["flipped"] / max(found.trajectories, 1)
    return (
        f"advantages: {found.signs['flipped']:,} change sign ({share:.1%}), {found.signs['lost']:,} become zero, "
        f"{found.signs['gained']:,} were zero"
    )


def winners(found: Comparison) -> str:
    """The groups whose winner changes, in words."""
    return f"winners: {found.winner_changes:,} of {found.contested:,} groups have another best trajectory"


def as_json(found: Comparison) -> dict[str, Any]:
    """All numbers of the comparison, and where its examples stand."""
    correlations = np.array(found.rank_correlations)
    return {
        "before": found.before,
        "after": found.after,
        "steps": found.steps,
        "trajectories": found.trajectories,
        "groups": found.groups,
        "unchanged": found.unchanged,
        "scorers": {name: _shift_json(shift) for name, shift in found.shifts.items()},
        "reward": _shift_json(found.rewards),
        "rank_correlation": {
            "groups": len(correlations),
            "mean": float(correlations.mean()) if len(correlations) else None,
            "median": float(np.median(correlations)) if len(correlations) else None,
        },
        "advantages": {name: found.signs[name] for name in ("flipped", "lost", "gained")},
        "winner_changes": found.winner_changes,
        "contested_groups": found.contested,
        "examples": [f"{each.kind} {each.step} {each.trajectory_id}" for each in found.examples],
    }


def _shift_json(shift: Shift) -> dict[str, Any]:
    return {
        "mean_before": mean(shift.before),
        "mean_after": mean(shift.after),
        "scored_before": len(shift.before),
        "scored_after": len(shift.after),
        "wasserstein": None if math.isnan(shift.distance) else shift.distance,
        "changed": shift.changed,
        "changed_under_the_same_version": shift.changed_alike,
        "versions_before": dict(shift.versions_before),
        "versions_after": dict(shift.versions_after),
        "outcomes_before": dict(shift.outcomes_before),
        "outcomes_after": dict(shift.outcomes_after),
    }


def mean(values: Any) -> float | None:
    """None where there are none."""
    return sum(values) / len(values) if values else None


def _figures(shift: Shift) -> str:
    before, after = mean(shift.before), mean(shift.after)
    change = None if before is None or after is None else after - before
    columns = [_cell(before), _cell(after), _cell(change, signed=True), _cell(shift.distance)]
    return "".join(f"{cell:>9}" for cell in columns) + f"{shift.changed:>10,}"


def _cell(value: float | None, *, signed: bool = False) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{'+' if signed else ''}.3f}"


def versions(shift: Shift) -> str:
    """The versions before, and those after where they are others."""
    before, after = (" ".join(counts) or "none" for counts in (shift.versions_before, shift.versions_after))
    return before if before == after else f"{before} → {after}"


def _unscored(shift: Shift) -> Iterator[str]:
    def said(counts: Counter[str]) -> str:
        return ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if outcome != "scored") or "none"

    if said(shift.outcomes_before) != said(shift.outcomes_after):
        yield f"without a score: {said(shift.outcomes_before)} → {said(shift.outcomes_after)}"
