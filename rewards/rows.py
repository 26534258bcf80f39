"""A completion and its task as one JSON object, a *row*: what the designer's tools read and the HTTP service takes.

    {"id": "1", "question": "…", "completion": "…<answer>B</answer>", "answer": {"type": "choice", "value": "B"}}

``row.schema.json`` describes every key. Nothing in a row is trusted: sizes and depth are bounded, and a path of an
image is followed only where the caller names the folder that it starts from.
"""

from __future__ import annotations

import base64
import binascii
import functools
import importlib.resources
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from entities.reference import read_reference
from rl.errors import TaskError
from rl.plugins import suggestion
from rl.types import (
    TURN_BREAK,
    EncodedImage,
    Measurement,
    Message,
    Observation,
    Outcome,
    SamplingParams,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    ToolCall,
    Trajectory,
    Unscored,
    fields_of,
)

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

MAX_ROW_BYTES = 1 << 26
MAX_IMAGE_BYTES = 1 << 25
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
Parsed = TypeVar("Parsed")
_GRAVEST_FIRST: tuple[Outcome, ...] = ("failed", "invalid_input", "abstained")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file with their line numbers, one in memory at a time; empty lines are passed over.

    Raises TaskError with ``file:line`` for a row that is no JSON object of the schema.
    """
    return read_lines(path, parse_row)


def read_lines(path: Path, parse: Callable[[bytes], Parsed]) -> Iterator[tuple[int, Parsed]]:
    """What ``parse`` makes of each line that is not empty; the ValueError that it raises becomes a TaskError with
    ``file:line``."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES + 1), b""), start=1):
                if line.strip():
                    try:
                        yield number, parse(line)
                    except ValueError as error:
                        raise TaskError(f"{path}:{number}: {error}") from error
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error


