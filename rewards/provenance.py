"""Where a score comes from: a hash of the code and parameters that made it, and one of what they were given to read."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from rewards.scorer import Scorer, Trajectory, Turns
from rl.types import Message, ToolCall

_CODE = (".py", ".yaml", ".schema.json")


def version_of(scorer: Scorer, *, turns: Turns | None = None) -> str:
    """A hash, 12 hex digits, of the code that makes the score, its libraries' versions and the scorer's parameters.

    A file that a parameter names counts with its content, not its place, so that the version is the same elsewhere.
    The YAML and the JSON Schema that stand beside a module under the same name are part of its code. So is what cuts a
    trajectory into turns, where the scorer reads single ones; ``turns`` None is what the scorer says itself.
    """
    turns = turns or scorer.turns
    digest = hashlib.sha256()
    modules = {cls.__module__ for cls in type(scorer).__mro__ if issubclass(cls, Scorer)} | set(scorer.sources())
    if turns != "all":
        modules.add("rewards.turns")
        digest.update(turns.encode())
    for module in sorted(modules):
        for file in _source_files(module):
            digest.update(file.read_bytes())
    digest.update(json.dumps({each: _installed(each) for each in sorted(scorer.libraries)}).encode())
    parameters = {each.name: getattr(scorer, each.name) for each in dataclasses.fields(scorer)}
    digest.update(f"{type(scorer).__qualname__}{json.dumps(parameters, sort_keys=True, default=_hashable)}".encode())
    return digest.hexdigest()[:12]


def _hashable(value: Any) -> Any:
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else str(value)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [each for each in dataclasses.fields(value) if each.metadata.get("versioned", True)]
        return {each.name: getattr(value, each.name) for each in fields}
    return repr(value)


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""  # the import that needs it says so


def _source_files(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return []
    file = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return [each for each in map(file.with_suffix, _CODE) if each.is_file()] or [file]
    return sorted(each for suffix in _CODE for each in file.parent.rglob(f"*{suffix}"))


def inputs_of(trajectory: Trajectory) -> str:
    """A hash, 32 hex digits, of all that a score may depend on: the task, and what was written for it.

    Images count with their content. Ids of trajectories, seeds, policy versions, log probabilities and times are left
    out: a score that depended on them would not be one of the text. The same after a way through the trajectory store.
    """
    task = trajectory.task
    content = {
        "task": [task.id, task.question, task.system, task.stratum, task.answer, task.rubric, task.extra],
        "reference": task.reference,
        "record": {name: dataclasses.astuple(measurement) for name, measurement in task.record.items()},
        "images": [image.sha256 for image in task.images],
        "text": [trajectory.text, trajectory.finish_reason, trajectory.sampling.max_tokens],
        "tool_calls": [_called(call) for call in trajectory.tool_calls],
    }
    if task.follow_ups:
        content["follow_ups"] = [_told(message) for message in task.follow_ups]
    if trajectory.observations:
        content["observations"] = [[*_told(each.message), each.place] for each in trajectory.observations]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=_hashable).encode())
    digest.update(trajectory.completion_token_ids.astype("<i4").tobytes())
    return digest.hexdigest()[:32]


def _told(message: Message) -> list[Any]:
    """What tools said is marked as theirs; the user's words stand alone, as where there are no tools."""
    by_tool = [message.role] if message.role == "tool" else []
    return [message.text, [image.sha256 for image in message.images], *by_tool]


def _called(call: ToolCall) -> list[Any]:
    turn = [call.turn] if call.turn >= 0 else []
    return [call.name, call.arguments, call.result, call.ok, *turn]
