"""Charts: axes on round numbers, honest scales, and values that are not finite in plain sight."""

import math
import re

import pytest

from rl.report.charts import Series, format_value, line_chart, stacked_chart
from rl.report.markup import Markup


def ticks(chart: Markup, anchor: str) -> list[str]:
    return re.findall(rf'<text class="tick" [^>]*text-anchor="{anchor}">([^<]+)</text>', chart)


def curve(*values: float) -> list[Series]:
    return [Series(label="a", points=list(enumerate(values)), colour="--c1", dots=True)]


@pytest.mark.parametrize(
    ("values", "unit", "bounds", "expected"),
    [
        ((0.42, 0.9), "fraction", (0.0, 1.0), ["40%", "60%", "80%", "100%"]),
        ((0.0, 0.091), "fraction", (0.0, 1.0), ["0", "2.5%", "5.0%", "7.5%", "10.0%"]),
        ((-0.04, 0.06), "", None, ["−0.050", "−0.025", "0", "0.025", "0.050", "0.075"]),
        ((1_200.0, 52_000.0), "tokens", None, ["0", "20k", "40k", "60k"]),
        ((1e-4, 4e-4), "", None, ["1e-4", "2e-4", "3e-4", "4e-4"]),
        ((99.0, 101.0), "tokens", None, ["0", "50", "100", "150"]),  # noise is not blown up
    ],
)
def test_axes_fall_on_round_numbers(
    values: tuple[float, ...], unit: str, bounds: tuple[float, float] | None, expected: list[str]
) -> None:
    assert ticks(line_chart("x", curve(*values), unit=unit, bounds=bounds), "end") == expected


def test_a_logarithmic_axis_has_decades_evenly_spaced() -> None:
    drawn = line_chart("x", curve(1e-6, 1e-5, 1e-4), logarithmic=True)
    assert ticks(drawn, "end") == ["10⁻⁶", "10⁻⁵", "10⁻⁴"]
    low, middle, high = (float(y) for y in re.findall(r'<circle [^>]*cy="([\d.]+)"', drawn))
    assert middle == pytest.approx((low + high) / 2)


def test_a_value_that_is_not_finite_breaks_the_line_and_is_marked() -> None:
    drawn = line_chart("x", curve(0.1, 0.2, math.nan, 0.4, 0.5))
    (path,) = re.findall(r'<path d="([^"]+)" class="curve"', drawn)
    assert path.count("M") == 2
    assert drawn.count('class="broken"') == 1
    assert "not finite" in drawn


def test_columns_are_stacked_to_their_total_and_long_runs_are_averaged() -> None:
    lower = Series(label="lower", points=[(0, 1.0), (1, 2.0)], colour="--c1")
    upper = Series(label="upper", points=[(1, 1.0)], colour="--c2")
    rects = [
        {name: float(value) for name, value in re.findall(r'(y|height)="([\d.]+)"', rect)}
        for rect in re.findall(r"<rect[^>]+>", stacked_chart("t", [lower, upper]))
    ]
    first, second, top = rects
    assert second["height"] == pytest.approx(2 * first["height"], rel=1e-3)
    assert top["y"] + top["height"] == pytest.approx(second["y"], abs=1e-2)
    long = Series(label="long", points=[(step, 1.0) for step in range(1000)], colour="--c1")
    assert stacked_chart("t", [long]).count("<rect") <= 120


def test_a_long_curve_is_thinned_to_what_can_be_seen() -> None:
    drawn = line_chart("x", [Series(label="a", points=[(step, step % 7) for step in range(20_000)], colour="--c1")])
    assert len(drawn) < 60_000


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.8733, "fraction", "87.3%"),
        (1830.2, "tokens/s", "1,830 tokens/s"),
        (0.61234, "reward", "0.612"),
        (2.25, "s", "2.25 s"),
        (4.21e-6, "nats", "4.2e-6 nats"),
        (-0.5, "", "−0.500"),
        (0.0, "", "0"),
        (math.nan, "fraction", "not finite"),
    ],
)
def test_numbers_are_written_with_their_unit(value: float, unit: str, expected: str) -> None:
    assert format_value(value, unit) == expected
