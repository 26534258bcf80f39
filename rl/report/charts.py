"""Curves as SVG: lines and stacked columns over steps, with axes that fall on round numbers.

A chart is drawn in units of its own, its `Size`, and scales with the page. Colours are CSS variables, so
that one drawing serves light and dark. A value that is not finite breaks its line and is marked on the axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from rl.report.markup import Markup, element, join

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 38.0
_MOST_POINTS = 400  # beyond this, neighbours are averaged: more than a point a pixel cannot be seen
_MOST_COLUMNS = 120
_SMOOTHED_FROM = 30  # points; fewer are drawn as they are
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Size:
    """What a chart is drawn in: about the pixels that it will fill, so that its text keeps its size."""

    width: float
    height: float


SMALL, LARGE = Size(372, 190), Size(590, 236)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve: (step, value) in order of steps; ``colour`` names a CSS custom property (``--c1``).

    A curve with ``dots`` shows each value; one without is drawn thin, under its running mean where it is long.
    """

    label: str
    points: Sequence[Point]
    colour: str
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to places along an axis, and the values that are ticked."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def format_value(value: float, unit: str = "") -> str:
    """A number with its unit as a reader wants it: ``87.3%``, ``1,830 tokens/s``, ``0.042 nats``, ``4.2e-6``."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "fraction":
        return f"{100 * value:.1f}%"
    return _significant(value) if unit in ("", "reward", "score") else f"{_significant(value)} {unit}"


def _significant(value: float) -> str:
    """Three significant digits, more where they are whole ones."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.01:
        return _scientific(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}".replace("-", "−")


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}".replace("-", "−") + f"e{int(exponent)}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    bounds: tuple[float, float] | None = None,
    level: float | None = None,
    logarithmic: bool = False,
    span: tuple[float, float] | None = None,
    axis: str = "step",
    size: Size = SMALL,
) -> Markup:
    """Curves over steps, or what else ``axis`` names. ``bounds`` are what a value can be at all; ``level`` is drawn
    across, to compare with; ``span`` are the steps that the axis shows, those of the curves where it is None."""
    drawn = [replace(one, points=_thin(one.points)) for one in series]
    plot = _line_plot(
        drawn, unit=unit, bounds=bounds, level=level, logarithmic=logarithmic, span=span, axis=axis, size=size
    )
    return _svg(title, drawn, plot, unit=unit, axis=axis, size=size)


def _line_plot(
    series: Sequence[Series],
    *,
    unit: str,
    bounds: tuple[float, float] | None,
    level: float | None,
    logarithmic: bool,
    span: tuple[float, float] | None,
    axis: str,
    size: Size,
) -> Plot:
    values = [value for one in series for _, value in one.points if math.isfinite(value)]
    x = _step_scale(series, size, span=span, margin=0.0)
    values = values if level is None else [*values, level]
    y = _log_scale(values, size) if logarithmic else _value_scale(values, size, bounds=bounds)
    across = (
        element("line", class_="level", x1=x.start, x2=x.end, y1=y(level), y2=y(level)) if level is not None else ""
    )
    return Plot(x, y, join(_axes(x, y, unit=unit, axis=axis), across, *(_curve(one, x, y) for one in series)))


def stacked_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    span: tuple[float, float] | None = None,
    size: Size = SMALL,
) -> Markup:
    """Parts of a whole as columns over steps, the first series lowest. A part without a value is nothing there."""
    drawn = _binned(series)
    steps = [step for step, _ in drawn[0].points]
    totals = [sum(_finite(value) for _, value in parts) for parts in zip(*(one.points for one in drawn), strict=True)]
    x = _step_scale(drawn, size, span=span, margin=_gap(steps) / 2)
    y = _value_scale([0.0, *totals], size, bounds=None)
    width = max((x(steps[0] + _gap(steps)) - x(steps[0])) * 0.74, 0.8)
    base = [0.0] * len(steps)
    columns: list[Markup] = []
    for one in drawn:
        for index, (step, value) in enumerate(one.points):
            if height := _finite(value):
                bottom, top = y(base[index]), y(base[index] + height)
                place = {"x": x(step) - width / 2, "y": top, "width": width, "height": bottom - top}
                columns.append(element("rect", **place, fill=f"var({one.colour})"))
                base[index] += height
    return _svg(title, drawn, Plot(x, y, join(_axes(x, y, unit=unit), *columns)), unit=unit, size=size)


