"""What becomes of the tool calls that a turn holds: read, checked, made, and answered within bounds.

A call is a JSON object between tags, as Qwen's and Hermes' chat templates have it:

    <tool_call>{"name": "zoom", "arguments": {"box": [10, 20, 90, 80]}}</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import monotonic
from typing import Any

from rl.json_schema import bounded_validator
from rl.types import EncodedImage, ToolCall
from rollouts.tools.tool import Scene, Tool, ToolRefusal, ToolResult

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FORM = 'a call is {"name": …, "arguments": {…}} in JSON'
MAX_CALL_CHARS = 20_000
MAX_CALL_DEPTH = 16
MAX_DIGITS = 18
MAX_RESULT_CHARS = 20_000
MAX_ASPECT = 100  # of an image's longer side to its shorter; Qwen's image processor fails above 200
MAX_REFUSAL_CHARS = 500
MAX_THREADS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """What calls may cost: how many of a trajectory are answered, how many images it is shown in all and of how many
    pixels, and how many seconds a remote tool has."""

    calls: int
    images: int
    image_pixels: int
    timeout_s: float


NO_CALLS = ToolLimits(calls=0, images=0, image_pixels=0, timeout_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A call with its result and its images; ``broken`` where the tool failed, which is not the policy's doing."""

    call: ToolCall
    images: tuple[EncodedImage, ...] = ()
    broken: bool = False


def call_texts(turn: str) -> list[str]:
    """What stands between the tags of a turn's calls. What is only thought of, inside ``<think>``, is no call."""
    _, closed, said = turn.rpartition("</think>")
    if not closed:
        said = turn.partition("<think>")[0]
    found, at = [], 0
    while (start := said.find(OPEN, at)) >= 0 and (at := said.find(CLOSE, start)) >= 0:
        found.append(said[start + len(OPEN) : at].strip())
    return found


class Toolbox:
    """The tools of a run. Remote ones are called in threads, all others at once and in order.

    ``unsayable`` are special tokens of the policy; what a tool returns is rid of them.
    """

    def __init__(self, tools: Mapping[str, Tool], limits: ToolLimits, *, unsayable: Collection[str] = ()) -> None:
        self._tools, self._limits = tools, limits
        self._unsayable = tuple(sorted(unsayable, key=len, reverse=True))
        self.declarations = tuple(tool.declaration(name) for name, tool in tools.items())
        schemas = {each["function"]["name"]: each["function"]["parameters"] for each in self.declarations}
        self._validators = {name: bounded_validator(schema) for name, schema in schemas.items()}
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="tool")

    def begin(self, turn: str, scene: Scene, *, made: int) -> Calls | None:
        """Begin the calls of a turn, in a trajectory that has ``made`` so many before; None where it holds none."""
        texts = call_texts(turn) if self._tools else ()
        if not texts:
            return None
        calls = [self._begin(text, scene, left=self._limits.calls - made - index) for index, text in enumerate(texts)]
        return Calls(calls, self._limits, shown=len(scene.images), unsayable=self._unsayable)

    def _begin(self, text: str, scene: Scene, *, left: int) -> Call:
        try:
            name, arguments = _read(text)
        except (ValueError, RecursionError) as error:
            return Call("", {}, _raised(ToolRefusal(f"{FORM}: {error}")))
        tool = self._tools.get(name)
        if tool is None or left <= 0:
            unknown = f"no tool is called {name!r}; there are {', '.join(self._tools)}"
            most = f"no more than {self._limits.calls} calls are answered"
            return Call(name, arguments, _raised(ToolRefusal(most if tool else unknown)))
        try:
            problem = self._problem(name, arguments)
        except Exception as error:  # a schema that leads nowhere or around in circles
            return Call(name, arguments, _raised(error))
        if problem:
            return Call(name, arguments, _raised(ToolRefusal(problem)))
        if tool.remote:
            return Call(name, arguments, self._threads.submit(tool.call, arguments, scene))
        return Call(name, arguments, _called(tool, arguments, scene))

    def _problem(self, name: str, arguments: Mapping[str, Any]) -> str:
        from jsonschema.exceptions import best_match

        error = best_match(self._validators[name].iter_errors(arguments))
        return f"{error.json_path.replace('$', 'arguments', 1)}: {error.message}" if error else ""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was read; ``future`` has the tool's result, or what it raised."""

    name: str
    arguments: Mapping[str, Any]
    future: Future[ToolResult]


