"""The report as one page: the verdict at a glance, the curves, the trajectories, and what the run was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rl.metrics import METRICS, Metric, declaration
from rl.progress import duration
from rl.report.cards import evaluation_cards, trajectory_cards
from rl.report.charts import LARGE, SMALL, Series, format_value, line_chart, stacked_chart
from rl.report.frame import document, section
from rl.report.gantt import gantt
from rl.report.input import RunRecord, box_coordinates, config_roles
from rl.report.markup import Markup, element, join
from rl.report.pictures import Pictures
from rl.report.trace import verdict_badge

_STACKED = ("Time per step", "Claims not supported")
_LOGARITHMIC = ("Rollout–learner difference",)
_LARGE = ("Accuracy", "Reward")
_UNIT_BOUNDS: Mapping[str, tuple[float, float]] = {"fraction": (0.0, 1.0), "score": (0.0, 1.0)}
_COLOURS: Mapping[str, str] = {
    "training": "--training",
    "held-out": "--held-out",
    "uncertain": "--uncertain",
    "unsupported": "--unsupported",
    "refuted": "--refuted",
}


def page(run: RunRecord) -> str:
    """The whole page of a run."""
    present = {"curves": bool(run.metrics), "held-out": bool(run.evaluations), "training": bool(run.training)}
    titles = {"curves": "Curves", "held-out": "Held-out", "training": "Training", "setup": "Setup"}
    links = {name: title for name, title in titles.items() if present.get(name, True)}
    return document(run.name, links=links, sections=_sections(run))


def _sections(run: RunRecord) -> Iterator[Markup]:
    roles = config_roles(run.config)
    pictures = Pictures(coordinates=box_coordinates(run.config))
    yield _verdict(run)
    if charts := _charts(run):
        yield section(
            "curves",
            "Curves",
            "Thin lines are single steps, thick ones their running mean; dots are held-out evaluations.",
            join(charts, gantt(run.timeline)),
        )
    if run.evaluations:
        cards = evaluation_cards(run.evaluations, roles=roles, pictures=pictures)
        yield section("held-out", *_evaluation_title(run), cards)
    if run.training:
        lead = "Each was compared with the others of its group; the strip shows their rewards, with the mean as a tick."
        cards = trajectory_cards(run.training, roles=roles, pictures=pictures, shares=run.shares)
        yield section("training", "Training trajectories", lead, cards)
    yield section("setup", "Setup", "", _setup(run))


def _evaluation_title(run: RunRecord) -> tuple[str, Markup]:
    lead = "Answered greedily; no stage of training has seen them."
    title = "Held-out cases" if len(run.evaluations) < 2 else "Held-out cases, before and after"
    return title, join(lead, " ", _verdict_key())


def _verdict_key() -> Markup:
    marks = [verdict_badge(verdict) for verdict in ("supported", "refuted", "unsupported")]
    return join("Claims are marked ", marks[0], marks[1], " or ", marks[2], "; point at one to see what that rests on.")


def _verdict(run: RunRecord) -> Markup:
    notes = [element("li", note) for note in run.notes]
    return element(
        "section",
        element("p", " · ".join(_facts(run)), class_="eyebrow"),
        element("h1", _headline(run)),
        element("ul", *notes, class_="notes") if notes else "",
        element("div", *_tiles(run), class_="tiles"),
        class_="verdict",
    )


def _facts(run: RunRecord) -> Iterator[str]:
    yield "Run report" if run.steps_logged or "reward/mean" in run.metrics else "Evaluation report"
    if (seed := run.summary.get("seed")) is not None:
        yield f"seed {seed}"
    if version := run.versions.get("medrl"):
        yield f"medrl {version}"
    if commit := run.versions.get("commit"):
        yield f"commit {commit}"


def _number(run: RunRecord, key: str) -> float | None:
    value = run.summary.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _before_after(run: RunRecord, name: str) -> tuple[float | None, float | None]:
    """From the summary, else the first and the last held-out evaluation that was recorded."""
    metric = f"eval/{name}"
    before, after = _number(run, f"{name}_before"), _number(run, f"{name}_after")
    if before is None and len(run.metrics.get(metric, ())) > 1:
        before = run.first(metric)
    return before, after if after is not None else run.last(metric)


def _headline(run: RunRecord) -> str:
    for name, unit in (("accuracy", "fraction"), ("reward", "reward")):
        before, after = _before_after(run, name)
        if after is None:
            continue
        if before is None:
            return f"Held-out {name} is {format_value(after, unit)}."
        if format_value(before, unit) == format_value(after, unit):
            return f"Held-out {name} stayed at {format_value(after, unit)}."
        verb = "rose" if after > before else "fell"
        return f"Held-out {name} {verb} from {format_value(before, unit)} to {format_value(after, unit)}."
    return "No held-out evaluation was recorded."


def _tiles(run: RunRecord) -> Iterator[Markup]:
    yardstick = _number(run, "yardstick_accuracy")
    for name, unit in (("accuracy", "fraction"), ("reward", "reward")):
        before, after = _before_after(run, name)
        if after is not None:
            yield _change_tile(name, before, after, unit=unit, yardstick=yardstick if name == "accuracy" else None)
    figures = {
        "Steps": _steps(run),
        "Wall time": None if (wall_s := _number(run, "wall_s")) is None else duration(wall_s),
        "Tokens": None if (tokens := _tokens(run)) is None else f"{tokens:,.0f}",
        "Unscored": None if (unscored := _number(run, "unscored")) is None else f"{unscored:,.6g}",
    }
    known = [element("div", element("dt", name), element("dd", text)) for name, text in figures.items() if text]
    if known:
        yield element("dl", *known, class_="tile figures-tile")


def _steps(run: RunRecord) -> str | None:
    done = _number(run, "steps")
    done = run.metrics["reward/mean"][-1][0] if done is None and "reward/mean" in run.metrics else done
    planned = run.config.get("max_steps")
    if done is None:
        return None
    return f"{done:,.0f} of {planned:,}" if isinstance(planned, int) and planned != done else f"{done:,.0f}"


def _tokens(run: RunRecord) -> float | None:
    recorded = [tokens for _, tokens in run.metrics.get("throughput/tokens", ())]
    total = _number(run, "tokens_total")
    return sum(recorded) if total is None and recorded else total


def _change_tile(name: str, before: float | None, after: float, *, unit: str, yardstick: float | None) -> Markup:
    """Before and after as numbers, and as two points on a line from 0 to 1, with the yardstick as a tick."""
    shift = Markup()
    if before is not None:
        points = f"{100 * (after - before):+.1f} points" if unit == "fraction" else f"{after - before:+.3f}"
        shift = element("span", points.replace("-", "−"), class_="up" if after >= before else "down")
    numbers = [element("span", f"{format_value(before, unit)} → ", class_="before")] if before is not None else []
    beside = []
    if yardstick is not None:
        beside = [
            element("p", f"Logistic regression on the same measurements: {format_value(yardstick, unit)}", class_="dim")
        ]
    return element(
        "div",
        element("h3", f"Held-out {name}", shift),
        element("p", *numbers, element("b", format_value(after, unit)), class_="big"),
        _span_line(before, after, yardstick),
        *beside,
        class_="tile",
    )


def _span_line(before: float | None, after: float, yardstick: float | None) -> Markup:
    def place(value: float) -> str:
        return f"{100 * min(max(value, 0.0), 1.0):.2f}%"

    marks = [element("i", class_="after", style=f"left:{place(after)}")]
    if before is not None:
        low, high = sorted((before, after))
        width = 100 * (min(high, 1.0) - max(low, 0.0))
        marks.insert(0, element("i", class_="between", style=f"left:{place(low)};width:{width:.2f}%"))
        marks.append(element("i", class_="earlier", style=f"left:{place(before)}"))
    if yardstick is not None:
        marks.append(element("i", class_="yardstick", style=f"left:{place(yardstick)}", title="yardstick"))
    return element("div", *marks, class_="span-line", aria_hidden="true")


def _charts(run: RunRecord) -> Markup:
    """A card for each chart of the table of metrics that has something to show; what never changed in one line."""
    cards, constant = [], []
    for title, metrics in _by_chart(run).items():
        values = {value for metric in metrics for _, value in run.metrics[metric.name]}
        if len(values) == 1:
            constant.append(f"{title} {format_value(values.pop(), metrics[0].unit)}")
        else:
            cards.append(_chart_card(run, title, metrics))
    note = element("p", f"The same at every step: {', '.join(constant)}.", class_="note") if constant else Markup()
    return join(element("div", *cards, class_="charts"), note) if cards or constant else Markup()


def _by_chart(run: RunRecord) -> dict[str, list[Metric]]:
    """The recorded metrics under the titles of their charts, both in the order of the table."""
    recorded = [declaration(name) for name in run.metrics]
    charts: dict[str, list[Metric]] = {}
    for declared in METRICS:
        if declared.chart:
            which = (declared.chart, declared.meaning)
            found = [metric for metric in recorded if (metric.chart, metric.meaning) == which]
            charts.setdefault(declared.chart, []).extend(found)
    return {title: metrics for title, metrics in charts.items() if metrics}


def _chart_card(run: RunRecord, title: str, metrics: Sequence[Metric]) -> Markup:
    series = [
        Series(
            label=metric.label,
            points=run.metrics[metric.name],
            colour=_COLOURS.get(metric.label, f"--c{index % 7 + 1}"),
            dots=metric.name.startswith("eval/"),
        )
        for index, metric in enumerate(metrics)
    ]
    unit, size = metrics[0].unit, LARGE if title in _LARGE else SMALL
    level = _number(run, "yardstick_accuracy") if title == "Accuracy" else None
    steps = [points[place][0] for points in run.metrics.values() for place in (0, -1)]
    span = (min(steps), max(steps))  # the same for all charts, so that they can be read against each other
    if title in _STACKED:
        drawn = stacked_chart(title, series, unit=unit, span=span, size=size)
    else:
        bounds, logarithmic = _UNIT_BOUNDS.get(unit), title in _LOGARITHMIC
        drawn = line_chart(
            title, series, unit=unit, bounds=bounds, level=level, logarithmic=logarithmic, span=span, size=size
        )
    key = [_key_entry(one, unit, metric.meaning) for one, metric in zip(series, metrics, strict=True)]
    if level is not None:
        key.append(
            element(
                "li", element("i", class_="dashes"), "logistic regression ", element("b", format_value(level, unit))
            )
        )
    shown_unit = {"fraction": "", "reward": "", "score": ""}.get(unit, unit)
    return element(
        "figure",
        element(
            "figcaption", element("h3", title, " ", element("small", shown_unit)), element("ul", *key, class_="key")
        ),
        drawn,
        class_="chart-card large" if title in _LARGE else "chart-card",
    )


def _key_entry(series: Series, unit: str, meaning: str) -> Markup:
    last = format_value(series.points[-1][1], unit if unit == "fraction" else "")  # others stand by the title
    return element(
        "li",
        element("i", style=f"background:var({series.colour})"),
        f"{series.label} ",
        element("b", last),
        title=meaning,
    )


def _setup(run: RunRecord) -> Markup:
    rows = [
        element("tr", element("th", name, scope="row"), element("td", version))
        for name, version in run.versions.items()
    ]
    versions = element("div", element("h3", "Versions"), element("table", *rows)) if rows else Markup()
    config = (
        element("div", element("h3", "Resolved config"), element("pre", run.config_text))
        if run.config_text
        else Markup()
    )
    query = "select step, avg(reward), avg(correct::int) from 'trajectories/step_*.parquet' group by step order by step"
    log = element(
        "div",
        element("h3", "Trajectory log"),
        element("p", f"{run.steps_logged:,} training steps. Any Parquet reader opens it, DuckDB for one:"),
        element("pre", query),
    )
    return element("div", versions, log, config, class_="setup")