@dataclass(frozen=True, slots=True)
class Plot:
    """Axes and marks, with the scales that they were drawn by."""

    x: Scale
    y: Scale
    marks: Markup


def _svg(title: str, series: Sequence[Series], plot: Plot, *, unit: str, size: Size, axis: str = "step") -> Markup:
    return element(
        "svg",
        plot.marks,
        element("line", class_="cursor", y1=plot.y.end, y2=plot.y.start),
        class_="chart",
        viewBox=f"0 0 {size.width:g} {size.height:g}",
        role="img",
        aria_label=_spoken(title, series, unit, axis=axis),
        data_readings=_readings(series, plot.x, unit=unit, axis=axis, size=size),
    )


def _spoken(title: str, series: Sequence[Series], unit: str, *, axis: str) -> str:
    """What a screen reader says of a chart: where each curve begins and where it ends."""
    ends = [
        f"{one.label} {format_value(one.points[0][1], unit)} at {axis} {one.points[0][0]:g}, "
        f"{format_value(one.points[-1][1], unit)} at {axis} {one.points[-1][0]:g}"
        for one in series
        if one.points
    ]
    return f"{title}: {'; '.join(ends)}"


def _readings(series: Sequence[Series], x: Scale, *, unit: str, axis: str, size: Size) -> str:
    """What the pointer reads: the steps, their places, and each curve's value there as text."""
    steps = sorted({step for one in series for step, _ in one.points})
    curves = [
        {
            "label": one.label,
            "colour": one.colour,
            "values": [format_value(by_step[step], unit) if step in by_step else None for step in steps],
        }
        for one in series
        for by_step in [dict(one.points)]
    ]
    places = [round(x(step), 1) for step in steps]
    readings = {"width": size.width, "axis": axis, "steps": steps, "places": places, "curves": curves}
    return json.dumps(readings, separators=(",", ":"), ensure_ascii=False)


def _curve(series: Series, x: Scale, y: Scale) -> Markup:
    stroke = {"stroke": f"var({series.colour})", "fill": "none"}
    smooth = not series.dots and len(series.points) >= _SMOOTHED_FROM
    marks = [_line(series.points, x, y, class_="raw" if smooth else "curve", **stroke)]
    if smooth:
        marks.append(_line(_running_mean(series.points), x, y, class_="curve", **stroke))
    finite = [point for point in series.points if math.isfinite(point[1])]
    dotted = finite if series.dots else finite[-1:] if not smooth else []
    dots = [element("circle", cx=x(step), cy=y(value), r=3.2, fill=f"var({series.colour})") for step, value in dotted]
    broken = [_cross(x(step), y.start) for step, value in series.points if not math.isfinite(value)]
    return join(*marks, *dots, *broken)


def _line(points: Sequence[Point], x: Scale, y: Scale, **attributes: str) -> Markup:
    """A path through the finite points, broken where a value is not finite."""
    runs = [list(run) for finite, run in groupby(points, lambda point: math.isfinite(point[1])) if finite]
    path = "".join("M" + "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run) for run in runs)
    return element("path", d=path, **attributes)


def _cross(x: float, y: float) -> Markup:
    """The mark of a value that is not finite."""
    path = f"M{x - 3:.1f},{y - 3:.1f}l6,6m0,-6l-6,6"
    return element("path", element("title", "not a finite number"), d=path, class_="broken")


def _axes(x: Scale, y: Scale, *, unit: str, axis: str = "step") -> Markup:
    rules = [element("line", class_="rule", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)) for tick in y.ticks]
    labels = [
        element("text", _tick_text(tick, y, unit), class_="tick", x=x.start - 7, y=y(tick) + 3.6, text_anchor="end")
        for tick in y.ticks
    ]
    below = y.start + 15
    steps = [
        element("text", f"{tick:,.0f}", class_="tick", x=x(tick), y=below, text_anchor="middle") for tick in x.ticks
    ]
    name = element("text", axis, class_="tick", x=(x.start + x.end) / 2, y=below + 17, text_anchor="middle")
    return join(*rules, *labels, *steps, name)


