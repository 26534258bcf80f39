"""Any model behind an OpenAI-compatible server in the place of the rollout workers: same prompts, same trajectories.

A request that fails for good is a lost answer, in whichever turn: its trajectory ends in ``abort``, which no scorer
scores, and ``lost`` says why. It is never a wrong answer.

A task's follow-ups are put after the whole of each reply, its reasoning included, as before an engine's next turn.
``max_tokens`` bounds all turns together by the completion tokens that the server reports. One that does not is taken to
have written a token for every byte, which no tokenizer exceeds, so that its dialogues end early rather than late.

Tools are called here, by the protocol's ``tool_calls``, or by what the text says where the server leaves it there. In
the trajectory a call stands as an engine's policy writes it. Images of tools follow as the user's, since the protocol's
tools tell texts alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.judge import Endpoint
from rewards.judges.chat import ChatFault, Choice, chat_choice, chat_connections
from rewards.judges.prompt import data_url
from rl.types import TURN_BREAK, EncodedImage, FinishReason, Message, Observation, Task, ToolCall, Trajectory
from rollouts.dialogue import turn_seed
from rollouts.engine import WAIT_S, GenerationRequest
from rollouts.prompts import chat_messages
from rollouts.tools.tool import Scene
from rollouts.tools.toolbox import CLOSE, NO_CALLS, OPEN, Answered, Toolbox

if TYPE_CHECKING:
    import httpx2

MAX_REPLY_BYTES = 8 << 20
FIRST_REST_S = 0.5
LONGEST_REST_S = 30.0
_FINISHED: Mapping[str, FinishReason] = {"stop": "stop", "tool_calls": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class _Reply:
    """``calls`` are the tool calls that the server has taken out of the text."""

    text: str
    finish_reason: FinishReason
    tokens: int
    calls: tuple[_Asked, ...] = ()

    @property
    def written(self) -> str:
        return self.text + "".join(call.tagged() for call in self.calls)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A tool call of the protocol; ``arguments`` are JSON, or should be."""

    id: str
    name: str
    arguments: str

    def tagged(self) -> str:
        call = f'{{"name": {json.dumps(self.name)}, "arguments": {self.arguments or "{}"}}}'
        return OPEN + call.replace("<", r"\u003c") + CLOSE  # no text in it can be taken for its end

    def message(self) -> dict[str, Any]:
        try:
            sound = isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            sound = False  # a server may refuse to be told its own model's slip
        function = {"name": self.name, "arguments": self.arguments if sound else "{}"}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(slots=True, kw_only=True)
