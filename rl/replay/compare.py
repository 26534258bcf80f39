"""Two scorings of the same trajectories: what moved, by how much, and whether it would have trained another policy.

Both stores are read side by side, a group at a time; what is kept of a trajectory is its numbers.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from rl.advantage import advantages
from rl.errors import LogError
from rollouts.log import Kind, iter_rows

EXAMPLES = 24
_COLUMNS = (
    "trajectory_id",
    "task_id",
    "group_index",
    "reward",
    *(f"scores.list.element.{name}" for name in ("scorer", "version", "outcome", "value", "gate_open")),
)

Row = Mapping[str, Any]
Pair = tuple[Row, Row]
Step = tuple[Kind, int]


@dataclass(slots=True)
class Shift:
    """How the values of one scorer, or the rewards, moved from one scoring to the other.

    ``before`` and ``after`` hold what was scored; ``changed`` counts the trajectories whose outcome, value or gate is
    another, ``changed_alike`` those among them whose scorer has the same version in both.
    """

    before: array[float] = field(default_factory=lambda: array("d"))
    after: array[float] = field(default_factory=lambda: array("d"))
    versions_before: Counter[str] = field(default_factory=Counter)
    versions_after: Counter[str] = field(default_factory=Counter)
    outcomes_before: Counter[str] = field(default_factory=Counter)
    outcomes_after: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    changed_alike: int = 0

    @property
    def distance(self) -> float:
        """Wasserstein-1 between both distributions: how far a score moved on average, at the least. NaN without one."""
        before, after = (np.sort(values) for values in self.values)
        if not len(before) or not len(after):
            return float("nan")
        places = np.sort(np.concatenate([before, after]))
        below = [np.searchsorted(values, places[:-1], side="right") / len(values) for values in (before, after)]
        return float(np.abs(below[0] - below[1]) @ np.diff(places))

    @property
    def values(self) -> tuple[array[float], array[float]]:
        return self.before, self.after

    @property
    def outcomes(self) -> tuple[Counter[str], Counter[str]]:
        return self.outcomes_before, self.outcomes_after


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Example:
    """A trajectory whose reward moved by ``size`` (1 where it gained or lost its reward), and where it stands."""

    size: float
    kind: Kind
    step: int
    group_index: int
    trajectory_id: str


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What `compare` found. Groups and trajectories count over all ``steps``.

    ``rank_correlations`` holds Spearman's of each group that has two trajectories with a reward in both scorings, and
    rewards that vary in both. An advantage is *flipped* where its sign turns, *lost* where it becomes zero and
    *gained* where it was. The winner of a group changes where none of its best trajectories before is among its best
    after; groups whose rewards are all equal in either scoring have none.
    """

    before: str
    after: str
    steps: int = 0
    trajectories: int = 0
    groups: int = 0
    unchanged: int = 0
    shifts: dict[str, Shift] = field(default_factory=dict)
    rewards: Shift = field(default_factory=Shift)
    rank_correlations: array[float] = field(default_factory=lambda: array("d"))
    signs: Counter[str] = field(default_factory=Counter)
    contested: int = 0
    winner_changes: int = 0
    examples: list[Example] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether every trajectory has the same scores and reward in both."""
        return self.unchanged == self.trajectories


def compare(before: Path, after: Path, steps: Sequence[Step]) -> Comparison:
    """Compare what two stores say of the same trajectories. Raises LogError where they hold different ones."""
    found = Comparison(before=before.resolve().name, after=after.resolve().name, steps=len(steps))
    for kind, step in steps:
        pairs = _pairs(before, after, kind=kind, step=step)
        for group_index, group in groupby(pairs, key=lambda pair: pair[0]["group_index"]):
            _add_group(found, list(group), kind=kind, step=step, group_index=group_index)
    found.examples.sort(reverse=True)
    return found


def _pairs(before: Path, after: Path, *, kind: Kind, step: int) -> Iterator[Pair]:
    both = (iter_rows(run, kind=kind, steps=[step], columns=_COLUMNS) for run in (before, after))
    for one, other in itertools.zip_longest(*both):
        if one is None or other is None or one["trajectory_id"] != other["trajectory_id"]:
            names = [row["trajectory_id"] if row else "none" for row in (one, other)]
            raise LogError(
                f"{before} and {after} do not hold the same trajectories: in {kind} step {step}, {names[0]!r} stands "
                f"against {names[1]!r}"
            )
        yield one, other


def _add_group(found: Comparison, pairs: Sequence[Pair], *, kind: Kind, step: int, group_index: int) -> None:
    found.groups += 1
    found.trajectories += len(pairs)
    found.unchanged += sum(not _add_scores(found, *pair) for pair in pairs)
    rewards = np.array([[_number(row["reward"]) for row in pair] for pair in pairs]).T  # [scoring, sample]
    found.signs.update(_sign_changes(*map(_advantages, rewards)))
    _add_ranks(found, *rewards)
    for pair in pairs:
        if size := _moved(*(row["reward"] for row in pair)):
            name = pair[0]["trajectory_id"]
            example = Example(size=size, kind=kind, step=step, group_index=group_index, trajectory_id=name)
            _keep(found.examples, example)


def _add_scores(found: Comparison, before: Row, after: Row) -> bool:
    """Enter a trajectory's scores and reward; whether any of them changed."""
    changed = before["reward"] != after["reward"]
    found.rewards.changed += changed
    for values, row in ((found.rewards.before, before), (found.rewards.after, after)):
        if row["reward"] is not None:
            values.append(row["reward"])
    was, now = ({score["scorer"]: score for score in row["scores"]} for row in (before, after))
    for name in was | now:
        shift = found.shifts.setdefault(name, Shift())
        if name in was:
            _enter(was[name], shift.before, shift.versions_before, shift.outcomes_before)
        if name in now:
            _enter(now[name], shift.after, shift.versions_after, shift.outcomes_after)
        if name in was and name in now and _said(was[name]) != _said(now[name]):
            shift.changed += 1
            shift.changed_alike += was[name]["version"] == now[name]["version"]
            changed = True
    return changed or was.keys() != now.keys()


