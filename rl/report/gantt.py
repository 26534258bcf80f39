"""What ran when in the last steps of a run, lane by lane, so that one sees what waited for what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rl.report.markup import Markup, element, join
from rl.timeline import PHASES, Phase, Span

STEPS_SHOWN = 6
WORKERS_SHOWN = 8

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _GAP = 1180.0, 84.0, 12.0, 24.0, 19.0, 7.0
_LANES: Mapping[Phase, str] = {
    "score": "rewards",
    "forward": "learner",
    "update": "learner",
    "publish": "weights",
    "evaluate": "evaluation",
    "checkpoint": "disk",
    "log": "disk",
}
_COLOURS: Mapping[Phase, str] = {
    "generate": "--c1",
    "score": "--c2",
    "forward": "--dim",
    "update": "--c3",
    "publish": "--c4",
    "evaluate": "--c5",
    "checkpoint": "--c6",
    "log": "--c7",
}
"""Those of the chart of the time per step."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of a step, in the row of its lane where nothing else is at that time."""

    step: int
    span: Span
    row: int


def gantt(timeline: Mapping[int, Sequence[Span]]) -> Markup:
    """The last `STEPS_SHOWN` steps as a figure; empty where nothing was recorded."""
    shown = {step: timeline[step] for step in sorted(timeline)[-STEPS_SHOWN:]}
    lanes = _lanes(shown)
    if not lanes:
        return Markup()
    phases = [phase for phase in PHASES if any(bar.span.phase == phase for bars in lanes.values() for bar in bars)]
    key = [
        element("li", element("i", class_="swatch", style=f"background:var({_COLOURS[phase]})"), phase)
        for phase in phases
    ]
    first, last = min(shown), max(shown)
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return element(
        "figure",
        element(
            "figcaption",
            element("h3", "What ran when ", element("small", f"{steps}, s")),
            element("ul", *key, class_="key"),
        ),
        _picture(lanes, steps),
        element("p", _told(shown), class_="note"),
        class_="chart-card gantt-card",
    )


def _lanes(steps: Mapping[int, Sequence[Span]]) -> dict[str, list[Bar]]:
    """Bars by lane, rollout workers first."""
    by_lane: dict[str, list[tuple[int, Span]]] = {}
    for step, spans in steps.items():
        for span in spans:
            if span.worker < WORKERS_SHOWN:
                by_lane.setdefault(_lane(span), []).append((step, span))
    order = {lane: place for place, lane in enumerate(dict.fromkeys(_LANES.values()))}
    names = sorted(by_lane, key=lambda lane: (order.get(lane, -1), lane))
    return {lane: list(_rows(by_lane[lane])) for lane in names}


def _lane(span: Span) -> str:
    return f"engine {span.worker}" if span.phase == "generate" else _LANES[span.phase]


def _rows(spans: Sequence[tuple[int, Span]]) -> Iterator[Bar]:
    """Each span in the first row that is free when it begins."""
    ends: list[float] = []
    for step, span in sorted(spans, key=lambda each: each[1].began_s):
        row = next((row for row, end in enumerate(ends) if end <= span.began_s), len(ends))
        ends[row : row + 1] = [span.ended_s]
        yield Bar(step, span, row)


@dataclass(frozen=True, slots=True)
class Axis:
    """Moments, in seconds since the epoch, to places across the picture."""

    began_s: float
    ended_s: float

    def __call__(self, moment_s: float) -> float:
        share = (moment_s - self.began_s) / max(self.ended_s - self.began_s, 1e-3)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    @property
    def ticks_s(self) -> list[float]:
        """Round numbers of seconds from the beginning, nine at the most."""
        length_s = max(self.ended_s - self.began_s, 1e-3)
        power = 10.0 ** math.floor(math.log10(length_s / 8))
        gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= length_s / 8)
        return [number * gap for number in range(int(length_s / gap) + 1)]


