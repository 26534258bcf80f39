"""The trajectory store: one Parquet file a step, every image once under its content hash; written while a run goes on.

    RUN/trajectories/step_000012.parquet    the training trajectories of step 12, one row each
    RUN/trajectories/eval_000010.parquet    the held-out evaluation at step 10
    RUN/images/<sha256>.png                 the images that the rows name

A row holds all that made a trajectory and all that was made of it. DuckDB, pandas, polars and ``datasets`` read the
files without this module; `schema` documents every column, and the files carry that documentation (``medrl schema``
prints it). A file appears whole or not at all, so that whatever kills the writer leaves every completed step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from rl.errors import LogError
from rl.types import EncodedImage, Group, Trajectory
from rollouts.log_rows import (
    Item,
    from_table,
    group_images,
    group_rows,
    image_file,
    row_images,
    rows_group,
    rows_trajectories,
    to_table,
    upgraded,
    with_outcomes,
)
from rollouts.log_schema import READ_VERSIONS, TASK_COLUMNS, UPDATE_KEY, VERSION_KEY, schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "KINDS",
    "LoggedStep",
    "column_batches",
    "drop_steps_from",
    "image_content",
    "iter_rows",
    "logged_steps",
    "read_row",
    "read_step",
    "rescore_step",
    "row_count",
    "schema",
    "step_path",
    "write_step",
]

Kind = Literal["train", "eval"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_PREFIX: Mapping[Kind, str] = {"train": "step", "eval": "eval"}
_ROWS_IN_MEMORY = 1024
_IMAGES_IN_MEMORY = 64
_PARQUET: Mapping[str, Any] = {
    "compression": "zstd",
    "use_dictionary": [*TASK_COLUMNS, "prompt_token_ids.list.element", "completion_token_ids.list.element"],
    # Logprobs are most of a row and hardly repeat; their bytes, split by significance, take a third less.
    "use_byte_stream_split": ["rollout_logprobs.list.element", "learner_logprobs.list.element"],
    "write_page_checksum": True,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedStep:
    """A step as it is kept: its groups, and what training made of each trajectory.

    ``drawn_anew`` has the numbers of the groups that dynamic sampling replaced, so that they were not in the batch.
    The mappings go by trajectory id and may lack any: ``advantages``; ``learner_logprobs``, float32 [completion], NaN
    off the mask; ``micro_batches``, the number of the micro-batch within the step. ``messages`` goes by task id: the
    chat as it was put to the policy. ``update`` is what the optimizer step did, as JSON: its ``stats`` (loss, gradient
    norm …), the digests ``weights_before`` and ``weights_after``, ``ranks`` and ``zero_stage``; it stands in the
    file's metadata under `UPDATE_KEY`.
    """

    step: int
    groups: Sequence[Group]
    kind: Kind = "train"
    drawn_anew: Collection[int] = frozenset()
    advantages: Mapping[str, float] = field(default_factory=dict)
    learner_logprobs: Mapping[str, np.ndarray] = field(default_factory=dict)
    micro_batches: Mapping[str, int] = field(default_factory=dict)
    messages: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    update: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> list[Group]:
        """The groups that the step was made of."""
        return [group for index, group in enumerate(self.groups) if index not in self.drawn_anew]


def step_path(run_dir: Path, step: int, *, kind: Kind = "train") -> Path:
    return run_dir / "trajectories" / f"{_PREFIX[kind]}_{step:06d}.parquet"


def logged_steps(run_dir: Path, *, kind: Kind = "train") -> list[int]:
    """The steps that are there, in order."""
    return sorted(int(path.stem.rpartition("_")[2]) for path in run_dir.glob(f"trajectories/{_PREFIX[kind]}_*.parquet"))


def write_step(run_dir: Path, logged: LoggedStep) -> Path:
    """Write a step, its images first; one of the same kind and number is replaced.

    Raises LogError for what could not be read back as it was: a group without trajectories, an id that occurs twice.
    A lone surrogate, which UTF-8 cannot hold, is kept as U+FFFD.
    """
    table = to_table(_rows(logged))
    if logged.update:
        update = json.dumps(logged.update).encode()
        table = table.replace_schema_metadata(table.schema.metadata | {UPDATE_KEY: update})
    images = {image.sha256: image for group in logged.groups for image in group_images(group)}.values()
    writes = {
        path: partial(_write_bytes, content=image.content)
        for image in images
        if not _is_whole(path := run_dir / image_file(image), size_bytes=len(image.content))
    }
    path = step_path(run_dir, logged.step, kind=logged.kind)
    _put_in_place(writes | {path: partial(_write_table, table=table)})
    return path


def rescore_step(
    run_dir: Path,
    step: int,
    *,
    kind: Kind = "train",
    out: Path,
    score: Callable[[Sequence[Trajectory]], Sequence[Item]],
) -> int:
    """Write a step into the folder ``out`` with the outcomes that ``score`` gives its trajectories, and its images.

    All else stays as it was, to the bit and in order, but for what training made of the former scores, which is left
    out. At most 1,024 rows are in memory; returns their number. Raises LogError as `read_step` does.
    """
    load_image = lru_cache(_IMAGES_IN_MEMORY)(partial(_read_image, run_dir))

    def rescored() -> Iterator[pa.Table]:
        for table in step_tables(run_dir, step, kind=kind):
            rows = from_table(table)
            for file in {entry["file"] for row in rows for entry in row_images(row)}:
                _share_image(run_dir, out, file)
            trajectories = rows_trajectories(rows, load_image=lambda entry: load_image(*entry.values()))
            yield with_outcomes(table, score(trajectories))

    path = step_path(out, step, kind=kind)
    _put_in_place({path: partial(_write_tables, tables=rescored())})
    return row_count(out, step, kind=kind)


def _is_whole(path: Path, *, size_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == size_bytes


def _write_bytes(path: Path, *, content: bytes) -> None:
    path.write_bytes(content)


def _write_table(path: Path, *, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=_ROWS_IN_MEMORY, **_PARQUET)


def _write_tables(path: Path, *, tables: Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema(), **_PARQUET) as writer:
        for table in tables:
            writer.write_table(table)


def _share_image(run_dir: Path, out: Path, file: str) -> None:
    """The image in ``out`` too, without a copy where the file system can."""
    source, target = _image_path(run_dir, file), _image_path(out, file)
    if target.exists() or not source.exists():  # one that is missing is an error once it is read
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return  # another process was faster
    except OSError:
        _put_in_place({target: lambda beside: shutil.copyfile(source, beside)})


def _rows(logged: LoggedStep) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for index, group in enumerate(logged.groups):
        group_outcome = _group_outcome(logged, group)
        for row in group_rows(group):
            name = row["trajectory_id"]
            if name in rows:
                raise LogError(f"step {logged.step} holds two trajectories of the id {name!r}; ids must be unique")
            rows[name] = row | {
                "kind": logged.kind,
                "step": logged.step,
                "group_index": index,
                "drawn_anew": index in logged.drawn_anew,
                "messages": json.dumps(logged.messages[row["task_id"]]) if row["task_id"] in logged.messages else None,
                "group_outcome": group_outcome,
                "advantage": logged.advantages.get(name),
                "micro_batch": logged.micro_batches.get(name),
                "learner_logprobs": logged.learner_logprobs.get(name),
            }
    return list(rows.values())


def _group_outcome(logged: LoggedStep, group: Group) -> str | None:
    """What training made of a group: an evaluation, an import or a replay makes nothing of any."""
    if not logged.advantages:
        return None
    names = [item.trajectory.id for item in group.scored]
    advantages = [logged.advantages[name] for name in names if name in logged.advantages]
    return "trained" if any(advantages) else "no_signal" if advantages else "left_out"


def _put_in_place(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """Let every function fill a file beside its path, see all of them onto the disk, and put them in place in order."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in writes}
    try:
        for path, write in writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(beside[path])
        for aside in beside.values():  # one after the other: the disk is asked to wait once, not once a file
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        for path, aside in beside.items():
            os.replace(aside, path)
    finally:
        for aside in beside.values():
            aside.unlink(missing_ok=True)


