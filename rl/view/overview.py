"""What passes the filter, at a glance: how rewards and scores are distributed. A bar leads to what stands in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rl.report.charts import format_value
from rl.report.markup import Markup, element
from rl.view.index import Snapshot
from rl.view.query import Query

_BINS = 20
_WIDTH, _HEIGHT = 400.0, 90.0


def overview(snapshot: Snapshot, query: Query, rows: np.ndarray) -> Markup:
    """A histogram of the reward, and one of each scorer's values, over these rows of the snapshot."""
    cards = [card for name in ("", *snapshot.scorers) if (card := _card(snapshot, query, rows, scorer=name))]
    return element("div", *cards, class_="distributions")


def _card(snapshot: Snapshot, query: Query, rows: np.ndarray, *, scorer: str) -> Markup:
    column = snapshot.table[f"score/{scorer}" if scorer else "reward"]
    values = np.asarray(column.take(rows).drop_null(), dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Markup()
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    told = f"{len(values):,}, mean {format_value(float(values.mean()), 'score')}"
    drawing = element(
        "svg",
        *_bars(counts, edges, query, scorer=scorer),
        element("line", x1=0, x2=_WIDTH, y1=_HEIGHT, y2=_HEIGHT, class_="rule"),
        class_="distribution",
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT + 1:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"distribution of {scorer or 'the reward'}: {told}",
    )
    ends = element("p", *(element("span", f"{end:g}") for end in (low, high)), class_="ends")
    caption = element("figcaption", element("h3", scorer or "reward", " ", element("small", told)))
    return element("figure", caption, drawing, ends, class_="chart-card")


def _bars(counts: np.ndarray, edges: np.ndarray, query: Query, *, scorer: str) -> Iterator[Markup]:
    width, tallest = _WIDTH / len(counts), counts.max()
    for place in np.flatnonzero(counts):
        height = max(float(counts[place]) / tallest * (_HEIGHT - 4), 1.5)
        low, high = round(float(edges[place]), 6), round(float(edges[place + 1]), 6)
        title = element("title", f"{low:g} to {high:g}: {counts[place]:,}")
        bar = element("rect", title, x=place * width + 0.5, width=width - 1, y=_HEIGHT - height, height=height)
        yield element("a", bar, href=_within(query, scorer, low, high).address())


def _within(query: Query, scorer: str, low: float, high: float) -> Query:
    bounds: dict[str, Any] = {"reward_min": low, "reward_max": high}
    if scorer:
        bounds = {"scorer": scorer, "score_min": low, "score_max": high}
    return query.but(page=1, open="", **bounds)
