"""The page of trajectories: the filter, a page of those that pass it, and the one that is open."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl.errors import LogError
from rl.report.charts import format_value
from rl.report.frame import top_bar
from rl.report.markup import Markup, element
from rl.report.trace import verdict_badge
from rl.types import Verdict
from rl.view.filters import filter_form
from rl.view.index import Snapshot, TrajectoryIndex
from rl.view.overview import overview
from rl.view.query import PAGE_ROWS, Query, matching
from rl.view.trajectory import Sibling, open_trajectory, trajectory_view

_PLACE = re.compile(r"(?P<run>.+)/(?P<kind>train|eval)/(?P<step>\d{1,9})/(?P<row>\d{1,9})")
_VERDICTS: tuple[Verdict, ...] = ("refuted", "unsupported")


def shell(title: str, links: Mapping[str, str], *content: Markup) -> str:
    """A whole page around its content. It loads only the style sheets and scripts that lie beside this module."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} · medrl view"),
        *(element("link", rel="stylesheet", href=f"/assets/{name}") for name in ("report.css", "view.css")),
        *(element("script", src=f"/assets/{name}", defer="") for name in ("report.js", "view.js")),
    )
    return "<!doctype html>\n" + element("html", head, element("body", top_bar(title, links), *content), lang="en")