class _Conversation:
    """What was said so far: ``messages`` for the server, text and observations for the trajectory."""

    messages: list[dict[str, Any]]
    left_tokens: int
    text: str = ""
    finish_reason: FinishReason = "abort"
    observations: tuple[Observation, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()

    def add(self, reply: _Reply) -> None:
        as_utf8 = reply.text.encode(errors="replace").decode()  # a lone surrogate cannot be sent
        calls = {"tool_calls": [call.message() for call in reply.calls]} if reply.calls else {}
        self.messages.append({"role": "assistant", "content": as_utf8, **calls})
        self.text += reply.written
        self.finish_reason = reply.finish_reason
        self.left_tokens -= reply.tokens

    def tell(self, message: Message) -> None:
        self.messages.append(_user_message(message))
        self._observe(message)

    def tell_results(self, answers: Sequence[Answered], calls: Sequence[_Asked]) -> None:
        """What the tools answered, to the ``calls`` of the protocol or to those in the text."""
        text = "\n\n".join(each.call.result for each in answers)
        images = tuple(image for each in answers for image in each.images)
        if calls:
            for call, answer in zip(calls, answers, strict=True):
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": answer.call.result})
            if images:
                self.messages.append(_user_message(Message(text="The images of the tools.", images=images)))
        else:
            response = f"<tool_response>\n{text}\n</tool_response>"
            self.messages.append(_user_message(Message(text=response, images=images)))
        self._observe(Message(text=text, images=images, role="tool"))

    def _observe(self, message: Message) -> None:
        self.observations += (Observation(message=message, place=len(self.text)),)
        self.text += TURN_BREAK


@dataclass(kw_only=True)
class EndpointPool:
    """Asks ``endpoint`` for completions. Each turn of each sample is a request of its own, tried ``attempts`` times for
    at most ``timeout_s`` each; ``parameters`` go into every request as they are.

    ``lost`` grows by the id and the reason of every trajectory that no reply came for.
    """

    endpoint: Endpoint
    attempts: int = 4
    timeout_s: float = 300.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tools: Toolbox = field(default_factory=lambda: Toolbox({}, NO_CALLS))
    lost: dict[str, str] = field(default_factory=dict)

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[Trajectory, ...]]:
        """Yield the trajectories of each request as its last sample is there. Raises ConfigError without a key."""
        self.endpoint.with_key()  # told before anything is asked
        places = asyncio.Semaphore(self.endpoint.max_concurrency)
        async with chat_connections(self.endpoint) as http:
            tasks = [asyncio.create_task(self._trajectories(http, places, request)) for request in requests]
            try:
                for done in asyncio.as_completed(tasks):
                    yield await done
            finally:
                for task in tasks:
                    task.cancel()

    async def _trajectories(
        self, http: httpx2.AsyncClient, places: asyncio.Semaphore, request: GenerationRequest
    ) -> tuple[Trajectory, ...]:
        samples = range(request.num_samples)
        return tuple(await asyncio.gather(*(self._trajectory(http, places, request, sample) for sample in samples)))

    async def _trajectory(
        self, http: httpx2.AsyncClient, places: asyncio.Semaphore, request: GenerationRequest, sample: int
    ) -> Trajectory:
        name = f"{request.id}/{sample}"
        said = _Conversation(messages=openai_messages(request.task), left_tokens=request.sampling.max_tokens)
        async with places:
            started = time.perf_counter()
            try:
                await self._converse(http, request, sample, said)
            except ChatFault as fault:
                self.lost[name] = str(fault)
                said.finish_reason = "abort"
        nothing = np.empty(0, dtype=np.int32)
        return Trajectory(
            id=name,
            task=request.task,
            sample_index=sample,
            prompt_token_ids=nothing,
            completion_token_ids=nothing,
            completion_mask=np.empty(0, dtype=bool),
            rollout_logprobs=np.empty(0, dtype=np.float32),
            text=said.text,
            finish_reason=said.finish_reason,
            policy_version=-1,
            seed=request.seed + sample,
            sampling=request.sampling,
            duration_s=time.perf_counter() - started,
            source=f"endpoint {self.endpoint.model}",
            observations=said.observations,
            tool_calls=said.tool_calls,
        )

    async def _converse(
        self, http: httpx2.AsyncClient, request: GenerationRequest, sample: int, said: _Conversation
    ) -> None:
        """Ask for every turn until one is cut, nothing is left to say, or no token to say it in, which cuts it too.

        Raises ChatFault where a reply is lost.
        """
        follow_ups = deque(request.task.follow_ups)
        while True:
            reply = await self._asked(http, self._body(request, sample, said))
            said.add(reply)
            answers = await self._answers(reply, said, request.task) if reply.finish_reason == "stop" else []
            if said.finish_reason == "length" or not (answers or follow_ups):
                return
            if said.left_tokens <= 0:
                said.finish_reason = "length"
                return
            if answers:
                said.tell_results(answers, reply.calls)
            else:
                said.tell(follow_ups.popleft())

    async def _answers(self, reply: _Reply, said: _Conversation, task: Task) -> list[Answered]:
        """What the tools answer to the calls of a reply. Raises ChatFault where one failed."""
        told = (image for each in said.observations for image in each.message.images)
        scene = Scene(task=task, images=(*task.images, *told))
        turn = "".join(call.tagged() for call in reply.calls) or reply.text
        calls = self.tools.begin(turn, scene, made=len(said.tool_calls))
        if calls is None:
            return []
        while not calls.done:
            await asyncio.sleep(WAIT_S)
        answers = calls.answers()
        said.tool_calls += tuple(each.call for each in answers)
        for each in answers:
            if each.broken:
                raise ChatFault(f"the tool {each.call.name} failed: {each.call.result}")
        return answers

    def _body(self, request: GenerationRequest, sample: int, said: _Conversation) -> dict[str, Any]:
        sampling = request.sampling
        body = {
            "model": self.endpoint.model,
            "messages": said.messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": said.left_tokens,
            "seed": turn_seed(request.seed + sample, len(said.observations)) % 2**31,
        }
        optional = {"stop": list(sampling.stop), "top_k": sampling.top_k, "tools": list(self.tools.declarations)}
        asked = body | {name: value for name, value in optional.items() if value} | dict(self.parameters)
        return {name: value for name, value in asked.items() if value is not None}  # null takes one of ours out

    async def _asked(self, http: httpx2.AsyncClient, body: Mapping[str, Any]) -> _Reply:
        """The reply of the last of at most ``attempts`` attempts. Raises ChatFault with the reason of the last one."""
        for attempt in range(self.attempts):
            try:
                return await self._attempt(http, body)
            except ChatFault as fault:
                if not fault.rests or attempt + 1 == self.attempts:
                    raise ChatFault(f"{fault} (attempt {attempt + 1} of {self.attempts})") from None
                rest_s = FIRST_REST_S * 2**attempt if fault.rest_s is None else fault.rest_s
                await asyncio.sleep(min(LONGEST_REST_S, rest_s) * random.uniform(1.0, 1.25))
        raise AssertionError("attempts is at least 1")

    async def _attempt(self, http: httpx2.AsyncClient, body: Mapping[str, Any]) -> _Reply:
        try:
            async with asyncio.timeout(self.timeout_s):
                choice = await chat_choice(http, self.endpoint, body, max_bytes=MAX_REPLY_BYTES)
                return _read(choice, body.get("stop") or (), calls=_calls(choice.message) if "tools" in body else ())
        except TimeoutError:
            raise ChatFault(f"no reply within {self.timeout_s:g} s", rests=True) from None


