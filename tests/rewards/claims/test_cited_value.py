from __future__ import annotations

import math

import pytest

from rewards.claims.cited_value import cited_values

INFINITE = math.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17.9 um", [(17.9, 17.9)]),
        ("17 to 18 um", [(17, 18)]),
        ("17-18 um", [(17, 18)]),
        ("17 um – 18 um", [(17, 18)]),
        ("between 17 and 18", [(17, 18)]),
        ("17 and 18", [(17, 17), (18, 18)]),
        ("rose from 17 to 18", [(17, 17), (18, 18)]),
        ("ranging from 17 to 18", [(17, 18)]),
        ("18 - 17", [(18, 18), (17, 17)]),
        ("17 mm to 18 mg", [(17, 17), (18, 18)]),
        ("> 15 um", [(15, INFINITE)]),
        ("more than 15", [(15, INFINITE)]),
        ("no more than 15", [(-INFINITE, 15)]),
        ("at least 15", [(15, INFINITE)]),
        ("less than 15, over 3", [(-INFINITE, 15), (3, INFINITE)]),
        ("no less than 15", [(15, INFINITE)]),
        ("≤15", [(-INFINITE, 15)]),
        ("not above 15", [(15, 15)]),
        ("nothing", []),
    ],
)
def test_numbers_ranges_and_bounds_are_told_apart(text: str, expected: list[tuple[float, float]]) -> None:
    assert [(value.low, value.high) for value in cited_values(text)] == expected


def test_a_range_takes_the_unit_of_either_end_and_spans_both() -> None:
    (value,) = cited_values("about 17 to 18 um wide")
    assert (value.unit, value.start, value.end, value.resolution) == ((("micrometer", 1),), 6, 17, 1.0)
