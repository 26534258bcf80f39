"""The filter that a page's address carries, and the trajectories that pass it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from rl.view.index import COUNTED, LoggedFile, Snapshot
from rollouts.log import column_batches

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

PAGE_ROWS = 50
_LONGEST_TEXT = 500
_SEARCHED = ("text", "question", "trajectory_id")

ANSWERS: Mapping[str, bool | None] = {"right": True, "wrong": False, "untold": None}
CLAIMS: Mapping[str, str] = {verdict: f"{verdict} claims" for verdict in COUNTED}
SORTS: Mapping[str, str] = {
    "latest": "latest step first",
    "log": "order of the log",
    "reward-high": "highest reward",
    "reward-low": "lowest reward",
    "advantage-high": "highest advantage",
    "advantage-low": "lowest advantage",
    "score-high": "highest score",
    "score-low": "lowest score",
}
_MOST_KEPT = 16


class BadQuery(ValueError):
    """The address asks for what cannot be; the text says what and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked for: every field stands in the address under its own name unless it has its default.

    ``run`` empty means all. ``scorer`` is whose score ``score_min``, ``score_max`` and the sorts by score are about.
    ``text`` is looked for in completion, question and id, whatever the case. ``open`` is the place of the trajectory
    that is shown, see `place`.
    """

    run: tuple[str, ...] = ()
    kind: str = ""
    step_min: float | None = None
    step_max: float | None = None
    outcome: str = ""
    answer: str = ""
    finish: str = ""
    group: str = ""
    claims: str = ""
    stratum: str = ""
    entity: str = ""
    task: str = ""
    reward_min: float | None = None
    reward_max: float | None = None
    scorer: str = ""
    score_min: float | None = None
    score_max: float | None = None
    text: str = ""
    sort: str = "latest"
    page: int = 1
    open: str = ""

    def address(self, path: str = "/") -> str:
        """The page of this query."""
        values = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        said = {field.name: _written(value) for field, value in values.items() if value != field.default}
        return f"{path}?{urlencode(said, doseq=True)}" if said else path

    def but(self, **changes: Any) -> Query:
        return dataclasses.replace(self, **changes)

    @property
    def filter(self) -> Query:
        """The query without what does not change which trajectories pass, and in which order."""
        return self.but(page=1, open="")

    @property
    def narrows(self) -> bool:
        return self.filter.but(sort="latest") != Query()


def _written(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def read_query(parameters: Mapping[str, Sequence[str]]) -> Query:
    """The query of an address. Raises BadQuery for a field that does not exist, or a value that it cannot have."""
    fields = {field.name: field for field in dataclasses.fields(Query)}
    said: dict[str, Any] = {}
    for name, values in parameters.items():
        if name not in fields:
            raise BadQuery(f"there is no filter {name!r}; there are {', '.join(fields)}")
        given = [value for value in values if value]
        if given:
            said[name] = tuple(given) if name == "run" else _read(name, given[-1], fields[name].default)
    query = Query(**said)
    for name, allowed in (("sort", SORTS), ("answer", ANSWERS), ("claims", CLAIMS)):
        if (value := getattr(query, name)) and value not in allowed:
            raise BadQuery(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    if len(query.text) > _LONGEST_TEXT:
        raise BadQuery(f"text may be {_LONGEST_TEXT} characters long; got {len(query.text)}")
    return query


def _read(name: str, value: str, default: object) -> Any:
    if isinstance(default, str):
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (name == "page" and not 1 <= number <= 10**9):
        raise BadQuery(f"{name} must be a number; got {value!r}")
    return int(number) if name == "page" else number


def matching(snapshot: Snapshot, query: Query, folders: Mapping[str, Path]) -> np.ndarray:
    """The rows of the snapshot that pass the filter, in the order that the query asks for.

    Kept for the pages of one filter and the steps from one trajectory to the next. Raises BadQuery.
    """
    kept = snapshot.matched
    if query.filter not in kept:
        if len(kept) >= _MOST_KEPT:
            kept.clear()
        kept[query.filter] = _matching(snapshot, query, folders)
    return kept[query.filter]


def _matching(snapshot: Snapshot, query: Query, folders: Mapping[str, Path]) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    _check_scorer(query, snapshot.scorers)
    table = snapshot.table
    if not len(table):
        return np.array([], np.int64)
    table = table.append_column("place", pa.array(np.arange(len(table))))
    for condition in _conditions(query):
        table = table.filter(condition)
    if query.entity:
        table = table.filter(_naming(table, query.entity))
    if query.text:
        table = table.filter(pa.array(_holding(table, query.text, snapshot, folders)))
    if keys := _sort_keys(query):
        table = table.take(pc.sort_indices(table, sort_keys=keys))  # nulls at the end
    return np.asarray(table["place"])


def _check_scorer(query: Query, scorers: Sequence[str]) -> None:
    if query.scorer and query.scorer not in scorers:
        raise BadQuery(f"no trajectory has a score by {query.scorer!r}; there are {', '.join(scorers) or 'none'}")
    asked = query.score_min is not None or query.score_max is not None or query.sort.startswith("score")
    if asked and not query.scorer:
        raise BadQuery(f"whose score? Choose a scorer: {', '.join(scorers) or 'there are none'}")


def _conditions(query: Query) -> Iterator[pc.Expression]:
    import pyarrow.compute as pc

    def equal(column: str, value: object) -> pc.Expression:
        return pc.field(column).is_null() if value is None else pc.field(column) == value

    if query.run:
        yield pc.field("run").isin(query.run)
    columns = {"kind": "kind", "outcome": "outcome", "finish": "finish_reason", "group": "group_outcome"}
    for name, column in (columns | {"stratum": "stratum", "task": "task_id"}).items():
        if value := getattr(query, name):
            yield equal(column, value)
    if query.answer:
        yield equal("correct", ANSWERS[query.answer])
    if query.claims:
        yield pc.field(query.claims) > 0
    for name, column in (("step", "step"), ("reward", "reward"), ("score", f"score/{query.scorer}")):
        if (low := getattr(query, f"{name}_min")) is not None:
            yield pc.field(column) >= low
        if (high := getattr(query, f"{name}_max")) is not None:
            yield pc.field(column) <= high


def _sort_keys(query: Query) -> list[tuple[str, str]]:
    if query.sort == "log":
        return []
    if query.sort == "latest":
        return [("step", "descending"), ("place", "ascending")]
    name, _, end = query.sort.partition("-")
    column = f"score/{query.scorer}" if name == "score" else name
    return [(column, "descending" if end == "high" else "ascending"), ("place", "ascending")]


def _naming(table: pa.Table, entity: str) -> Any:
    """Which of the rows are of a task that names the entity."""
    import pyarrow as pa

    if "entities" not in table.column_names:
        raise BadQuery("without an entity tree nothing is known of entities; start with --tree FILE")
    return pa.array([entity in names for names in table["entities"].to_pylist()], pa.bool_())


def _holding(table: pa.Table, text: str, snapshot: Snapshot, folders: Mapping[str, Path]) -> np.ndarray:
    """Which of the rows hold the text: files that have such rows are gone through, 1,024 rows at a time."""
    files, rows = np.asarray(table["file"]), np.asarray(table["row"])
    found = np.zeros(len(table), bool)
    for number in np.unique(files):
        file = snapshot.files[number]
        places = np.flatnonzero(files == number)
        found[places] = np.isin(rows[places], list(_rows_holding(folders[file.run], file, text)))
    return found


def _rows_holding(folder: Path, file: LoggedFile, text: str) -> Iterator[int]:
    import pyarrow.compute as pc

    start = 0
    for batch in column_batches(folder, file.step, kind=file.kind, columns=_SEARCHED):
        holds = [pc.match_substring(batch[name], text, ignore_case=True) for name in _SEARCHED]
        either = functools.reduce(pc.or_kleene, holds)  # true or null is true
        yield from (start + place for place in pc.indices_nonzero(either).to_pylist())
        start += len(batch)