@dataclass(frozen=True, slots=True)
class Found:
    """What a query found in a snapshot: the rows that pass, and where the open one stands among them."""

    snapshot: Snapshot
    query: Query
    rows: np.ndarray
    opened: int | None

    @property
    def pages(self) -> int:
        return max(-(-len(self.rows) // PAGE_ROWS), 1)

    @property
    def page(self) -> int:
        return min(self.query.page, self.pages)

    def address_of(self, row: int, *, page: int | None = None) -> str:
        """The page with this row open."""
        table = self.snapshot.table
        run, kind, step, number = (table[name][row].as_py() for name in ("run", "kind", "step", "row"))
        return self.query.but(page=page or self.page, open=f"{run}/{kind}/{step}/{number}").address()

    def neighbour(self, distance: int) -> str | None:
        """The address of the row so many places after the open one; of the first one where none of them is open."""
        places = np.flatnonzero(self.rows == self.opened) if self.opened is not None else np.array([], int)
        place = int(places[0]) + distance if len(places) else 0
        if not 0 <= place < len(self.rows):
            return None
        return self.address_of(int(self.rows[place]), page=place // PAGE_ROWS + 1)


def trajectories_page(index: TrajectoryIndex, query: Query) -> str:
    """The whole page. Raises BadQuery, and LogError for a trajectory that is not there."""
    snapshot = index.snapshot()
    rows = matching(snapshot, query, index.runs)
    found = Found(snapshot, query, rows, _row_of(snapshot, query.open) if query.open else None)
    links = {query.address(): "Trajectories", Query(run=query.run).address("/curves"): "Curves"}
    return shell(
        ", ".join(query.run or index.runs), links, element("main", *_parts(found, index.runs), class_=_layout(found))
    )


def _layout(found: Found) -> str:
    return "viewer" if found.opened is None else "viewer opened"


def _parts(found: Found, folders: Mapping[str, Path]) -> Iterator[Markup]:
    notes = [element("li", note) for note in found.snapshot.notes]
    listed = (
        element("ul", *notes, class_="notes") if notes else Markup(),
        filter_form(found.snapshot, found.query, runs=list(folders)),
        _tally(found),
        element("ol", *_hits(found), class_="hits"),
        _pager(found),
    )
    yield element("div", *listed, class_="found", id="found")
    yield element("article", *_opened(found, folders), class_="open", id="open", tabindex="-1")


def _row_of(snapshot: Snapshot, place: str) -> int:
    """The row that an address names. Raises LogError where there is none."""
    if match := _PLACE.fullmatch(place):
        table = snapshot.table
        for number, file in enumerate(snapshot.files):
            if (file.run, file.kind, file.step) == (match["run"], match["kind"], int(match["step"])):
                here = np.flatnonzero(np.asarray(table["file"]) == number)
                if int(match["row"]) < len(here):
                    return int(here[int(match["row"])])
    raise LogError(f"there is no trajectory {place!r} here; a place is RUN/train|eval/STEP/ROW")


def _tally(found: Found) -> Markup:
    """How many there are, and what they amount to."""
    import pyarrow.compute as pc

    total = len(found.snapshot.table)
    if not total:
        return element("p", "No trajectories have been logged yet.", class_="tally")
    told = [
        element("b", f"{len(found.rows):,}"),
        f" of {total:,} trajectories" if found.query.narrows else " trajectories",
    ]
    chosen = found.snapshot.table.select(["reward", "correct"]).take(found.rows)
    reward, right = (pc.mean(chosen[name]).as_py() for name in ("reward", "correct"))
    told += [f" · mean reward {format_value(reward, 'reward')}"] if reward is not None else []
    told += [f" · {right:.1%} right"] if right is not None else []
    unscored = chosen["reward"].null_count
    told += [f" · {unscored:,} unscored"] if unscored else []
    told += [" ", element("a", "Clear", href="/", class_="clear")] if found.query.narrows else []
    return element("p", *told, class_="tally", role="status")


def _hits(found: Found) -> Iterator[Markup]:
    start = (found.page - 1) * PAGE_ROWS
    places = found.rows[start : start + PAGE_ROWS]
    several = len(found.snapshot.choices("run")) > 1
    for place, row in zip(places, found.snapshot.table.take(places).to_pylist(), strict=True):
        shown = int(place) == found.opened
        yield element("li", _hit(row, found.address_of(int(place)), shown=shown, several=several))


def _hit(row: Mapping[str, Any], address: str, *, shown: bool, several: bool) -> Markup:
    where = ([row["run"]] if several else []) + [f"{row['kind']} {row['step']:,}", f"sample {row['sample_index'] + 1}"]
    reward = row["reward"]
    figures = [element("span", "–" if reward is None else format_value(reward, "reward"), class_="reward")]
    if row["advantage"] is not None:
        figures.append(element("span", f"{row['advantage']:+.2f}".replace("-", "−"), class_="dim", title="advantage"))
    return element(
        "a",
        _chip(row),
        element("span", row["task_id"], class_="case"),
        element("span", *figures, class_="numbers"),
        element("span", " · ".join(where), class_="figures"),
        element("span", *(verdict_badge(each, count=row[each]) for each in _VERDICTS if row[each]), class_="badges"),
        href=address,
        aria_current="true" if shown else None,
        class_="hit",
    )


def _chip(row: Mapping[str, Any]) -> Markup:
    name = {True: "right", False: "wrong", None: "scored"}[row["correct"]] if row["outcome"] == "scored" else "unscored"
    return element("span", name, class_=f"chip {name}-chip")


def _pager(found: Found) -> Markup:
    if found.pages == 1:
        return Markup()

    def link(text: str, page: int) -> Markup:
        there = 1 <= page <= found.pages
        return element("a", text, href=found.query.but(page=page, open="").address() if there else None)

    told = element("span", f"page {found.page:,} of {found.pages:,}", class_="dim")
    return element("nav", link("← previous", found.page - 1), told, link("next →", found.page + 1), class_="pager")


def _opened(found: Found, folders: Mapping[str, Path]) -> Iterator[Markup]:
    if found.opened is None:
        first = found.neighbour(0)
        yield element("p", "Choose a trajectory, or press ", element("kbd", "j"), ".", class_="nothing")
        yield overview(found.snapshot, found.query, found.rows) if len(found.rows) else Markup()
        yield element("a", "first", href=first, rel="next", class_="unseen") if first else Markup()
        return
    file = found.snapshot.files[found.snapshot.table["file"][found.opened].as_py()]
    number = found.snapshot.table["row"][found.opened].as_py()
    yield _steps(found)
    yield trajectory_view(open_trajectory(folders[file.run], file, number), list(_siblings(found)))


def _steps(found: Found) -> Markup:
    """To the list, the one before and the one after: what the keys do, too."""
    links = [element("a", "← list", href=found.query.but(open="").address(), rel="up", title="Escape")]
    for text, rel, distance, key in (("previous", "prev", -1, "k"), ("next", "next", 1, "j")):
        links.append(element("a", text, " ", element("kbd", key), href=found.neighbour(distance), rel=rel))
    return element("nav", *links, class_="steps", aria_label="Trajectories")


def _siblings(found: Found) -> Sequence[Sibling]:
    """The trajectories of the open one's group."""
    table = found.snapshot.table
    file, group = (np.asarray(table[name]) for name in ("file", "group_index"))
    members = np.flatnonzero((file == file[found.opened]) & (group == group[found.opened]))
    rows = table.select(["sample_index", "reward"]).take(members).to_pylist()
    return [
        Sibling(
            address=found.address_of(int(place)),
            sample=row["sample_index"],
            reward=row["reward"],
            shown=int(place) == found.opened,
        )
        for place, row in zip(members, rows, strict=True)
    ]