def _tick_text(tick: float, scale: Scale, unit: str) -> str:
    if scale.logarithmic:
        return "10" + str(round(math.log10(tick))).translate(_SUPERSCRIPTS)
    if tick == 0:
        return "0"
    gap = min((after - before for before, after in pairwise(scale.ticks)), default=1.0)
    if unit == "fraction":
        return f"{100 * tick:.{_decimals(100 * gap)}f}%"
    if max(map(abs, scale.ticks)) < 1e-3:
        return _scientific(tick)
    return f"{tick / 1000:g}k" if abs(tick) >= 10_000 else f"{tick:,.{_decimals(gap)}f}".replace("-", "−")


def _decimals(gap: float) -> int:
    """Decimals that tell multiples of ``gap`` apart: 0 for 20, 1 for 2.5, 3 for 0.025."""
    return next(count for count in range(12) if math.isclose(gap * 10**count, round(gap * 10**count), rel_tol=1e-6))


def _step_scale(series: Sequence[Series], size: Size, *, span: tuple[float, float] | None, margin: float) -> Scale:
    steps = span or [step for one in series for step, _ in one.points] or [0.0]
    low, high = min(steps) - margin, max(steps) + margin
    if low == high:
        low, high = low - 1, high + 1
    gap = max(_round_up((high - low) / 6), 1.0)
    ticks = tuple(tick for tick in _multiples(low, high, gap) if tick == round(tick))
    return Scale(low=low, high=high, start=_LEFT, end=size.width - _RIGHT, ticks=ticks)


def _value_scale(values: Sequence[float], size: Size, *, bounds: tuple[float, float] | None) -> Scale:
    """A linear axis that holds all values and ends on ticks.

    What varies by less than a tenth is not blown up to fill it: the axis then begins at zero, or takes in a tenth of
    what a bounded value can be (a hundredth for small ones).
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if bounds and high - low < (least := 0.1 if high > 0.1 else 0.01):
        low, high = (low + high - least) / 2, (low + high + least) / 2
    elif high - low < 0.1 * max(abs(low), abs(high)):
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = low + 1.0
    if bounds:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    gap = _round_up((high - low) / 4)
    low, high = math.floor(low / gap + 1e-9) * gap, math.ceil(high / gap - 1e-9) * gap
    return Scale(low=low, high=high, start=size.height - _BOTTOM, end=_TOP, ticks=tuple(_multiples(low, high, gap)))


def _log_scale(values: Sequence[float], size: Size) -> Scale:
    positive = [value for value in values if value > 0] or [0.1, 1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    last = max(last, first + 1)
    stride = math.ceil((last - first) / 5)
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    place = {"start": size.height - _BOTTOM, "end": _TOP}
    return Scale(low=10.0**first, high=10.0**last, ticks=ticks, logarithmic=True, **place)


def _round_up(gap: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is no smaller than ``gap``."""
    power = 10.0 ** math.floor(math.log10(gap))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= gap * (1 - 1e-9))


def _multiples(low: float, high: float, gap: float) -> Iterator[float]:
    for index in range(math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9) + 1):
        yield round(index * gap, 12)


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """At most `_MOST_POINTS` points: means of neighbours, not finite where any of them is not."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    if stride <= 1:
        return points
    parts = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _binned(series: Sequence[Series]) -> list[Series]:
    """All series at the same steps, at most `_MOST_COLUMNS` of them: means over neighbouring steps."""
    steps = sorted({step for one in series for step, _ in one.points})
    stride = math.ceil(len(steps) / _MOST_COLUMNS)
    bins = [steps[start : start + stride] for start in range(0, len(steps), stride)]
    tables = [dict(one.points) for one in series]
    return [
        replace(one, points=[(part[0], sum(table.get(step, 0.0) for step in part) / len(part)) for part in bins])
        for one, table in zip(series, tables, strict=True)
    ]


def _gap(steps: Sequence[float]) -> float:
    return min((after - before for before, after in pairwise(steps)), default=1.0)


def _running_mean(points: Sequence[Point]) -> list[Point]:
    reach = max(2, len(points) // 24)
    smoothed: list[Point] = []
    for index, (step, _) in enumerate(points):
        near = points[max(index - reach, 0) : index + reach + 1]
        finite = [value for _, value in near if math.isfinite(value)]
        smoothed.append((step, sum(finite) / len(finite) if finite else math.nan))
    return smoothed


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
