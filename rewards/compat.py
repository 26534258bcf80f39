"""Reward functions that were written for other frameworks, as scorers, unchanged.

    accuracy: {use: trl, function: "trl.rewards:accuracy_reward", columns: {solution: answer.value}}
    maths:    {use: easyr1, path: rewards/math.py, function: compute_score, kwargs: {format_weight: 0.2}}
    penalty:  {use: verl, path: rewards/overlong.py, function: compute_score, range: [-1, 1]}

``function`` is ``module:name``, or a name in the file ``path``. Each function is called as its framework calls it, with
a batch of one: a score belongs to one trajectory alone, so that a function that breaks on one costs no other its score.
What compares the completions of a group with each other cannot be told so. Like every foreign scorer it runs in
processes of its own. Of several turns it gets what its framework gives: all that follows the prompt, with what the
policy was told in between; ``turns: last`` gives it the last one alone, behind all that the user has said.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Literal

from rewards.config import check_task_field, task_field
from rewards.scorer import Abstain, Score, Scorer, Trajectory
from rewards.turns import transcript
from rl.errors import ConfigError
from rl.plugins import Importing, import_module, suggestion


@dataclass(frozen=True, kw_only=True)
class ForeignFunction(Scorer):
    """Calls ``function`` and makes its one result a score.

    ``kwargs`` go to every call. ``columns`` names further columns and the fields of the task that they come from
    (``{solution: answer.value}``); every entry of ``task.extra`` is a column by its own name. ``range`` is what the
    function returns from worst to best and is mapped linearly to [0, 1]. A result outside of it, NaN, and another
    number of results than one are errors: the score has failed.
    """

    function: str
    path: Path | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    range: tuple[float, float] = (0.0, 1.0)

    depends_on: ClassVar[tuple[str, ...]] = ("rewards.turns",)

    def __post_init__(self) -> None:
        low, high = self.range
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"range must be [lowest, highest], two finite numbers; got {list(self.range)}")

    def check_use(self, *, gate: bool) -> None:
        if gate:
            raise ConfigError("a reward function returns a number and never closes a gate; give it a weight instead")
        for name, source in self.columns.items():
            check_task_field(source, where=f"columns.{name}")
        if self.path is None and ":" not in self.function:
            raise ConfigError(f"function must be module:name, or a name with `path`; got {self.function!r}")
        self.prepare()

    def prepare(self) -> None:
        """Import the function, and so all that it imports. Raises ConfigError where it is not there."""
        _ = self._function

    def sources(self) -> tuple[str, ...]:
        return (*super().sources(), *([] if self.path else [self.function.partition(":")[0]]))

    async def score(self, trajectory: Trajectory) -> Score:
        notes: dict[str, Any] = {}
        result = self._call(self._function, trajectory, notes)
        return self._to_score(await result if inspect.isawaitable(result) else result, notes)

    @abstractmethod
    def _call(self, function: Callable[..., Any], trajectory: Trajectory, notes: dict[str, Any]) -> Any:
        """The function's result, or an awaitable of it; what it logs by itself goes to ``notes``."""

    def _to_score(self, result: Any, notes: dict[str, Any]) -> Score:
        value, metrics = _split(_only(result), key="score")
        return self._scored(value, metrics | notes)

    def _scored(self, value: Any, notes: Mapping[str, Any]) -> Score:
        """The score of a number; numbers among the ``notes`` are metrics, the others stand in the reason."""
        value = _plain(value)
        low, high = self.range
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self.function} must return finite numbers; got {value!r:.100}")
        if not low <= value <= high:
            raise ValueError(
                f"{self.function} returned {value!r}, outside of its range [{low:g}, {high:g}]; say `range: [lowest, "
                f"highest]` for its results to be mapped to [0, 1]"
            )
        plain = {name: _plain(note) for name, note in notes.items()}
        metrics = {name: float(note) for name, note in plain.items() if _is_metric(note)}
        texts = [f"{name}: {note!s:.200}" for name, note in plain.items() if name not in metrics and note is not None]
        return Score((value - low) / (high - low), reason="; ".join([f"{value:g}", *texts]), metrics=metrics)

    def _columns(self, trajectory: Trajectory) -> dict[str, Any]:
        task = trajectory.task
        return {**task.extra, **{name: task_field(task, source) for name, source in self.columns.items()}}

    def _truth(self, columns: Mapping[str, Any], name: str, trajectory: Trajectory) -> Any:
        """What the answer is compared with: the column of that name, else the task's answer."""
        return columns.get(name, trajectory.task.answer.get("value"))

    @functools.cached_property
    def _function(self) -> Callable[..., Any]:
        if self.path is not None:
            module, name = _module_of_file(self.path), self.function
        else:
            module_name, _, name = self.function.partition(":")
            module = import_module(module_name, where="function")
        function = getattr(module, name, None)
        if not callable(function):
            names = [each for each, value in vars(module).items() if inspect.isfunction(value)]
            raise ConfigError(
                f"function: {self.path or module.__name__} has no function {name!r}; it has "
                f"{', '.join(names) or 'none'}." + suggestion(name, names)
            )
        return function

    def __getstate__(self) -> dict[str, Any]:
        """The parameters alone: a function from a file cannot be pickled, and is loaded where it is needed."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True)
class TrlFunction(ForeignFunction):
    """A reward function for TRL's GRPOTrainer: ``f(prompts, completions, completion_ids, **columns) -> list``.

    None means "not for this task" and abstains. ``completions`` are lists of messages, as for a conversational data
    set: one, or several with the user's between them; or plain ``text``. ``log_metric`` and ``log_extra`` work;
    ``trainer_state`` has the ``global_step`` alone.
    """

    completions: Literal["messages", "text"] = "messages"

    def _call(self, function: Callable[..., Any], trajectory: Trajectory, notes: dict[str, Any]) -> Any:
        task = trajectory.task
        columns = {"answer": task.answer.get("value"), **self._columns(trajectory)}
        messages = [{"role": "user", "content": task.question}]
        if task.system:
            messages.insert(0, {"role": "system", "content": task.system})
        as_text = self.completions == "text"
        return function(
            prompts=["\n\n".join(each["content"] for each in messages) if as_text else messages],
            completions=[transcript(trajectory) if as_text else _messages(trajectory)],
            completion_ids=[trajectory.completion_token_ids.tolist()],
            trainer_state=SimpleNamespace(global_step=trajectory.policy_version),
            log_metric=notes.__setitem__,
            log_extra=lambda name, values: notes.__setitem__(name, _only(values)),
            **{name: [value] for name, value in columns.items()},
            **self.kwargs,
        )

    def _to_score(self, result: Any, notes: dict[str, Any]) -> Score:
        value = _only(result)
        if value is None:
            raise Abstain(f"{self.function} returned None: not for this task")
        return self._scored(value, notes)


@dataclass(frozen=True, kw_only=True)
class VerlFunction(ForeignFunction):
    """A reward function for verl: ``compute_score(data_source, solution_str, ground_truth, extra_info)``.

    Returns a number, or a mapping with ``score``; the batched form (``data_sources``, ``solution_strs``, …) is called
    with lists of one. ``data_source`` is the column of that name, else the task's stratum; ``extra_info`` all columns.
    """

    def _call(self, function: Callable[..., Any], trajectory: Trajectory, notes: dict[str, Any]) -> Any:
        columns = self._columns(trajectory)
        arguments = {
            "data_source": columns.get("data_source", trajectory.task.stratum),
            "solution_str": transcript(trajectory),
            "ground_truth": self._truth(columns, "ground_truth", trajectory),
            "extra_info": columns.get("extra_info", columns),
        }
        if "solution_strs" in inspect.signature(function).parameters:
            arguments = {f"{name}s": [value] for name, value in arguments.items()}
        return function(**arguments, **self.kwargs)


@dataclass(frozen=True, kw_only=True)
class EasyR1Function(ForeignFunction):
    """A reward function for EasyR1: of one ``reward_input``, or of a list of ``reward_inputs``; returns ``overall``.

    Which of the two, says the module's ``REWARD_TYPE``, or the name of the first parameter. The older forms, of
    ``predict`` and ``ground_truth`` or of lists of both, are called with texts.
    """

    def _call(self, function: Callable[..., Any], trajectory: Trajectory, notes: dict[str, Any]) -> Any:
        columns = self._columns(trajectory)
        truth = self._truth(columns, "ground_truth", trajectory)
        first = next(iter(inspect.signature(function).parameters), "")
        if first in ("predict", "predicts"):
            written = transcript(trajectory)
            arguments = (written, truth) if first == "predict" else ([written], [truth])
            return function(*arguments, **self.kwargs)
        reward_input = {
            "prompt": trajectory.task.question,
            **columns,
            "response": transcript(trajectory),
            "response_length": trajectory.length_tokens,
            "ground_truth": truth,
        }
        module = getattr(function, "__globals__", {})
        kind = module.get("REWARD_TYPE", "batch" if first.endswith("s") else "sequential")
        return function([reward_input] if kind == "batch" else reward_input, **self.kwargs)

    def _to_score(self, result: Any, notes: dict[str, Any]) -> Score:
        value, metrics = _split(_only(result), key="overall")
        return self._scored(value, metrics | notes)


@dataclass(frozen=True, kw_only=True)
class OpenRlhfFunction(ForeignFunction):
    """A reward function for OpenRLHF: ``reward_func(queries, prompts, labels)``, lists of one each.

    Returns one number per query, or a mapping with ``rewards`` (and ``scores`` and ``extra_logs``, which become
    metrics). A query is the prompt and the completion as text, without the chat template.
    """

    def _call(self, function: Callable[..., Any], trajectory: Trajectory, notes: dict[str, Any]) -> Any:
        task = trajectory.task
        prompt = f"{task.system}\n\n{task.question}\n" if task.system else f"{task.question}\n"
        label = self._truth(self._columns(trajectory), "label", trajectory)
        return function(queries=[prompt + transcript(trajectory)], prompts=[prompt], labels=[label], **self.kwargs)

    def _to_score(self, result: Any, notes: dict[str, Any]) -> Score:
        if not isinstance(result, Mapping):
            return self._scored(_only(result), notes)
        rewards, others = _split(result, key="rewards")
        logged = {**others.pop("extra_logs", {}), **others}
        return self._scored(_only(rewards), {name: _single(each) for name, each in logged.items()} | notes)


def _messages(trajectory: Trajectory) -> list[dict[str, str]]:
    """The policy's turns and what it was told between them, as a conversational data set has them."""
    first, *others = trajectory.turns
    messages = [{"role": "assistant", "content": first}]
    for told, turn in zip(trajectory.observations, others, strict=True):
        messages.append({"role": told.message.role, "content": told.message.text})
        messages.append({"role": "assistant", "content": turn})
    return messages


