"""Values as texts cite them: a number, a range, or a bound; each with its unit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rewards.quantity import Quantity, Unit, quantities

_RANGE = re.compile(r"\s{0,2}(?:-|–|—|to|through)\s{0,2}")
_BETWEEN = re.compile(r"\s{1,2}and\s{1,2}")
_BETWEEN_BEFORE = re.compile(r"\bbetween\s{1,2}$", re.IGNORECASE)
_CHANGE_BEFORE = re.compile(r"(?<!ranging )(?<!ranges )(?<!range )\bfrom\s{1,2}$", re.IGNORECASE)
_AT_LEAST = re.compile(
    r"(?:[>≥]=?|\b(?<!no )(?<!not )(?:above|over|(?:more|greater|larger|higher) than|exceed(?:s|ing))"
    r"|\bat least|\bno less than)\s{0,2}$",
    re.IGNORECASE,
)
_AT_MOST = re.compile(
    r"(?:[<≤]=?|\b(?<!no )(?<!not )(?:below|under|(?:less|smaller|lower) than)"
    r"|\bat most|\bup to|\bno more than|\bnot exceeding)\s{0,2}$",
    re.IGNORECASE,
)
_BEFORE = 24  # characters that a word of comparison is looked for in


@dataclass(frozen=True, slots=True, kw_only=True)
class CitedValue:
    """A value between ``low`` and ``high``, equal where one number is cited, infinite on the open side of a bound.

    ``resolution`` is what one unit in the last printed digit is worth, of the coarser end of a range; ``start`` and
    ``end`` are offsets in the text.
    """

    low: float
    high: float
    resolution: float
    unit: Unit
    start: int
    end: int

    @property
    def is_exact(self) -> bool:
        return self.low == self.high


def cited_values(text: str, *, further_units: frozenset[str] = frozenset()) -> list[CitedValue]:
    """All values of the text, in order: ``17.9 um``, ``17 to 18 um``, ``between 17 and 18``, ``> 15 um``.

    A change (``from 15 to 18``) is two values. See `rewards.quantity.quantities` for ``further_units``.
    """
    numbers = quantities(text, further_units=further_units)
    values: list[CitedValue] = []
    position = 0
    while position < len(numbers):
        pair = numbers[position : position + 2]
        width = 2 if len(pair) == 2 and _is_range(text, *pair) else 1
        values.append(_range(*pair) if width == 2 else _single(text, numbers[position]))
        position += width
    return values


def _is_range(text: str, first: Quantity, second: Quantity) -> bool:
    before = text[max(0, first.start - _BEFORE) : first.start]
    gap = text[first.end : second.start]
    if len(gap) > _BEFORE or (first.unit and second.unit and first.unit != second.unit):
        return False
    if _BETWEEN.fullmatch(gap):
        return _BETWEEN_BEFORE.search(before) is not None
    return first.value <= second.value and bool(_RANGE.fullmatch(gap)) and not _CHANGE_BEFORE.search(before)


def _range(first: Quantity, second: Quantity) -> CitedValue:
    low, high = sorted((first.value, second.value))
    return CitedValue(
        low=low,
        high=high,
        resolution=max(first.resolution, second.resolution),
        unit=second.unit or first.unit,
        start=first.start,
        end=second.end,
    )


def _single(text: str, number: Quantity) -> CitedValue:
    before = text[max(0, number.start - _BEFORE) : number.start]
    return CitedValue(
        low=-math.inf if _AT_MOST.search(before) else number.value,
        high=math.inf if _AT_LEAST.search(before) else number.value,
        resolution=number.resolution,
        unit=number.unit,
        start=number.start,
        end=number.end,
    )