def _picture(lanes: Mapping[str, Sequence[Bar]], title: str) -> Markup:
    bars = [bar for lane in lanes.values() for bar in lane]
    axis = Axis(min(bar.span.began_s for bar in bars), max(bar.span.ended_s for bar in bars))
    drawn: list[Markup] = []
    top = _TOP
    for name, lane in lanes.items():
        height = _ROW * (1 + max(bar.row for bar in lane))
        drawn.append(element("text", name, x=_LEFT - 10, y=top + height / 2 + 4, text_anchor="end"))
        drawn.append(element("rect", class_="lane", x=_LEFT, y=top, width=_WIDTH - _LEFT - _RIGHT, height=height))
        drawn.extend(_bar(bar, axis, top) for bar in lane)
        top += height + _GAP
    published = [_version(bar, axis, bottom=top - _GAP) for bar in bars if bar.span.phase == "publish"]
    return element(
        "svg",
        *(_tick(tick_s, axis, bottom=top - _GAP) for tick_s in axis.ticks_s),
        *drawn,
        *published,
        class_="chart gantt",
        viewBox=f"0 0 {_WIDTH:g} {top + 14:g}",
        role="img",
        aria_label=f"What ran when in {title}",
    )


def _bar(bar: Bar, axis: Axis, top: float) -> Markup:
    """A span with the number of its step where that fits, and its times for the pointer."""
    span, y = bar.span, top + bar.row * _ROW
    left, width = axis(span.began_s), max(axis(span.ended_s) - axis(span.began_s), 1.5)
    told = f"step {bar.step}, {span.phase}: {span.duration_s:.3g} s, from {span.began_s - axis.began_s:.3g} s on"
    colour = f"var({_COLOURS[span.phase]})"
    number = element("text", str(bar.step), class_="on-bar", x=left + width / 2, y=y + 13, text_anchor="middle")
    return element(
        "g",
        element("title", told),
        element("rect", x=left, y=y + 1.5, width=width, height=_ROW - 3, rx=3, fill=colour),
        number if width > 7 + 7 * len(str(bar.step)) else "",
    )


def _version(bar: Bar, axis: Axis, *, bottom: float) -> Markup:
    """Where the engines had the weights of a step."""
    x = axis(bar.span.ended_s)
    return join(
        element("line", class_="version", x1=x, x2=x, y1=_TOP - 5, y2=bottom),
        element("text", f"v{bar.step}", x=x, y=_TOP - 8, text_anchor="middle"),
    )


def _tick(tick_s: float, axis: Axis, *, bottom: float) -> Markup:
    x = axis(axis.began_s + tick_s)
    return join(
        element("line", class_="rule", x1=x, x2=x, y1=_TOP - 5, y2=bottom + 3),
        element("text", f"{tick_s:g}", x=x, y=bottom + 15, text_anchor="middle"),
    )


def _told(steps: Mapping[int, Sequence[Span]]) -> str:
    """How to read it, and for how much of the time engines and learner were at work."""
    spans = [span for own in steps.values() for span in own]
    whole_s = max(span.ended_s for span in spans) - min(span.began_s for span in spans)
    writing_s = _covered_s([span for span in spans if span.phase == "generate"])
    learning_s = _covered_s([span for span in spans if span.phase in ("forward", "update")])
    hidden = max(span.worker for span in spans) + 1 - WORKERS_SHOWN
    either_s = _covered_s([span for span in spans if span.phase in ("generate", "forward", "update")])
    return (
        f"A bar has the number of its step; at a line all engines have the weights of that version. Of "
        f"{whole_s:.3g} s the engines wrote in {writing_s / whole_s:.0%}, the learner computed in "
        f"{learning_s / whole_s:.0%}, both at once in {(writing_s + learning_s - either_s) / whole_s:.0%}."
    ) + (f" {hidden} further engines are not shown." if hidden > 0 else "")


def _covered_s(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of them ran."""
    covered_s, until_s = 0.0, -math.inf
    for span in sorted(spans, key=lambda span: span.began_s):
        covered_s += span.after(until_s)
        until_s = max(until_s, span.ended_s)
    return covered_s
