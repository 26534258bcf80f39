"""What was measured as text for the terminal, as Markdown, and as one self-contained page with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl.report.charts import LARGE, Series, Size, format_value, line_chart
from rl.report.frame import document, section
from rl.report.markup import Markup, element
from tests.bench.harness import Figure, Growth, Part, Spread, Table

Record = Mapping[str, Any]
"""One part as bench.json holds it: the part itself, and where and on what it was measured."""

QUICK = "tried out with --quick: these numbers mean nothing"
HEAD = ("", "median", "quartiles", "turns", "aim", "")
_ROW, _LEFT, _WIDTH = 26.0, 580.0, 1180.0  # of a picture of bars
_MOST = 2.0  # times the aim; longer bars are cut there


def as_text(name: str, record: Record) -> str:
    """The figures of one part, in columns."""
    part = Part.from_json(record)
    lines = [_row(figure) for figure in part.figures]
    widths = [max(map(len, column)) for column in zip(HEAD, *lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    head = f"{name}: failed, {record['failed']}" if record["failed"] else f"{name}: {_where(record)}"
    return "\n".join([head, *(f"  {line.rstrip()}" for line in padded), *(f"  {_said(each)}" for each in part.growths)])


def as_markdown(parts: Mapping[str, Record]) -> str:
    """All parts: figures with their aims, then the tables behind them."""
    lines = ["# What medrl's benchmarks found", "", "Pictures of it are in the page beside this file.", ""]
    for name, record in parts.items():
        part = Part.from_json(record)
        lines += [f"## {_title(name)}", "", _where(record), ""]
        lines += [f"**Failed**: {record['failed']}", ""] if record["failed"] else []
        lines += [*_markdown_table(HEAD, map(_row, part.figures)), ""] if part.figures else []
        notes = [f"{figure.what}: {figure.note}" for figure in part.figures if figure.note]
        lines += [*(f"- {note}" for note in [*notes, *part.notes, *map(_said, part.growths)]), ""]
        for table in part.tables:
            lines += [f"**{table.title}**", "", *_markdown_table(table.columns, _cells(table)), ""]
    return "\n".join(lines)


def as_html(parts: Mapping[str, Record]) -> str:
    links = {name: _title(name) for name in parts}
    return document("bench", links=links, sections=[_section(name, record) for name, record in parts.items()])


def _section(name: str, record: Record) -> Markup:
    part = Part.from_json(record)
    aimed = [figure for figure in part.figures if figure.aim]
    notes = [f"{figure.what}: {figure.note}." for figure in part.figures if figure.note]
    content = [element("p", f"Failed: {record['failed']}", class_="notes")] if record["failed"] else []
    content += [_bars(aimed)] if aimed else []
    content += [_html_table(HEAD, [_row(figure) for figure in part.figures])] if part.figures else []
    content += [element("p", note, class_="note") for note in [*notes, *part.notes]]
    content += [element("div", *map(_curve, part.growths), class_="charts")] if part.growths else []
    for table in part.tables:
        rows = _html_table(table.columns, _cells(table))
        content.append(element("details", element("summary", table.title), rows))
    return section(name, _title(name), _where(record), *content)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _where(record: Record) -> str:
    config = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record["config"].items())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    quick = f"{QUICK}; " if record["quick"] else ""
    measured = f"{record['seconds']:.0f} s on {record['cores']} cores, commit {record['commit']}"
    return f"{quick}{measured}; {config}; {versions}"


def _row(figure: Figure) -> tuple[str, ...]:
    value, unit = figure.value, "" if figure.unit == "×" else figure.unit
    times = "×" if figure.unit == "×" else ""
    sign = "≥" if figure.better == "higher" else "≤"
    aim = "" if figure.aim is None else f"{sign} {figure.aim:g}{times}"
    verdict = {None: "", True: "reached", False: "missed"}[figure.reached]
    median = f"{format_value(value.median, unit)}{times}"
    return (
        figure.what,
        median,
        f"{format_value(value.low)} to {format_value(value.high)}",
        f"{value.turns}",
        aim,
        verdict,
    )


def _said(growth: Growth) -> str:
    ends = " to ".join(f"{y:,.3g} {growth.unit} at {x:,.0f}" for x, y in (growth.points[0], growth.points[-1]))
    return f"{growth.what} over {growth.over}: {ends}; {_power(growth.exponent)}"


def _power(exponent: Spread | None) -> str:
    if exponent is None:
        return "no exponent"
    between = f" ({exponent.low:.2f} to {exponent.high:.2f})" if exponent.turns > 1 else ""
    return f"exponent {exponent.median:.2f}{between}"


def _cells(table: Table) -> list[tuple[str, ...]]:
    return [tuple(each if isinstance(each, str) else format_value(each) for each in row) for row in table.rows]


def _markdown_table(head: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element("div", element("table", element("thead", titles), element("tbody", *body)), class_="table")


def _curve(growth: Growth) -> Markup:
    points = [Series(label=growth.what, points=growth.points, colour="--c1", dots=True)]
    chart = line_chart(growth.what, points, unit=growth.unit, axis=growth.over, size=LARGE)
    title = element("h3", growth.what, " ", element("small", _said(growth)))
    return element("figure", title, chart, class_="chart-card large")


def _bars(figures: Sequence[Figure]) -> Markup:
    """How far each figure came towards its aim: the line is the aim, right of it is better."""
    size = Size(_WIDTH, _ROW * len(figures) + 12)
    aim_x = _along(1.0)
    marks = [element("line", class_="level", x1=aim_x, x2=aim_x, y1=4.0, y2=size.height - 4)]
    for number, figure in enumerate(figures):
        marks += _bar(figure, y=8 + number * _ROW)
    said = "; ".join(f"{figure.what}: {_row(figure)[1]}, aim {_row(figure)[4]}" for figure in figures)
    box = f"0 0 {size.width:g} {size.height:g}"
    return element("svg", *marks, class_="chart", viewBox=box, role="img", aria_label=said)


def _bar(figure: Figure, *, y: float) -> Iterator[Markup]:
    colour = "--supported" if figure.reached else "--refuted"
    share, low, high = (_share(figure, value) for value in (figure.value.median, figure.value.low, figure.value.high))
    middle = y + _ROW / 2
    yield element("text", figure.what, x=_LEFT - 10, y=middle + 1, text_anchor="end")
    yield element(
        "rect", x=_LEFT, y=y + 4, width=_along(share) - _LEFT, height=_ROW - 12, rx=2.0, fill=f"var({colour})"
    )
    whisker = {"x1": _along(low), "x2": _along(high), "y1": middle - 2, "y2": middle - 2}
    yield element("line", **whisker, stroke="var(--ink)", stroke_width=1.5)
    label = f"{_row(figure)[1]} (aim {_row(figure)[4]})"
    yield element("text", label, x=_along(max(share, low, high)) + 8, y=middle + 1)


def _share(figure: Figure, value: float) -> float:
    """A value in units of its aim, turned round where low is better."""
    assert figure.aim
    share = value / figure.aim if figure.better == "higher" else figure.aim / value if value > 0 else _MOST
    return min(max(share, 0.0), _MOST)


def _along(share: float) -> float:
    return _LEFT + share * 220.0
