"""The way from groups to rows of the trajectory store and back; `rollouts.log_schema` says what a row holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from rl.errors import LogError
from rl.types import (
    EncodedImage,
    Evidence,
    Group,
    Measurement,
    Message,
    Observation,
    SamplingParams,
    Score,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    ToolCall,
    Trajectory,
    Unscored,
    fields_of,
)
from rollouts.log_schema import OUTCOME_COLUMNS, TOKEN_DTYPES, TRAINING_COLUMNS, schema

if TYPE_CHECKING:
    import pyarrow as pa

Item = ScoredTrajectory | Unscored
LoadImage = Callable[[Mapping[str, Any]], EncodedImage]
"""Resolves an entry of the ``images`` column."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def group_rows(group: Group) -> Iterator[dict[str, Any]]:
    """A group's rows, the scored before the unscored. Raises LogError for a group without trajectories."""
    if not group.items:
        raise LogError(f"the group of task {group.task.id!r} holds no trajectory and could not be read back")
    task = _task_row(group.task)
    for item in group.items:
        yield task | _trajectory_row(item.trajectory) | _outcome_row(item)


def _task_row(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "stratum": task.stratum,
        "system": task.system,
        "question": task.question,
        "answer": json.dumps(task.answer),
        "record": [{"name": name} | asdict(measurement) for name, measurement in task.record.items()],
        "rubric": json.dumps(task.rubric),
        "reference": json.dumps(task.reference),
        "extra": json.dumps(task.extra),
        "images": [_image_row(image) for image in task.images],
        "follow_ups": [_message_row(message) for message in task.follow_ups] or None,
    }


def _image_row(image: EncodedImage) -> dict[str, Any]:
    return {
        "sha256": image.sha256,
        "file": image_file(image),
        "width": image.width,
        "height": image.height,
        "source": image.source,
    }


def _message_row(message: Message) -> dict[str, Any]:
    return {"text": message.text, "images": [_image_row(image) for image in message.images]}


def _observation_row(observation: Observation) -> dict[str, Any]:
    return _message_row(observation.message) | {"place": observation.place, "role": observation.message.role}


def _trajectory_row(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "trajectory_id": trajectory.id,
        "sample_index": trajectory.sample_index,
        "source": trajectory.source,
        **({} if trajectory.source else _sampled_row(trajectory)),
        "text": trajectory.text,
        "observations": [_observation_row(each) for each in trajectory.observations] or None,
        "finish_reason": trajectory.finish_reason,
        "tool_calls": [asdict(call) | {"arguments": json.dumps(call.arguments)} for call in trajectory.tool_calls],
        "duration_s": (trajectory.duration_s or None) if trajectory.source else trajectory.duration_s,
    }


def _sampled_row(trajectory: Trajectory) -> dict[str, Any]:
    """What only the engine that wrote a trajectory can tell."""
    return {
        "policy_version": trajectory.policy_version,
        "prompt_token_ids": trajectory.prompt_token_ids,
        "completion_token_ids": trajectory.completion_token_ids,
        "completion_mask": trajectory.completion_mask,
        "rollout_logprobs": trajectory.rollout_logprobs,
        "token_versions": trajectory.token_versions,
        "seed": trajectory.seed,
        "sampling": asdict(trajectory.sampling),
    }


def _outcome_row(item: Item) -> dict[str, Any]:
    scores = [_score_row(name, record) for name, record in item.scores.items()]
    if isinstance(item, Unscored):
        return {"outcome": "unscored", "unscored_reason": item.reason, "scores": scores}
    return {"outcome": "scored", "reward": item.reward, "correct": item.correct, "scores": scores}


def _score_row(name: str, record: ScoreRecord) -> dict[str, Any]:
    if name != record.scorer:
        raise LogError(f"the score filed under {name!r} is by scorer {record.scorer!r}; both must be the same name")
    row: dict[str, Any] = {
        "scorer": record.scorer,
        "version": record.version,
        "outcome": record.outcome,
        "outcome_reason": record.reason,
        "duration_s": record.duration_s,
        "inputs": record.inputs,
    }
    if record.score is not None:
        row |= {
            "value": record.score.value,
            "reason": record.score.reason,
            "gate_open": record.score.gate_open,
            "evidence": [fields_of(evidence) for evidence in record.score.evidence],
            "metrics": [{"name": metric, "value": value} for metric, value in record.score.metrics.items()],
        }
    return row


