"""The results of an evaluation as one self-contained HTML page, with a link to the answers of each benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rl.benchmarks.results_text import figure, interval, overlap
from rl.report.frame import document, section
from rl.report.markup import Markup, element

_NOTES = {
    "fields": "mapping never run by medrl itself",
    "unverified": "mapping not verified, never run by medrl itself",
}


def results_page(name: str, results: Mapping[str, Any]) -> str:
    """The whole page."""
    benchmarks = results["benchmarks"]
    links = {"results": "Results"} | {each: each for each in benchmarks}
    return document(name, links=links, sections=[_head(results), _overview(benchmarks), *_each(benchmarks)])


def _head(results: Mapping[str, Any]) -> Markup:
    asked = sum(found["tasks"] for found in results["benchmarks"].values())
    sampling = results["sampling"]
    drawn = "greedy" if sampling["temperature"] == 0 else f"temperature {sampling['temperature']:g}"
    facts = f"{len(results['benchmarks'])} benchmarks · {asked:,} tasks · {drawn} · seed {results['seed']}"
    if results.get("unfinished"):
        facts += f" · not finished: {', '.join(results['unfinished'])}"
    return element(
        "section",
        element("p", f"Evaluation · {facts}", class_="eyebrow"),
        element("h1", results["model"]),
        class_="verdict",
    )


def _overview(benchmarks: Mapping[str, Mapping[str, Any]]) -> Markup:
    head = ("Benchmark", "Metric", "Value", "95 % interval", "Tasks", "Lost", "Unscored", "Cut short", "Overlapping")
    rows = [_row(name, found) for name, found in benchmarks.items()]
    lead = (
        "Lost answers never came, unscored ones met a broken scorer: neither is counted as wrong. Intervals are "
        "bootstrapped over tasks, those about one image drawn together; a dash where the values have no spread."
    )
    return section("results", "Results", lead, _table(head, rows))


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    overlapping = found["contamination"]
    return [
        element("a", name, href=f"#{name}"),
        found["metric"],
        figure(found["value"]),
        interval(found["interval"]),
        f"{found['tasks']:,}",
        f"{found['lost']:,}",
        f"{found['unscored']:,}",
        f"{found['truncated']:,}",
        f"{overlapping['tasks']:,}" if overlapping else "not looked for",
    ]


def _each(benchmarks: Mapping[str, Mapping[str, Any]]) -> Iterator[Markup]:
    for name, found in benchmarks.items():
        said = [found["citation"], f"licence: {found['licence']}", f"split: {found['split']}"]
        said += [_NOTES[found["checked"]]] if found["checked"] in _NOTES else []
        tables = [
            _table((table, "Value", "95 % interval", "Tasks"), [_part(part) for part in parts])
            for table, parts in found["tables"].items()
            if len(parts) > 1
        ]
        answers = element("p", element("a", "Every question with its answer and scores →", href=f"{name}/report.html"))
        yield section(name, found["title"], " · ".join(said), answers, *_remarks(found), *tables)


def _remarks(found: Mapping[str, Any]) -> Iterator[Markup]:
    if "pass_at" in found:
        shares = [f"pass@{k}: {figure(share)}" for k, share in found["pass_at"].items()]
        shares.append(f"majority of {found['samples']}: {figure(found['majority'])}")
        yield element("p", ", ".join(shares))
    if found["contamination"]:
        yield element("p", f"Overlapping with training tasks: {overlap(found['contamination'])}")
    for reason, count in found["lost_reasons"].items():
        yield element("p", f"Lost {count:,}: {reason}")


def _part(part: Mapping[str, Any]) -> list[str]:
    return [part["name"], figure(part["value"]), interval(part["interval"]), f"{part['answered']:,}"]


def _table(head: tuple[str, ...], rows: list[list[str]]) -> Markup:
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *(element("th", each) for each in head))),
            element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows)),
        ),
        class_="tile scorers",
    )
