"""How things are measured: turn by turn within one run, so that what is reported depends on little but themselves.

Absolute times belong to a machine and to what else it does. Contestants that take turns meet the same weather; their
ratio, turn by turn, and its spread are what a reader elsewhere can hold against his own.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

TURNS, QUICK_TURNS = 5, 2
Turns = Mapping[str, Sequence[float]]
"""Seconds of each contestant, turn by turn."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of ``turns`` values and their quartiles."""

    median: float
    low: float
    high: float
    turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One claim: a number with its spread, and the aim beside it where there is one.

    ``better`` says on which side of the aim it is reached; ``note`` what a reader must know to judge it.
    """

    what: str
    value: Spread
    unit: str = "×"
    aim: float | None = None
    better: Literal["higher", "lower"] = "higher"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.aim is None:
            return None
        return self.value.median >= self.aim if self.better == "higher" else self.value.median <= self.aim


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Numbers that are no claim, for whoever wants to look closer."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str | float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How something grows with something: medians in order of x, and the exponent of each turn's power law."""

    what: str
    over: str
    unit: str
    points: Sequence[tuple[float, float]]
    exponent: Spread | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of the suite found; ``config`` is what it was measured with."""

    config: Mapping[str, Any]
    figures: Sequence[Figure] = ()
    growths: Sequence[Growth] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Part:
        return cls(
            config=written["config"],
            figures=[Figure(**(each | {"value": Spread(**each["value"])})) for each in written["figures"]],
            growths=[Growth(**(each | {"exponent": _spread_again(each["exponent"])})) for each in written["growths"]],
            tables=[Table(**each) for each in written["tables"]],
            notes=written["notes"],
        )


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """``call`` as a contestant of `interleaved`: it returns the seconds that it took."""

    def measured() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return measured


def finish(device: str) -> None:
    """Wait for what was given to ``device``: a GPU works on after the call that asked it to has returned."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def interleaved(contestants: Mapping[str, Callable[[], float]], *, turns: int) -> Turns:
    """The seconds that each contestant returns, in ``turns`` turns after one that is not counted.

    Who begins changes from turn to turn, so that none always finds the caches as the same other left them. Each turn
    is printed, for the log of a part that takes long or breaks off.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 1):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            taken_s = contestants[name]()
            print(f"turn {turn} of {turns}: {name} {taken_s:.3g} s", flush=True)
            if turn:
                seconds[name].append(taken_s)
    return seconds


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def faster(seconds: Turns, *, ours: str, than: str) -> Spread:
    """How many times as fast as ``than`` ours is, turn by turn: above 1 where ours takes less time."""
    return spread([theirs_s / ours_s for ours_s, theirs_s in zip(seconds[ours], seconds[than], strict=True)])


def seconds_table(title: str, seconds: Turns) -> Table:
    found = {name: spread(values) for name, values in seconds.items()}
    rows = [(name, each.median, each.low, each.high, each.turns) for name, each in found.items()]
    return Table(title=title, columns=("", "median s", "25 %", "75 %", "turns"), rows=rows)


def _spread_again(written: Mapping[str, Any] | None) -> Spread | None:
    return None if written is None else Spread(**written)


def grown(what: str, *, over: str, unit: str, points: Sequence[tuple[float, Sequence[float]]]) -> Growth:
    """``points`` are of every turn: each x with its values, turn by turn."""
    medians = [(x, spread(values).median) for x, values in points]
    xs, columns = [x for x, _ in points], zip(*(values for _, values in points), strict=True)
    exponents = [exponent(list(zip(xs, column, strict=True))) for column in columns]
    known = [each for each in exponents if each is not None]
    between = spread(known) if len(known) == len(exponents) else None
    return Growth(what=what, over=over, unit=unit, points=medians, exponent=between)


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the least-squares line through the logarithms: 1 where y grows as x does, 0 where it stays.

    None where fewer than two points are above zero.
    """
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    slope, _ = statistics.linear_regression(*zip(*logs, strict=True))
    return slope