def group_images(group: Group) -> Iterator[EncodedImage]:
    """All that the policy was shown, or would have been had it gone on; an image may occur more than once."""
    yield from group.task.all_images
    for item in group.items:
        yield from item.trajectory.images


def row_images(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The entry of every image that a row names."""
    yield from row["images"]
    for message in (*(row["follow_ups"] or ()), *(row["observations"] or ())):
        yield from message["images"]


def image_file(image: EncodedImage) -> str:
    """Where a run keeps an image, relative to its folder: its content hash and the ending of its format."""
    jpeg = image.content.startswith(b"\xff\xd8\xff")
    return f"images/{image.sha256}.{'jpg' if jpeg else 'png'}"


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of `schema`; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
    import pyarrow as pa

    return pa.Table.from_pylist([_well_formed(row) for row in rows], schema=schema())


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(item) for item in value]
    return value


def with_outcomes(table: pa.Table, items: Sequence[Item]) -> pa.Table:
    """The table's rows with other scores; what training made of the former ones is left out."""
    import pyarrow as pa

    outcomes = to_table([_outcome_row(item) for item in items]).select(OUTCOME_COLUMNS)
    for name in OUTCOME_COLUMNS:
        table = table.set_column(table.schema.get_field_index(name), schema().field(name), outcomes[name])
    for name in TRAINING_COLUMNS:
        column = pa.nulls(len(table), schema().field(name).type)
        table = table.set_column(table.schema.get_field_index(name), schema().field(name), column)
    return table


def upgraded(table: pa.Table) -> pa.Table:
    """The table with every column of `schema`, in its order: a column that an earlier release lacked is null."""
    import pyarrow as pa

    columns = [
        table[field.name].cast(field.type) if field.name in table.schema.names else pa.nulls(len(table), field.type)
        for field in schema()
    ]
    return pa.table(columns, schema=schema())


def from_table(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, its token columns as numpy arrays."""
    table = upgraded(table)
    tokens = {name: _token_arrays(table[name], dtype) for name, dtype in TOKEN_DTYPES.items()}
    rows = table.drop_columns(list(tokens)).to_pylist()
    for index, row in enumerate(rows):
        row.update((name, column[index]) for name, column in tokens.items())
    return rows


def _token_arrays(column: pa.ChunkedArray, dtype: type) -> list[np.ndarray | None]:
    """A column of lists as one array a row, each a copy: one that is kept must not keep the others."""
    lists = column.combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False)
    spans = pairwise(lists.offsets.to_pylist())
    there = lists.is_valid().to_pylist()
    return [values[slice(*span)].astype(dtype) if kept else None for kept, span in zip(there, spans, strict=True)]


def rows_group(rows: Sequence[Mapping[str, Any]], *, load_image: LoadImage) -> Group:
    """The group that `group_rows` made ``rows`` of."""
    trajectories = rows_trajectories(rows, load_image=load_image)
    members = list(zip(rows, trajectories, strict=True))
    return Group(
        task=trajectories[0].task,
        scored=tuple(_scored(row, trajectory) for row, trajectory in members if row["outcome"] == "scored"),
        unscored=tuple(_unscored(row, trajectory) for row, trajectory in members if row["outcome"] == "unscored"),
    )


def rows_trajectories(rows: Sequence[Mapping[str, Any]], *, load_image: LoadImage) -> list[Trajectory]:
    """The trajectories of rows, in order; neighbours of one group share their task."""
    trajectories: list[Trajectory] = []
    for _, part in groupby(rows, itemgetter("group_index")):
        members = list(part)
        task = _task(members[0], load_image=load_image)
        trajectories += [_trajectory(row, task=task, load_image=load_image) for row in members]
    return trajectories


def _task(row: Mapping[str, Any], *, load_image: LoadImage) -> Task:
    return Task(
        id=row["task_id"],
        question=row["question"],
        answer=json.loads(row["answer"]),
        images=tuple(load_image(entry) for entry in row["images"]),
        follow_ups=tuple(_message(entry, load_image=load_image) for entry in row["follow_ups"] or ()),
        system=row["system"],
        record={entry["name"]: Measurement(**_without(entry, "name")) for entry in row["record"]},
        rubric=tuple(json.loads(row["rubric"])),
        reference=json.loads(row.get("reference") or "{}"),
        stratum=row["stratum"],
        extra=json.loads(row["extra"]),
    )


def _message(entry: Mapping[str, Any], *, load_image: LoadImage) -> Message:
    images = tuple(load_image(image) for image in entry["images"])
    return Message(text=entry["text"], images=images, role=entry.get("role") or "user")


def _without(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def _scored(row: Mapping[str, Any], trajectory: Trajectory) -> ScoredTrajectory:
    return ScoredTrajectory(trajectory=trajectory, reward=row["reward"], scores=_scores(row), correct=row["correct"])


def _unscored(row: Mapping[str, Any], trajectory: Trajectory) -> Unscored:
    return Unscored(trajectory=trajectory, scores=_scores(row), reason=row["unscored_reason"])


def _trajectory(row: Mapping[str, Any], *, task: Task, load_image: LoadImage) -> Trajectory:
    source = row["source"] or ""
    return Trajectory(
        id=row["trajectory_id"],
        task=task,
        tool_calls=tuple(map(_tool_call, row["tool_calls"])),
        source=source,
        duration_s=row["duration_s"] or 0.0,
        observations=tuple(
            Observation(message=_message(entry, load_image=load_image), place=entry["place"])
            for entry in row["observations"] or ()
        ),
        **{name: row[name] for name in ("sample_index", "text", "finish_reason")},
        **(_NOT_KNOWN if source else _sampled(row)),
    )


def _tool_call(entry: Mapping[str, Any]) -> ToolCall:
    known = {name: each for name, each in entry.items() if each is not None}  # older logs do not say the turn
    return ToolCall(**known | {"arguments": json.loads(entry["arguments"])})


def _sampled(row: Mapping[str, Any]) -> dict[str, Any]:
    same = ("prompt_token_ids", "completion_token_ids", "completion_mask", "rollout_logprobs", "policy_version", "seed")
    sampling = row["sampling"]
    return {name: row[name] for name in same} | {
        "sampling": SamplingParams(**sampling | {"stop": tuple(sampling["stop"])}),
        "later_versions": _later_versions(row["token_versions"]),
    }


def _later_versions(token_versions: np.ndarray | None) -> tuple[tuple[int, int], ...]:
    """Where versions change. Older logs do not say: one version wrote each of their completions."""
    if token_versions is None:
        return ()
    return tuple((int(place), int(token_versions[place])) for place in np.flatnonzero(np.diff(token_versions)) + 1)


def imported(**fields: Any) -> Trajectory:
    """A trajectory of another system, without what its log does not say."""
    return Trajectory(**{**_NOT_KNOWN, **fields})


_NOT_KNOWN: Mapping[str, Any] = {
    name: np.array([], dtype=TOKEN_DTYPES[name])
    for name in ("prompt_token_ids", "completion_token_ids", "completion_mask", "rollout_logprobs")
} | {"policy_version": -1, "seed": -1, "sampling": SamplingParams()}


def _scores(row: Mapping[str, Any]) -> dict[str, ScoreRecord]:
    return {entry["scorer"]: _score_record(entry) for entry in row["scores"]}


def _score_record(entry: Mapping[str, Any]) -> ScoreRecord:
    score = None
    if entry["outcome"] == "scored":
        score = Score(
            entry["value"],
            reason=entry["reason"],
            evidence=tuple(Evidence(**evidence) for evidence in entry["evidence"]),
            gate_open=entry["gate_open"],
            metrics={metric["name"]: metric["value"] for metric in entry["metrics"]},
        )
    return ScoreRecord(
        scorer=entry["scorer"],
        version=entry["version"],
        outcome=entry["outcome"],
        score=score,
        reason=entry["outcome_reason"],
        duration_s=entry["duration_s"],
        inputs=entry["inputs"] or "",  # null in a log from before it was kept
    )
