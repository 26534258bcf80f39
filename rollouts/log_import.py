"""Logs of other systems → the trajectory store, so that they can be re-scored, compared and read like a run's own.

    openai     JSONL of chats: ``messages``, the answer last or in ``choices`` as the API returns it, and where given
               ``id``, ``answer``, ``reward``
    verl       the dumps of ``trainer.rollout_data_dir`` and ``trainer.validation_data_dir``, one JSONL a step:
               ``input``, ``output``, ``score``, ``step``, ``gts`` (absent from older ones), and a column for each
               further thing that the reward function returned
    verifiers  ``results.jsonl`` of an evaluation: ``example_id``, ``prompt``, ``completion``, ``reward``, and where
               there are any ``answer``, ``info``, ``task``, ``metrics``, ``is_truncated``, ``timing``, ``error``

None of them has the tokens, the seed or the sampling parameters of a completion: those columns are null (see
`rl.types.Trajectory.source`). The other system's verdict becomes the reward, and one score under the format's name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from rl.errors import LogError, TaskError
from rl.types import FinishReason, Group, Score, ScoredTrajectory, ScoreRecord, Task, Trajectory, Unscored
from rollouts.log import Kind, LoggedStep, write_step
from rollouts.log_chats import CHAT_SCHEMA, Chat, read_chat, split_chat
from rollouts.log_rows import imported

Format = Literal["openai", "verl", "verifiers"]
FORMATS: tuple[Format, ...] = get_args(Format)
VERSION = "imported"
"""Stands for a scorer's version, which another system's log does not say."""

_GROUPS_PER_STEP = 256  # of formats without steps: a step is what a replay hands to one process


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rollout:
    """One row of another system's log.

    ``reward`` is None where it has none; ``numbers`` and ``remarks`` are what else it says of the completion.
    """

    chat: Chat
    id: str = ""
    step: int | None = None
    answer: Any = None
    reward: float | None = None
    numbers: Mapping[str, float]
    remarks: Mapping[str, Any]
    finish_reason: FinishReason = "unknown"
    stratum: str = ""
    extra: Mapping[str, Any]
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """How much was imported, and of each row that was left out where it stands and why."""

    trajectories: int = 0
    groups: int = 0
    steps: int = 0
    left_out: tuple[str, ...] = ()


def import_log(
    sources: Sequence[Path],
    out: Path,
    *,
    format: Format,
    kind: Kind | None = None,
    answer_type: str = "text",
    skip_malformed: bool = False,
) -> Imported:
    """Read JSONL files, or folders of them, into the new run folder ``out``.

    Rollouts with the same prompt and answer within a step are a group. ``answer_type`` is the ``type`` of reference
    answers that do not say their own; ``kind`` is what the rollouts were for, training for verl and evaluation for the
    others where None. One step is in memory at a time, of formats without steps one file. Raises LogError, naming file
    and line, for the first row that does not fit, and leaves no ``out`` then; with ``skip_malformed`` such rows are
    left out, and ``import.json`` lists them.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LogError(f"{out} already exists; name a new folder")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    kind = kind or ("train" if format == "verl" else "eval")
    done: dict[int, Path] = {}
    total = Imported()
    left_out: list[str] = []
    rollouts_of = partial(_rollouts, format=format, left_out=left_out if skip_malformed else None)
    try:
        for file in _files(sources):
            for step, groups in _steps(rollouts_of(file), first=len(done)).items():
                if step in done:
                    raise LogError(f"{file} holds step {step}, which {done[step]} holds too; import one of them")
                done[step] = file
                _write(beside, groups, step=step, kind=kind, format=format, answer_type=answer_type)
                total = Imported(
                    trajectories=total.trajectories + sum(map(len, groups)),
                    groups=total.groups + len(groups),
                    steps=total.steps + 1,
                )
        if not total.trajectories:
            why = f"; {len(left_out):,} rows are malformed, the first: {left_out[0]}" if left_out else ""
            raise LogError(f"there are no rollouts in {', '.join(map(str, sources))}{why}")
        record = {"format": format, "files": [str(source.resolve()) for source in sources], "left_out": left_out}
        (beside / "import.json").write_text(json.dumps(record, indent=1) + "\n")
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return replace(total, left_out=tuple(left_out))


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    for source in sources:
        if source.is_dir():
            yield from sorted(source.glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem))  # 9 before 10
        elif source.is_file():
            yield source
        else:
            raise LogError(f"there is no file or folder {source} to import")