class Calls:
    """The calls of one turn, under way. ``shown`` counts the images before them."""

    def __init__(self, calls: Sequence[Call], limits: ToolLimits, *, shown: int, unsayable: Sequence[str]) -> None:
        self._calls, self._limits, self._shown, self._unsayable = calls, limits, shown, unsayable
        self._deadline = monotonic() + limits.timeout_s

    @property
    def done(self) -> bool:
        """Whether all are answered, or out of time."""
        return all(call.future.done() for call in self._calls) or monotonic() >= self._deadline

    def wait(self, seconds: float) -> None:
        """Until all are answered, at most so long."""
        wait([call.future for call in self._calls], timeout=seconds)

    def answers(self) -> list[Answered]:
        """What the policy is told, in the order of the calls."""
        answers = []
        for call in self._calls:
            answers.append(self._answer(call))
            self._shown += len(answers[-1].images)
        return answers

    def _answer(self, call: Call) -> Answered:
        if not call.future.done():
            call.future.cancel()
            return self._answered(call, f"no answer within {self._limits.timeout_s:g} s", broken=True)
        error = call.future.exception()
        if isinstance(error, ToolRefusal):
            return self._answered(call, f"refused: {str(error)[:MAX_REFUSAL_CHARS]}", ok=False)
        if error is not None:
            return self._answered(call, f"{type(error).__name__}: {error}", broken=True)
        result = call.future.result()
        if not _is_sound(result):
            return self._answered(call, f"a tool returns a ToolResult; it returned {result!r}", broken=True)
        if self._shown + len(result.images) > self._limits.images:
            return self._answered(call, f"refused: no more than {self._limits.images} images can be shown", ok=False)
        most = self._limits.image_pixels
        for image in result.images:  # which may be what the policy asked for, and must not spare it its reward
            longer, shorter = max(image.width, image.height), min(image.width, image.height)
            if longer * shorter > most or longer > MAX_ASPECT * shorter:
                why = f"of more than {most:,} pixels" if longer * shorter > most else "so narrow"
                size = f"{image.width} x {image.height} pixels"
                return self._answered(call, f"refused: no image {why} can be shown; it has {size}", ok=False)
        numbered = (
            f"Image {number} ({image.width} x {image.height} pixels)"
            for number, image in enumerate(result.images, start=self._shown + 1)
        )
        return self._answered(call, ": ".join([*numbered, result.text]), images=result.images)

    def _answered(
        self, call: Call, text: str, *, images: tuple[EncodedImage, ...] = (), ok: bool = True, broken: bool = False
    ) -> Answered:
        text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no UTF-8, and so has no token
        for token in self._unsayable:
            text = text.replace(token, f"{token[:1]} {token[1:]}" if len(token) > 1 else " ")
        if len(text) > MAX_RESULT_CHARS:
            text = f"{text[:MAX_RESULT_CHARS]} … ({len(text) - MAX_RESULT_CHARS:,} further characters)"
        made = ToolCall(name=call.name, arguments=call.arguments, result=text, ok=ok and not broken)
        return Answered(call=made, images=images, broken=broken)


def _called(tool: Tool, arguments: Mapping[str, Any], scene: Scene) -> Future[ToolResult]:
    """What a tool answers here and now, as a future like that of a remote one."""
    future: Future[ToolResult] = Future()
    try:
        future.set_result(tool.call(arguments, scene))
    except Exception as error:
        future.set_exception(error)
    return future


def _raised(error: Exception) -> Future[ToolResult]:
    future: Future[ToolResult] = Future()
    future.set_exception(error)
    return future


def _is_sound(result: Any) -> bool:
    return (
        isinstance(result, ToolResult)
        and isinstance(result.text, str)
        and isinstance(result.images, tuple)
        and all(isinstance(image, EncodedImage) for image in result.images)
    )


def _read(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call. Raises ValueError or RecursionError for what is none, or is too large."""
    if len(text) > MAX_CALL_CHARS:
        raise ValueError(f"at most {MAX_CALL_CHARS:,} characters; these are {len(text):,}")
    call = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("it has no name")
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are no object")
    _check_depth(arguments, MAX_CALL_DEPTH)
    json.dumps(call, ensure_ascii=False).encode()  # neither a log nor a server takes a lone surrogate
    return call["name"], arguments


def _number(digits: str) -> float:
    number = float(digits)
    if not abs(number) < 10**MAX_DIGITS:  # nor NaN
        raise ValueError(f"{digits[:40]} is no number, or too large")
    return number


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:40]} is too large")
    return int(digits)


def _check_depth(value: Any, levels: int) -> None:
    if not levels:
        raise ValueError(f"nested more than {MAX_CALL_DEPTH} levels deep")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _check_depth(part, levels - 1)
