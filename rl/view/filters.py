"""The form that a filter is made with. Without a script it is sent by its button; with one, as it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rl.report.markup import Markup, element
from rl.view.index import Snapshot
from rl.view.query import ANSWERS, CLAIMS, SORTS, Query

_FEW = 12


def filter_form(snapshot: Snapshot, query: Query, *, runs: Sequence[str]) -> Markup:
    """The form, filled as the query says. What there is no choice in is left out."""
    narrowing = [
        _runs(runs, query),
        _choice("kind", "Kind", snapshot.choices("kind"), query.kind),
        _bounds("step", "Step", query.step_min, query.step_max, step="1"),
        _choice("outcome", "Outcome", snapshot.choices("outcome"), query.outcome),
        _choice("answer", "Answer", ANSWERS, query.answer),
        _choice("finish", "Finish reason", snapshot.choices("finish_reason"), query.finish),
        _choice("group", "Group", snapshot.choices("group_outcome"), query.group),
        _choice("claims", "Claims", CLAIMS, query.claims),
        _bounds("reward", "Reward", query.reward_min, query.reward_max),
        _choice("scorer", "Scorer", snapshot.scorers, query.scorer, fewest=1),
        _bounds("score", "Its score", query.score_min, query.score_max),
        _listed("entity", "Entity", snapshot.choices("entities"), query.entity),
        _listed("stratum", "Stratum", snapshot.choices("stratum"), query.stratum),
        _field("task", "Task", element("input", type="search", name="task", value=query.task or None)),
    ]
    text = element(
        "input", type="search", name="text", value=query.text or None, placeholder="Text in completion, question or id",
        aria_label="Text", maxlength=500,
    )  # fmt: skip
    always = [text, _select("sort", SORTS, query.sort, label="Sort"), element("button", "Apply", type="submit")]
    more = element(
        "details",
        element("summary", "Filter"),
        element("div", *narrowing, class_="fields"),
        open="" if query.narrows or not query.open else None,
    )
    return element("form", element("div", *always, class_="always"), more, method="get", action="/", class_="filter")


def _field(name: str, label: str, *controls: Markup) -> Markup:
    return element("label", element("span", label), *controls, class_=f"field field-{name}")


def _runs(runs: Sequence[str], query: Query) -> Markup:
    if len(runs) < 2:
        return Markup()
    boxes = [
        element(
            "label",
            element("input", type="checkbox", name="run", value=run, checked="" if run in query.run else None),
            element("span", run),
        )
        for run in runs
    ]
    return element("fieldset", element("legend", "Runs"), *boxes, class_="field checks")


def _choice(
    name: str, label: str, values: Sequence[str] | Mapping[str, object], chosen: str, *, fewest: int = 2
) -> Markup:
    """A choice where there are ``fewest`` values or more: what all rows have tells none apart."""
    if len(values) < fewest and not chosen:
        return Markup()
    words = {value: _worded(values, value) for value in values}
    return _field(name, label, _select(name, {"": "any", **words}, chosen))


def _worded(values: Sequence[str] | Mapping[str, object], value: str) -> str:
    text = values[value] if isinstance(values, Mapping) else None
    return text if isinstance(text, str) else value.replace("_", " ")


def _listed(name: str, label: str, values: Sequence[str], chosen: str) -> Markup:
    """A choice of few, or a field that proposes many."""
    if len(values) <= _FEW:
        return _choice(name, label, values, chosen, fewest=1)
    options = [element("option", value=value) for value in values]
    field = element("input", type="search", name=name, value=chosen or None, list=f"{name}-values")
    return _field(name, label, field, element("datalist", *options, id=f"{name}-values"))


def _select(name: str, words: Mapping[str, str], chosen: str, *, label: str | None = None) -> Markup:
    options = [
        element("option", text, value=value, selected="" if value == chosen else None) for value, text in words.items()
    ]
    return element("select", *options, name=name, aria_label=label)


def _bounds(name: str, label: str, low: float | None, high: float | None, *, step: str = "any") -> Markup:
    inputs = [
        element(
            "input", type="number", name=f"{name}_{end}", step=step, placeholder=end, aria_label=f"{label}, {end}",
            value=None if value is None else f"{value:g}",
        )
        for end, value in (("min", low), ("max", high))
    ]  # fmt: skip
    return element("div", element("span", label), element("div", *inputs), class_=f"field field-{name} bounds")