def _rollouts(file: Path, *, format: Format, left_out: list[str] | None) -> Iterator[_Rollout]:
    """The rollouts of a file. A row that is none goes into ``left_out``, or is a LogError where that is None."""
    read, schema = _FORMATS[format]
    validator = Draft202012Validator(schema)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_refuse, parse_float=_double, parse_int=_whole)
                if (fault := best_match(validator.iter_errors(row))) is not None:
                    where = ".".join(map(str, fault.absolute_path))
                    raise ValueError(f"{where}{': ' if where else ''}{fault.message[-200:]}")
                rollouts = list(read(row))
            except (ValueError, RecursionError, TaskError) as error:
                complaint = f"{file}:{number}: {error}"
                if left_out is None:
                    raise LogError(complaint) from None
                left_out.append(complaint)
            else:
                yield from rollouts


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _double(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:40]} is too large")
    return number


def _whole(digits: str) -> int:
    _double(digits)  # so that it can be a score or a metric
    return int(digits)


def _steps(rollouts: Iterator[_Rollout], *, first: int) -> dict[int, list[list[_Rollout]]]:
    """Groups by step: that of the rows, or `_GROUPS_PER_STEP` groups to each from ``first`` on."""
    groups: dict[Any, list[_Rollout]] = {}
    for rollout in rollouts:
        asked = (rollout.chat.system, rollout.chat.question, [image.sha256 for image in rollout.chat.images])
        key = (rollout.step, json.dumps([*asked, rollout.answer, rollout.stratum], sort_keys=True))
        groups.setdefault(key, []).append(rollout)
    steps: dict[int, list[list[_Rollout]]] = {}
    for index, ((step, _), group) in enumerate(groups.items()):
        steps.setdefault(first + index // _GROUPS_PER_STEP if step is None else step, []).append(group)
    return steps


def _write(
    out: Path, groups: Sequence[list[_Rollout]], *, step: int, kind: Kind, format: Format, answer_type: str
) -> None:
    written, messages = [], {}
    for index, rollouts in enumerate(groups):
        name = f"{format}-{step:06d}-{index:04d}"
        task = _task(rollouts[0], name=name, answer_type=answer_type)
        items = [
            _item(rollout, task=task, index=sample, source=format, id=rollout.id or f"{name}/{sample}")
            for sample, rollout in enumerate(rollouts)
        ]
        written.append(
            Group(
                task=task,
                scored=tuple(item for item in items if isinstance(item, ScoredTrajectory)),
                unscored=tuple(item for item in items if isinstance(item, Unscored)),
            )
        )
        if (prompt := rollouts[0].chat.messages) is not None:
            messages[task.id] = prompt
    write_step(out, LoggedStep(step=step, kind=kind, groups=written, messages=messages))


def _task(rollout: _Rollout, *, name: str, answer_type: str) -> Task:
    chat, answer = rollout.chat, rollout.answer
    if answer is None:
        answer = {}
    elif not isinstance(answer, dict) or "type" not in answer:
        answer = {"type": answer_type, "value": answer}
    return Task(
        id=name,
        question=chat.question,
        answer=answer,
        images=chat.images,
        system=chat.system,
        stratum=rollout.stratum,
        extra=rollout.extra,
    )


def _item(rollout: _Rollout, *, task: Task, index: int, source: Format, id: str) -> ScoredTrajectory | Unscored:
    trajectory: Trajectory = imported(
        id=id,
        task=task,
        sample_index=index,
        text=rollout.chat.text,
        finish_reason=rollout.finish_reason,
        tool_calls=rollout.chat.tool_calls,
        duration_s=rollout.duration_s,
        source=source,
        observations=rollout.chat.observations,
    )
    record = _record(rollout, source)
    if rollout.reward is None:
        return Unscored(trajectory=trajectory, scores={source: record}, reason=record.reason)
    return ScoredTrajectory(trajectory=trajectory, reward=rollout.reward, scores={source: record})


def _record(rollout: _Rollout, source: Format) -> ScoreRecord:
    """What the other system said of a rollout; a number that no score can be stands in the reason."""
    remarks = json.dumps(rollout.remarks) if rollout.remarks else ""
    if rollout.reward is None:
        reason = f"{source} gave no reward. {remarks}".strip()
        return ScoreRecord(scorer=source, version=VERSION, outcome="failed", reason=reason)
    if not 0.0 <= rollout.reward <= 1.0:
        reason = (
            f"a reward of {rollout.reward:g} is no score in [0, 1]. {json.dumps(rollout.numbers)} {remarks}".strip()
        )
        return ScoreRecord(scorer=source, version=VERSION, outcome="invalid_input", reason=reason)
    score = Score(rollout.reward, reason=remarks, metrics=rollout.numbers)
    return ScoreRecord(scorer=source, version=VERSION, outcome="scored", score=score)


def _openai(row: Mapping[str, Any]) -> Iterator[_Rollout]:
    others = {key: value for key, value in row.items() if key not in ("id", "messages", "choices", "answer", "reward")}
    numbers, extra = _told_apart(others)
    name = str(row.get("id", ""))
    if "choices" in row:
        completions: list[Any] = [
            ([choice["message"]], _finish(choice.get("finish_reason"))) for choice in row["choices"]
        ]
        prompt = row["messages"]
    else:
        prompt, answer = split_chat(row["messages"])
        completions = [(answer, _finish(row.get("finish_reason")))]
    for index, (completion, finish_reason) in enumerate(completions):
        yield _Rollout(
            chat=read_chat(prompt, completion),
            id=f"{name}/{index}" if name and len(completions) > 1 else name,
            answer=row.get("answer"),
            reward=row.get("reward"),
            numbers=numbers,
            remarks={},
            finish_reason=finish_reason,
            extra=extra,
        )


def _verl(row: Mapping[str, Any]) -> Iterator[_Rollout]:
    told = {key: value for key, value in row.items() if key not in ("input", "output", "gts", "score", "step")}
    numbers, remarks = _told_apart(told)
    yield _Rollout(
        chat=read_chat(row["input"], row["output"]),
        step=int(row["step"]),  # JSON Schema takes 3.0 for an integer too
        answer=row.get("gts"),
        reward=row["score"],
        numbers=numbers,
        remarks=remarks,
        extra={},
    )


def _verifiers(row: Mapping[str, Any]) -> Iterator[_Rollout]:
    error = row.get("error")
    kept = {"stop_condition": row.get("stop_condition"), "error": error}
    info = row.get("info") or {}
    yield _Rollout(
        chat=read_chat(row["prompt"], row["completion"] or ""),
        answer=row.get("answer"),
        reward=None if error else row["reward"],
        numbers=row.get("metrics") or {},
        remarks={key: value for key, value in kept.items() if value},
        finish_reason={True: "length", False: "stop", None: "unknown"}[row.get("is_truncated")],  # type: ignore[arg-type]
        stratum=row.get("task") or "",
        extra={"example_id": row["example_id"]} | (info if isinstance(info, dict) else {"info": info}),
        duration_s=(row.get("timing") or {}).get("generation_ms", 0.0) / 1000,
    )


def _finish(reason: str | None) -> FinishReason:
    return reason if reason in ("stop", "length") else "unknown"  # type: ignore[return-value]


def _told_apart(columns: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers and truth values, and the rest of what is not null."""
    numbers = {key: float(value) for key, value in columns.items() if isinstance(value, int | float)}
    return numbers, {key: value for key, value in columns.items() if key not in numbers and value is not None}


def _row(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": {**required, **optional}}


_TEXT, _NUMBER, _NAME = {"type": "string"}, {"type": "number"}, {"type": ["string", "integer"]}
_CHOICE = _row({"message": CHAT_SCHEMA["items"]}, finish_reason={"type": ["string", "null"]})
_FORMATS: Mapping[Format, tuple[Callable[[Mapping[str, Any]], Iterator[_Rollout]], Mapping[str, Any]]] = {
    "openai": (
        _openai,
        _row(
            {"messages": {**CHAT_SCHEMA, "minItems": 1}},
            choices={"type": "array", "minItems": 1, "items": _CHOICE},
            id=_NAME,
            reward={"type": ["number", "null"]},
            finish_reason={"type": ["string", "null"]},
        ),
    ),
    "verl": (
        _verl,
        _row(
            {
                "input": _TEXT,
                "output": _TEXT,
                "score": _NUMBER,
                "step": {"type": "integer", "minimum": 0, "maximum": 10**9},
            }
        ),
    ),
    "verifiers": (
        _verifiers,
        _row(
            {
                "example_id": _NAME,
                "prompt": {"anyOf": [_TEXT, CHAT_SCHEMA]},
                "completion": {"anyOf": [_TEXT, CHAT_SCHEMA, {"type": "null"}]},
                "reward": {"type": ["number", "null"]},
            },
            task={"type": ["string", "null"]},
            metrics={"type": ["object", "null"], "additionalProperties": _NUMBER},
            is_truncated={"type": ["boolean", "null"]},
            timing={"type": ["object", "null"], "properties": {"generation_ms": _NUMBER}},
        ),
    ),
}
"""How a row is read, and the form that it must have."""