def read_step(run_dir: Path, step: int, *, kind: Kind = "train", groups: Collection[int] | None = None) -> LoggedStep:
    """The step as it was written, or the ``groups`` of these numbers alone, without the others in memory.

    Raises LogError for what is missing, damaged or of a later schema.
    """
    with _opened(step_path(run_dir, step, kind=kind)) as file:
        table = file.read() if groups is None else _rows_of_groups(file, groups)
    rows = from_table(table)
    read_image = lru_cache(None)(partial(_read_image, run_dir))

    def load_image(entry: Mapping[str, Any]) -> EncodedImage:
        return read_image(*entry.values())

    def kept(column: str, *, by: str = "trajectory_id") -> dict[str, Any]:
        return {row[by]: row[column] for row in rows if row[column] is not None}

    return LoggedStep(
        step=step,
        kind=kind,
        groups=[rows_group(list(part), load_image=load_image) for _, part in groupby(rows, itemgetter("group_index"))],
        drawn_anew=frozenset(row["group_index"] for row in rows if row["drawn_anew"]),
        advantages=kept("advantage"),
        learner_logprobs=kept("learner_logprobs"),
        micro_batches=kept("micro_batch"),
        messages={name: json.loads(messages) for name, messages in kept("messages", by="task_id").items()},
        update=json.loads((table.schema.metadata or {}).get(UPDATE_KEY, b"{}")),
    )


