"""The pages of `medrl view` over a long log: seconds to the first, which reads the columns, and to others after it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from rl.view.index import TrajectoryIndex
from rl.view.pages import trajectories_page
from rl.view.query import Query
from rl.view.runs import find_runs
from tests.bench.harness import Figure, Part, spread, timed
from tests.made_up_log import write_made_up

ROWS = 100_000
ASKED = {
    "the first page": Query(),
    "a filter and a sort": Query(reward_min=0.5, sort="reward-low"),
    "a search in the text": Query(text="finding 77 "),
    "the next page of that search": Query(text="finding 77 ", page=2),
}


def measure(*, turns: int, quick: bool) -> Part:
    rows = ROWS // 20 if quick else ROWS
    found: dict[str, list[float]] = {what: [] for what in ASKED}
    with tempfile.TemporaryDirectory() as name:
        write_made_up(Path(name), rows=rows)
        for _ in range(turns):  # each with an index that knows nothing yet
            index = TrajectoryIndex(find_runs([Path(name)]))
            for what, query in ASKED.items():
                found[what].append(_seconds(index, query)())
    return Part(
        config={"trajectories": rows},
        figures=[
            Figure(what=f"medrl view: {what}", value=spread(values), unit="s", better="lower")
            for what, values in found.items()
        ],
    )


def _seconds(index: TrajectoryIndex, query: Query) -> Callable[[], float]:
    return timed(lambda: trajectories_page(index, query))
