"""The page of curves: any metric of several runs, laid over one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from rl.metrics import METRICS, Metric, declaration, is_declared
from rl.report.charts import LARGE, Point, Series, format_value, line_chart
from rl.report.markup import Markup, element
from rl.view.pages import shell
from rl.view.query import BadQuery
from rl.view.runs import metrics_of

_SHOWN_FIRST = ("eval/accuracy", "eval/reward", "reward/mean", "accuracy/train", "loss/entropy", "length/mean_tokens")
_MOST_CHARTS = 40
_COLOURS = 7
_UNIT_BOUNDS = {"fraction": (0.0, 1.0), "score": (0.0, 1.0)}

Curves = Mapping[str, Mapping[str, Sequence[Point]]]
"""Metric → run → (step, value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvesQuery:
    """Which runs and metrics are shown; none named means all runs, or the metrics that one looks at first."""

    run: tuple[str, ...] = ()
    metric: tuple[str, ...] = ()
    log: bool = False


def read_curves_query(parameters: Mapping[str, Sequence[str]]) -> CurvesQuery:
    """The query of an address. Raises BadQuery for a field that does not exist."""
    if unknown := sorted(parameters.keys() - {"run", "metric", "log"}):
        raise BadQuery(f"curves have no {unknown[0]!r}; there are run, metric, log")
    return CurvesQuery(
        run=tuple(parameters.get("run", ())), metric=tuple(parameters.get("metric", ())), log="log" in parameters
    )


def curves_page(folders: Mapping[str, Path], query: CurvesQuery) -> str:
    """The whole page. Raises BadQuery for a run or metric that is not there."""
    if unknown := [run for run in query.run if run not in folders]:
        raise BadQuery(f"there is no run {unknown[0]!r}; there are {', '.join(folders)}")
    curves = _curves(folders)
    if unknown := [metric for metric in query.metric if metric not in curves]:
        raise BadQuery(f"no run has recorded {unknown[0]!r}; there are {', '.join(curves)}")
    runs = query.run or tuple(folders)
    address = {"run": query.run} if query.run else {}
    links = {f"/?{urlencode(address, doseq=True)}" if address else "/": "Trajectories", "/curves": "Curves"}
    return shell(", ".join(runs), links, element("main", *_parts(curves, query, tuple(folders)), class_="curves"))


def _curves(folders: Mapping[str, Path]) -> Curves:
    """All that was recorded, in the order of the table of metrics, then what other releases recorded."""
    found: dict[str, dict[str, list[Point]]] = {}
    for run, folder in folders.items():
        for record in metrics_of(folder):
            for name, value in record.items():
                if name != "step":
                    found.setdefault(name, {}).setdefault(run, []).append((record["step"], value))
    order = {metric.meaning: place for place, metric in enumerate(METRICS)}
    return {
        name: found[name] for name in sorted(found, key=lambda name: (order.get(_declared(name).meaning, 999), name))
    }


def _declared(name: str) -> Metric:
    return declaration(name) if is_declared(name) else Metric(name, "", "not known to this release")


def _parts(curves: Curves, query: CurvesQuery, runs: Sequence[str]) -> Iterator[Markup]:
    if not curves:
        yield element(
            "p",
            "None of these folders holds metrics.jsonl: replays and imported logs have no curves.",
            class_="nothing",
        )
        return
    shown = query.metric or tuple(name for name in _SHOWN_FIRST if name in curves) or tuple(curves)[:4]
    chosen = query.run or tuple(runs)
    yield _form(curves, query, shown, runs)
    colours = {run: f"--c{place % _COLOURS + 1}" for place, run in enumerate(runs)}
    cards = [_card(name, curves[name], chosen, colours, log=query.log) for name in shown[:_MOST_CHARTS]]
    yield element("div", *cards, class_="charts", id="found")


def _form(curves: Curves, query: CurvesQuery, shown: Sequence[str], runs: Sequence[str]) -> Markup:
    fields = [
        _checks("run", "Runs", {run: "" for run in runs}, query.run or tuple(runs)) if len(runs) > 1 else Markup(),
        _checks("metric", "Metrics", {name: _declared(name).meaning for name in curves}, shown),
    ]
    logarithmic = element("input", type="checkbox", name="log", value="1", checked="" if query.log else None)
    always = [
        element("label", logarithmic, element("span", "logarithmic"), class_="check"),
        element("button", "Apply", type="submit"),
        element("a", "Reset", href="/curves", class_="clear"),
    ]
    more = element("details", element("summary", f"Runs and metrics · {len(curves)} recorded"), *fields, open="")
    return element(
        "form", element("div", *always, class_="always"), more, method="get", action="/curves", class_="filter"
    )


def _checks(name: str, legend: str, meanings: Mapping[str, str], chosen: Sequence[str]) -> Markup:
    boxes = [
        element(
            "label",
            element("input", type="checkbox", name=name, value=value, checked="" if value in chosen else None),
            element("span", value),
            title=meaning or None,
        )
        for value, meaning in meanings.items()
    ]
    return element("fieldset", element("legend", legend), *boxes, class_=f"field checks checks-{name}")


def _card(
    name: str, by_run: Mapping[str, Sequence[Point]], runs: Sequence[str], colours: Mapping[str, str], *, log: bool
) -> Markup:
    metric = _declared(name)
    series = [
        Series(label=run, points=by_run[run], colour=colours[run], dots=name.startswith("eval/"))
        for run in runs
        if run in by_run
    ]
    drawn = line_chart(
        name,
        series,
        unit=metric.unit,
        bounds=None if log else _UNIT_BOUNDS.get(metric.unit),
        logarithmic=log,
        size=LARGE,
    )
    key = [
        element(
            "li",
            element("i", style=f"background:var({one.colour})"),
            f"{one.label} ",
            element("b", _last(one, metric.unit)),
        )
        for one in series
    ]
    caption = element(
        "figcaption", element("h3", name, " ", element("small", metric.meaning)), element("ul", *key, class_="key")
    )
    return element("figure", caption, drawn, class_="chart-card large")


def _last(series: Series, unit: str) -> str:
    finite = [value for _, value in series.points if math.isfinite(value)]
    return format_value(finite[-1], unit) if finite else "–"