def _rows_of_groups(file: pq.ParquetFile, groups: Collection[int]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(groups, pa.int32())
    parts = (batch.filter(pc.is_in(batch["group_index"], wanted)) for batch in _batches(file, columns=None))
    return pa.Table.from_batches([part for part in parts if len(part)], schema=file.schema_arrow)


def read_row(run_dir: Path, step: int, number: int, *, kind: Kind = "train") -> dict[str, Any]:
    """One row of a step, counted from 0, as `rollouts.log_rows.from_table` gives it; no other part of the file is read
    than its row group. Raises LogError where the step has no such row, and as `read_step` does."""
    with _opened(step_path(run_dir, step, kind=kind)) as file:
        left = number
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if 0 <= left < rows:
                return from_table(file.read_row_group(group).slice(left, 1))[0]
            left -= rows
        raise LogError(f"{kind} step {step} of {run_dir} has {file.metadata.num_rows} rows; got row {number}")


def step_tables(run_dir: Path, step: int, *, kind: Kind = "train") -> Iterator[pa.Table]:
    """A step's rows as tables of `schema`, at most 1,024 of them in memory."""
    import pyarrow as pa

    with _opened(step_path(run_dir, step, kind=kind)) as file:
        for batch in _batches(file, columns=None):
            yield upgraded(pa.Table.from_batches([batch]))


def row_count(run_dir: Path, step: int, *, kind: Kind = "train") -> int:
    """How many trajectories a step has, read from the file's footer alone."""
    with _opened(step_path(run_dir, step, kind=kind)) as file:
        return int(file.metadata.num_rows)


def iter_rows(
    run_dir: Path, *, kind: Kind = "train", columns: Sequence[str] | None = None, steps: Collection[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Every row in order of the steps, as plain Python values, at most 1,024 of them in memory.

    ``columns`` names columns of `schema`, or parts of nested ones as Parquet does (``scores.list.element.value``).
    """
    for step in logged_steps(run_dir, kind=kind):
        if steps is None or step in steps:
            with _opened(step_path(run_dir, step, kind=kind)) as file:
                for batch in _batches(file, columns=columns):
                    yield from batch.to_pylist()


def column_batches(
    run_dir: Path, step: int, *, kind: Kind = "train", columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Some columns of a step, named as for `iter_rows`, at most 1,024 rows in memory."""
    with _opened(step_path(run_dir, step, kind=kind)) as file:
        yield from _batches(file, columns=columns)


def _batches(file: pq.ParquetFile, *, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    for group in range(file.num_row_groups):  # one at a time: a reader of all keeps what it has read to the end
        yield from file.iter_batches(batch_size=_ROWS_IN_MEMORY, row_groups=[group], columns=columns)


def drop_steps_from(run_dir: Path, step: int) -> None:
    """Remove what was logged from ``step`` on, so that a resumed run leaves no row of the one that it goes on with.

    What a killed writer left beside the steps and the images goes too.
    """
    for aside in (*run_dir.glob("trajectories/.*.parquet.*"), *run_dir.glob("images/.*.*.*")):
        aside.unlink()
    for kind in _PREFIX:
        for logged in logged_steps(run_dir, kind=kind):
            if logged >= step:
                step_path(run_dir, logged, kind=kind).unlink()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file of a step. Whatever is damaged in it, and whenever that is found while it is open, is a LogError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            version = (file.schema_arrow.metadata or {}).get(VERSION_KEY, b"none").decode()
            if version not in map(str, READ_VERSIONS):
                readable = " and ".join(map(str, READ_VERSIONS))
                raise LogError(f"{path} has trajectory schema {version}; this release reads {readable}")
            yield file
    except FileNotFoundError:
        raise LogError(
            f"no trajectories at {path}; there are {sorted(p.name for p in path.parent.glob('*.parquet'))}"
        ) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LogError(f"{path} cannot be read as Parquet: {error}") from error


def _image_path(run_dir: Path, file: str) -> Path:
    return run_dir / "images" / Path(file).name  # the name alone: a log from elsewhere must not point elsewhere


def image_content(run_dir: Path, file: str, *, sha256: str) -> bytes:
    """An image of the store, still encoded. Raises LogError where it is missing or damaged."""
    path = _image_path(run_dir, file)
    if not path.exists():
        raise LogError(f"image {path} is missing from the run's folder")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise LogError(f"image {path} is damaged: its content does not have the hash that names it")
    return content


def _read_image(run_dir: Path, sha256: str, file: str, width: int, height: int, source: str) -> EncodedImage:
    content = image_content(run_dir, file, sha256=sha256)
    return EncodedImage(content=content, width=width, height=height, source=source)
