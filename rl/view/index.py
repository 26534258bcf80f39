"""What trajectories are filtered and sorted by, of several runs at once. Their texts and tokens stay on the disk.

A file of the store never changes once it is there: each is read once, and what a training run adds meanwhile is read
with the next request.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entities.tree import EntityTree
from rl.errors import LogError
from rollouts.log import KINDS, Kind, column_batches, logged_steps, step_path

if TYPE_CHECKING:
    import pyarrow as pa

_FILTERED = (
    "kind", "step", "group_index", "sample_index", "trajectory_id", "task_id", "stratum", "finish_reason", "outcome",
    "reward", "correct", "group_outcome", "advantage",
)  # fmt: skip
_SCORES = tuple(
    f"scores.list.element.{name}"
    for name in ("scorer", "value", "metrics.list.element.name", "metrics.list.element.value")
)
COUNTED = ("refuted", "unsupported")
"""Verdicts whose claims are counted, by the metrics of the scorers that check claims."""
_MOST_CHOICES = 500


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """One file of the store of a run; ``written`` and ``size_bytes`` tell it from a later one of the same name."""

    run: str
    kind: Kind
    step: int
    written: int
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Every trajectory that was there at one moment, a row each, in order of runs, kinds, steps and rows.

    ``table`` has the columns that are filtered by, ``run``, ``file`` (the number among ``files``), ``row`` (the number
    within the file), ``score/<scorer>``, a count for each verdict of `COUNTED` and, where there is a tree, the
    ``entities`` that the task names. ``notes`` say which files could not be read. ``matched`` keeps
    what was found in it, by query.
    """

    table: pa.Table
    files: tuple[LoggedFile, ...]
    notes: tuple[str, ...]
    matched: dict[Any, np.ndarray] = field(default_factory=dict)
    _choices: dict[str, list[str]] = field(default_factory=dict)

    @property
    def scorers(self) -> list[str]:
        return [name.removeprefix("score/") for name in self.table.column_names if name.startswith("score/")]

    def choices(self, column: str) -> list[str]:
        """The values of a column of text, sorted; the first of them where they are too many to choose from."""
        if column not in self._choices:
            self._choices[column] = self._distinct(column)
        return self._choices[column]

    def _distinct(self, column: str) -> list[str]:
        import pyarrow.compute as pc

        if column not in self.table.column_names:
            return []
        values = self.table[column]
        values = pc.list_flatten(values) if column == "entities" else values
        return sorted(value for value in pc.unique(values).to_pylist() if value)[:_MOST_CHOICES]


class TrajectoryIndex:
    """The snapshot of the moment, kept up to date file by file. Threads may share it."""

    def __init__(self, runs: Mapping[str, Path], *, tree: EntityTree | None = None) -> None:
        self.runs = runs
        self._tree = tree
        self._named: dict[tuple[str, str], list[str]] = {}
        self._read: dict[LoggedFile, pa.Table | LogError] = {}
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def snapshot(self) -> Snapshot:
        """All that lies in the folders now."""
        with self._lock:
            there = list(self._files())
            if self._snapshot is None or there != list(self._read):
                self._read = {file: self._read[file] if file in self._read else self._load(file) for file in there}
                self._snapshot = _snapshot(self._read)
            return self._snapshot

    def _files(self) -> Iterator[LoggedFile]:
        for run, folder in self.runs.items():
            for kind in KINDS:
                for step in logged_steps(folder, kind=kind):
                    try:
                        stat = step_path(folder, step, kind=kind).stat()
                    except FileNotFoundError:  # a resumed run has just dropped it
                        continue
                    yield LoggedFile(run, kind, step, stat.st_mtime_ns, stat.st_size)

    def _load(self, file: LoggedFile) -> pa.Table | LogError:
        try:
            return self._columns(file)
        except LogError as error:
            return error

    def _columns(self, file: LoggedFile) -> pa.Table:
        import pyarrow as pa

        folder = self.runs[file.run]
        columns = [*_FILTERED, *_SCORES]
        batches = list(column_batches(folder, file.step, kind=file.kind, columns=columns))
        if not batches:
            raise LogError(f"{step_path(folder, file.step, kind=file.kind)} holds no trajectory")
        table = pa.Table.from_batches(batches)
        scores = table["scores"].combine_chunks()
        table = table.drop_columns(["scores"]).replace_schema_metadata(None)
        rows = len(table)
        added: dict[str, Any] = {"run": [file.run] * rows, "row": np.arange(rows, dtype=np.int32)}
        added |= _score_columns(scores, rows=rows)
        if self._tree is not None:
            added["entities"] = self._entities(file, table["task_id"].to_pylist())
        for name, column in added.items():
            table = table.append_column(name, pa.array(column))
        return table

    def _entities(self, file: LoggedFile, tasks: list[str]) -> Any:
        """The names of the entities that each row's question or reference answer names; a task is read once."""
        import pyarrow as pa

        keys = [(file.run, task) for task in tasks]
        if not self._named.keys() >= set(keys):
            columns = ["task_id", "question", "answer"]
            for batch in column_batches(self.runs[file.run], file.step, kind=file.kind, columns=columns):
                for task, question, answer in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                    if (file.run, task) not in self._named:
                        self._named[file.run, task] = self._names_in(f"{question}\n{answer}")
        return pa.array([self._named[key] for key in keys], pa.list_(pa.string()))

    def _names_in(self, text: str) -> list[str]:
        assert self._tree is not None
        return sorted({self._tree.entities[mention.entity_id].name for mention in self._tree.find(text)})


def _snapshot(read: Mapping[LoggedFile, pa.Table | LogError]) -> Snapshot:
    import pyarrow as pa

    tables = {file: table for file, table in read.items() if not isinstance(table, LogError)}
    notes = tuple(str(error) for error in read.values() if isinstance(error, LogError))
    if not tables:
        return Snapshot(pa.table({}), (), notes)
    table = pa.concat_tables(tables.values(), promote_options="default").combine_chunks()
    numbers = np.repeat(np.arange(len(tables), dtype=np.int32), [len(each) for each in tables.values()])
    return Snapshot(table.append_column("file", pa.array(numbers)), tuple(tables), notes)


def _score_columns(scores: Any, *, rows: int) -> dict[str, Any]:
    """A column of values for each scorer, null where it gave none, and one of counts for each verdict of `COUNTED`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    entries, parents = pc.list_flatten(scores), np.asarray(pc.list_parent_indices(scores))
    metrics = pc.struct_field(entries, "metrics")
    counted_in = parents[np.asarray(pc.list_parent_indices(metrics))]
    counts = pc.list_flatten(metrics)
    columns: dict[str, Any] = {}
    for scorer, places, values in _by_name(entries, "scorer"):
        column = np.full(rows, np.nan)
        column[parents[places]] = values
        columns[f"score/{scorer}"] = pa.array(column, from_pandas=True)  # NaN is null
    for verdict in COUNTED:
        columns[verdict] = np.zeros(rows, np.int32)
    for metric, places, values in _by_name(counts, "name"):
        if metric in COUNTED:
            np.maximum.at(columns[metric], counted_in[places], np.nan_to_num(values).astype(np.int32))
    return columns


def _by_name(entries: Any, key: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The entries of each name: where they stand, and their values, NaN where there is none."""
    import pyarrow.compute as pc

    names = pc.struct_field(entries, key).dictionary_encode()
    values = np.asarray(pc.struct_field(entries, "value"))
    codes = np.asarray(names.indices)
    for code, name in enumerate(names.dictionary.to_pylist()):
        places = np.flatnonzero(codes == code)
        yield name, places, values[places]