def _module_of_file(path: Path) -> ModuleType:
    """The module that a file holds, as a module of its own name, imported once."""
    name = f"reward_function_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"path: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with Importing(str(path), where="path"), ExitStack() as undo:
        sys.modules[name] = module  # dataclasses and pickle look a class's module up there
        undo.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


def _plain(value: Any) -> Any:
    """Scalars, and arrays of one element, of numpy and torch as Python's own."""
    return _single(value.tolist()) if hasattr(value, "tolist") else value


def _single(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _only(results: Any) -> Any:
    """The one result of a batch of one; a single result is itself. Raises ValueError for another number of them."""
    results = results.tolist() if hasattr(results, "tolist") else results
    if not isinstance(results, list | tuple):
        return results
    if len(results) != 1:
        raise ValueError(f"{len(results)} results were returned for one completion")
    return results[0]


def _split(result: Any, *, key: str) -> tuple[Any, dict[str, Any]]:
    """A number, or the mapping that holds it under ``key``; what else the mapping says."""
    if not isinstance(result, Mapping):
        return result, {}
    if key not in result:
        raise ValueError(f"the mapping that was returned needs the key {key!r}; it has {', '.join(map(str, result))}")
    return result[key], {str(name): value for name, value in result.items() if name != key}


def _is_metric(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