def openai_messages(task: Task) -> list[dict[str, Any]]:
    """The chat of `chat_messages` in OpenAI's form: text alone as text, images as data URLs before it."""
    images = iter(task.images)
    return [_openai_message(message["role"], message["content"], images) for message in chat_messages(task)]


def _openai_message(role: str, content: Sequence[dict[str, Any]], images: Iterator[EncodedImage]) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(next(images))}} if part["type"] == "image" else part
        for part in content
    ]
    alone = len(parts) == 1 and parts[0]["type"] == "text"
    return {"role": role, "content": parts[0]["text"] if alone else parts}


def _user_message(message: Message) -> dict[str, Any]:
    content = [*({"type": "image"} for _ in message.images), {"type": "text", "text": message.text}]
    return _openai_message("user", content, iter(message.images))


def _read(choice: Choice, stops: Sequence[str], *, calls: tuple[_Asked, ...]) -> _Reply:
    """Reasoning that the server has taken apart stands in ``<think>`` again, and the one of ``stops`` that ended the
    text at its end, as an engine writes it. Raises ChatFault for a reply that a filter has withheld."""
    message, finished = choice.message, choice.finish_reason
    text, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if finished == "content_filter":
        raise ChatFault("the server's content filter withheld the reply", refused=True)
    if text is not None and not isinstance(text, str):
        raise ChatFault(f"sent no text: {text!r:.100}", refused=True)
    thought = f"<think>{reasoning}</think>" if isinstance(reasoning, str) else ""
    within_reasoning = thought and text is None  # a stop in there is left as it is
    ending = "" if within_reasoning else _ending(choice, text or "", stops)
    written = thought + (text or "") + ending
    reply = _Reply(written, _FINISHED.get(finished, "unknown"), choice.completion_tokens, calls)
    return reply if reply.tokens else replace(reply, tokens=len(reply.written.encode(errors="replace")))


def _calls(message: Mapping[str, Any]) -> tuple[_Asked, ...]:
    """The tool calls of a message. Raises ChatFault for what the protocol does not have."""
    try:
        asked = [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ]
    except (TypeError, LookupError):
        raise ChatFault(f"sent tool calls of another form: {message['tool_calls']!r:.100}", refused=True) from None
    if not all(isinstance(part, str) for call in asked for part in call):
        raise ChatFault(f"sent tool calls of another form: {message['tool_calls']!r:.100}", refused=True)
    return tuple(_Asked(*call) for call in asked)


def _ending(choice: Choice, text: str, stops: Sequence[str]) -> str:
    """The stop string that the server has cut off: the one that it names, or, where it says nothing of what stopped it,
    the end of an answer that was left open."""
    stop = choice.stopped_by
    if stop is None:
        left_open = choice.finish_reason == "stop" and text.rfind("<answer>") > text.rfind("</answer>")
        stop = "</answer>" if left_open else ""
    return stop if stop in stops and not text.endswith(stop) else ""