def check_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same, to be gone through before any row is scored: also raises TaskError for an id that occurs twice, and for
    a file without rows. What it keeps in memory is the ids."""
    lines: dict[str, int] = {}
    for number, row in read_rows(path):
        if first := lines.get(row["id"]):
            raise TaskError(
                f"{path}:{number}: the id {row['id']!r} was used on line {first}; every row needs an id of its own"
            )
        lines[row["id"]] = number
        yield number, row
    if not lines:
        raise TaskError(f"{path} holds no row")


def parse_row(line: bytes | str) -> dict[str, Any]:
    """One row from its JSON. Raises ValueError that says what is wrong with it, what was got and what is allowed."""
    row: dict[str, Any] = load_json(line)
    check_row(row)
    return row


def load_json(content: bytes | str) -> Any:
    """JSON as the standard has it: no NaN, no number beyond a double, no key twice. Raises ValueError."""
    if len(content) > MAX_ROW_BYTES:
        raise ValueError(f"more than {MAX_ROW_BYTES >> 20} MiB")
    try:
        return json.loads(content, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unrepeated)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_row(row: Any) -> None:
    """Raise ValueError where a row does not have the shape of ``row.schema.json``."""
    error = min(_validator().iter_errors(row), key=lambda error: len(error.absolute_path), default=None)
    if error is not None:
        raise ValueError(_described(error))
    read_reference(row.get("reference", {}))


def row_trajectory(row: Mapping[str, Any], *, image_folder: Path | None = None) -> Trajectory:
    """The trajectory of a row that `check_row` has passed.

    Without ``length_tokens`` it has no tokens (`Trajectory.length_tokens` is 0). A lone surrogate, which UTF-8 cannot
    hold, becomes U+FFFD in the completion, as it does in the trajectory store. Raises ValueError for an image that is
    missing, damaged, too large, or named by path where there is no ``image_folder``, and for a call by a turn that
    there is not.
    """
    length = row.get("length_tokens", 0)
    observations = _observations(row, image_folder)
    said = tuple(each.message for each in observations if each.message.role == "user")
    task = replace(_task(row, image_folder=image_folder), follow_ups=said)
    return Trajectory(
        id=row["id"],
        task=task,
        sample_index=0,
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        completion_token_ids=np.zeros(length, dtype=np.int32),
        completion_mask=np.ones(length, dtype=bool),
        rollout_logprobs=np.zeros(length, dtype=np.float32),
        text=TURN_BREAK.join(_turns(row)),
        finish_reason=row.get("finish_reason", "stop"),
        policy_version=0,
        seed=0,
        sampling=SamplingParams(max_tokens=row["max_tokens"]) if "max_tokens" in row else SamplingParams(),
        tool_calls=_tool_calls(row),
        observations=observations,
    )


def _turns(row: Mapping[str, Any]) -> list[str]:
    turns = [row["completion"], *(each["completion"] for each in row.get("turns", ()))]
    return [_LONE_SURROGATE.sub("\ufffd", turn) for turn in turns]


def _observations(row: Mapping[str, Any], folder: Path | None) -> tuple[Observation, ...]:
    """What was said before each of the further ``turns``, where the turns before it end in the text."""
    ends = itertools.accumulate(len(turn) + len(TURN_BREAK) for turn in _turns(row))
    return tuple(
        Observation(message=_message(each, folder), place=end - len(TURN_BREAK))
        for each, end in zip(row.get("turns", ()), ends, strict=False)
    )


def _message(turn: Mapping[str, Any], folder: Path | None) -> Message:
    role: Literal["user", "tool"] = "user" if "user" in turn else "tool"
    return Message(text=turn[role], images=tuple(_image(entry, folder) for entry in turn.get("images", ())), role=role)


def _tool_calls(row: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    calls = tuple(ToolCall(**{"arguments": {}} | call) for call in row.get("tool_calls", ()))
    turns = len(_turns(row))
    for index, call in enumerate(calls):
        if call.turn >= turns:
            raise ValueError(f"tool_calls[{index}].turn must be < {turns}, the number of turns; got {call.turn}")
    return calls


def score_row(scored: ScoredTrajectory | Unscored) -> dict[str, Any]:
    """What a trajectory got: ``{"id", "outcome", "reward", "scores": {name: {"value", "outcome", …}}}``.

    Each score comes with its provenance: ``version`` (of the scorer's code and config), ``inputs`` (a hash of what was
    read; both empty where a log does not say) and ``duration_s`` (0 where the score was there already).

    The outcome is ``scored`` where there is a reward; where there is none, ``reward`` is null and the outcome is the
    gravest among the scores.
    """
    outcome: Outcome = "scored"
    if isinstance(scored, Unscored):
        said = {record.outcome for record in scored.scores.values()}
        outcome = next((grave for grave in _GRAVEST_FIRST if grave in said), "failed")
    return {
        "id": scored.trajectory.id,
        "outcome": outcome,
        "reward": scored.reward if isinstance(scored, ScoredTrajectory) else None,
        "scores": {name: _score_entry(record) for name, record in scored.scores.items()},
    }


def _score_entry(record: ScoreRecord) -> dict[str, Any]:
    score = record.score
    return {
        "value": None if score is None else score.value,
        "outcome": record.outcome,
        "reason": record.reason if score is None else score.reason,
        "evidence": [] if score is None else [fields_of(each) for each in score.evidence],
        "version": record.version,
        "inputs": record.inputs,
        "duration_s": round(record.duration_s, 6),
    }


def _task(row: Mapping[str, Any], *, image_folder: Path | None) -> Task:
    return Task(
        id=row.get("task_id", row["id"]),
        question=row["question"],
        answer=row["answer"],
        images=tuple(_image(entry, image_folder) for entry in row.get("images", ())),
        system=row.get("system", ""),
        record={name: _measurement(name, entry) for name, entry in row.get("record", {}).items()},
        rubric=tuple(row.get("rubric", ())),
        reference=row.get("reference", {}),
        stratum=row.get("stratum", ""),
        extra=row.get("extra", {}),
    )


def _measurement(name: str, entry: Any) -> Measurement:
    fields = entry if isinstance(entry, Mapping) else {"value": entry}
    try:
        return Measurement(**{**fields, "value": float(fields["value"])})
    except OverflowError as error:
        raise ValueError(f"record.{name}: the number is too large") from error


def _image(entry: str | Mapping[str, str], folder: Path | None) -> EncodedImage:
    if isinstance(entry, str):
        if folder is None:
            raise ValueError(f"images: send the content as {{'base64': …}}; got the path {entry[:100]!r}")
        return _checked_image(_file_content(folder / entry), source=str(folder / entry))
    try:
        content = base64.b64decode(entry["base64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"images: not base64: {error}") from error
    return _checked_image(content, source="")


def _file_content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ValueError(f"images: {str(path)!r} cannot be read: {getattr(error, 'strerror', error)}") from error


def _checked_image(content: bytes, *, source: str) -> EncodedImage:
    """The image with its size, read off its header: scorers look at sizes, not at pixels."""
    from PIL import Image

    named = source or "the image"
    if len(content) > MAX_IMAGE_BYTES:
        raise ValueError(f"images: {named} is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    try:
        with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"images: {named} is no PNG or JPEG that can be read") from error
    return EncodedImage(content=content, width=width, height=height, source=source)


@functools.cache
def _validator() -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # .15 s: only where rows are read

    schema = importlib.resources.files(__package__).joinpath("row.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(schema))


def _described(error: ValidationError) -> str:
    place = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in error.absolute_path).lstrip(".")
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        allowed = list(error.schema["properties"])  # type: ignore[index]  # a schema of ours, never a boolean
        unknown = next(str(key) for key in error.instance if key not in allowed)
        said = f"unknown key {unknown!r}; allowed: {', '.join(allowed)}" + suggestion(unknown, allowed)
        return f"{place}: {said}" if place else f"{said} (further columns go under `extra`)"
    if error.validator == "oneOf":
        return f"{place}: takes what was said before it under one of the keys `user` and `tool`"
    said = error.message if len(error.message) <= 200 else f"{error.message[:200]} …"
    return f"{place}: {said}" if place else said


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; a number must be finite")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:40]} is too large")
    return number


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} stands there twice")
    return fields