def _enter(score: Row, values: array[float], versions: Counter[str], outcomes: Counter[str]) -> None:
    versions[score["version"]] += 1
    outcomes[score["outcome"]] += 1
    if score["value"] is not None:
        values.append(score["value"])


_said = itemgetter("outcome", "value", "gate_open")


def _number(reward: float | None) -> float:
    return np.nan if reward is None else reward


def _advantages(rewards: np.ndarray) -> np.ndarray:
    """Centred on the group's mean, zero where there is no reward or no other to compare with.

    Their signs, and all that is read of them here, depend neither on the baseline nor on the scale of `rl.advantage`.
    """
    centred = np.zeros(len(rewards))
    scored = ~np.isnan(rewards)
    if scored.sum() >= 2:
        centred[scored] = advantages([rewards[scored]])[0]
    return centred


def _sign_changes(before: np.ndarray, after: np.ndarray) -> Iterator[str]:
    for was, now in zip(np.sign(before), np.sign(after), strict=True):
        if was != now:
            yield "flipped" if was and now else "lost" if was else "gained"


def _add_ranks(found: Comparison, before: np.ndarray, after: np.ndarray) -> None:
    both = ~np.isnan(before) & ~np.isnan(after)
    was, now = before[both], after[both]
    if len(was) < 2 or np.ptp(was) == 0 or np.ptp(now) == 0:
        return
    found.rank_correlations.append(float(np.corrcoef(_ranks(was), _ranks(now))[0, 1]))
    found.contested += 1
    found.winner_changes += not np.any((was == was.max()) & (now == now.max()))


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 up; equal values share the mean of their places."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _moved(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return float(before is not after)
    return abs(after - before)


def _keep(examples: list[Example], example: Example) -> None:
    """Keep the `EXAMPLES` that moved most, as a heap whose least comes first."""
    if len(examples) < EXAMPLES:
        heapq.heappush(examples, example)
    elif example > examples[0]:
        heapq.heapreplace(examples, example)
