"""Asks the endpoints of a judge: which one, how often, how long, and what counts as an answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rewards.cache import ContentCache
from rewards.isolation.deadline import Clock, in_queue
from rewards.judge import Endpoint, EngineEndpoint, Judge, JudgeFailure, Reply
from rewards.judges.chat import ChatFault, chat_choice, chat_connections
from rewards.judges.prompt import Question, read_reply

if TYPE_CHECKING:
    import httpx2

MAX_REPLY_BYTES = 1 << 20
MAX_CACHED = 16_384
FIRST_REST_S = 0.25
LONGEST_REST_S = 8.0

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Judge, JudgeClient]] = WeakKeyDictionary()


def client_of(judge: Judge) -> JudgeClient:
    """The client of this event loop: scorers that share a judge share its connections, limits and cache."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if judge not in clients:
        clients[judge] = JudgeClient(judge)
    return clients[judge]


class JudgeClient:
    """A judge as one event loop asks it."""

    def __init__(self, judge: Judge) -> None:
        models = list(dict.fromkeys(_model(endpoint) for endpoint in judge.endpoints))
        self._judge = judge
        self._lines = [_Line(endpoint, rank=models.index(_model(endpoint))) for endpoint in judge.endpoints]
        self._cache = ContentCache(judge.cache, where=f"rewards.judges.{judge.name}.cache", max_in_memory=MAX_CACHED)

    async def ask(self, question: Question, *, vote: int) -> Reply:
        """See `Judge.ask`."""
        call = _Call(question, vote, asked=self._asked(question, vote))
        while len(call.faults) < self._judge.attempts and (line := self._choose(call)):
            if (kept := self._kept(line, call)) is not None:
                return kept
            try:
                if (reply := await self._attempt(line, call)) is not None:
                    return reply
            except ChatFault as fault:
                line.note(fault)
                call.note(line, fault)
        reasons = dict.fromkeys(call.faults)
        raise JudgeFailure(f"{self._judge.name} gave no verdict in {len(call.faults)} attempts: {'; '.join(reasons)}")

    async def knock(self) -> dict[Endpoint | EngineEndpoint, str]:
        """Put a trial question to every endpoint; what was wrong with those that gave no reply at all."""
        heard = await asyncio.gather(*map(self._knock, self._lines))
        return {line.endpoint: fault for line, fault in zip(self._lines, heard, strict=True)}

    async def close(self) -> None:
        """Close the connections and the cache."""
        await asyncio.gather(*(line.close() for line in self._lines))
        self._cache.close()

    async def _knock(self, line: _Line) -> str:
        call = _Call(TRIAL, 0, asked="")
        try:
            async with asyncio.timeout(self._judge.deadline_s):
                await line.post(self._body(line, call))
        except TimeoutError:
            return f"no answer within {self._judge.deadline_s:g} s"
        except ChatFault as fault:
            return str(fault) if fault.rests or fault.refused else ""
        return ""

    def _choose(self, call: _Call) -> _Line | None:
        """The endpoint to ask: one that is not resting, was asked least for this call, is of the first model, and is
        least busy, in this order. None where all refused, or rest for longer than the call has left."""
        lines = [line for line in self._lines if line not in call.refused_by]
        line = min(lines, key=lambda line: (line.rest_s, call.tries[line], line.rank, line.load), default=None)
        left_s = self._judge.deadline_s - call.clock.elapsed_s
        if line is None or left_s <= 0:
            return None
        if line.rest_s > left_s:
            call.faults.append(f"{line.endpoint} rests for {line.rest_s:.1f} s more: {line.last_fault}")
            return None
        return line

    async def _attempt(self, line: _Line, call: _Call) -> Reply | None:
        """One request; None where the endpoint began to rest while the call was waiting for its turn."""
        if line.rest_s > 0:
            await asyncio.sleep(line.rest_s * random.uniform(1.0, 1.5))  # not all at the same moment
        async with line.turn(call.clock):
            if line.rest_s > 0:
                return None
            left_s = min(self._judge.timeout_s, self._judge.deadline_s - call.clock.elapsed_s)
            try:
                async with asyncio.timeout(left_s):
                    text = await line.post(self._body(line, call))
            except TimeoutError:
                raise ChatFault(f"no answer within {max(left_s, 0.0):.3g} s", rests=True) from None
        line.failures = 0
        reply = _read(text, call.question.schema)
        self._cache.put((_model(line.endpoint), call.asked), text.encode())
        return Reply(content=reply, model=_model(line.endpoint))

    def _kept(self, line: _Line, call: _Call) -> Reply | None:
        kept = self._cache.get((_model(line.endpoint), call.asked))
        if kept is None:
            return None
        try:
            return Reply(content=_read(kept.decode(), call.question.schema), model=_model(line.endpoint))
        except (ChatFault, UnicodeDecodeError):
            return None  # a damaged entry counts as none

    def _body(self, line: _Line, call: _Call) -> dict[str, Any]:
        # A reply that could not be read is asked for with another seed, which is a function of what was asked alone.
        seed = call.vote + self._judge.votes * call.unreadable
        ours = {
            "model": _model(line.endpoint),
            "messages": call.question.messages(),
            "temperature": self._judge.temperature,
            "max_tokens": self._judge.max_tokens,
            "seed": seed,
            "response_format": _response_format(self._judge.structured, call.question.schema),
        }
        return {name: value for name, value in (ours | dict(self._judge.parameters)).items() if value is not None}

    def _asked(self, question: Question, vote: int) -> str:
        """Everything but the model that a verdict depends on."""
        judge = self._judge
        how = [judge.temperature, judge.max_tokens, dict(judge.parameters), judge.structured]
        return json.dumps([question.sha256(), vote, how], sort_keys=True)


TRIAL = Question(
    instructions="You say whether a statement is true.",
    material={"statement": "Water is wet."},
    task="Is the statement true?",
    schema={
        "type": "object",
        "properties": {"is_true": {"type": "boolean"}},
        "required": ["is_true"],
        "additionalProperties": False,
    },
)


class _Call:
    """One question under way: how long it took, and what went wrong so far."""

    def __init__(self, question: Question, vote: int, *, asked: str) -> None:
        self.question, self.vote, self.asked = question, vote, asked
        self.clock = Clock()
        self.clock.start()
        self.tries: Counter[_Line] = Counter()
        self.refused_by: set[_Line] = set()
        self.faults: list[str] = []
        self.unreadable = 0

    def note(self, line: _Line, fault: ChatFault) -> None:
        self.tries[line] += 1
        self.faults.append(f"{line.endpoint}: {fault}")
        self.unreadable += not (fault.rests or fault.refused)
        if fault.refused:
            self.refused_by.add(line)


class _Line:
    """One endpoint: its connections, how many calls are on it, and until when it rests after a failure."""

    def __init__(self, endpoint: Endpoint | EngineEndpoint, *, rank: int) -> None:
        self.endpoint, self.rank = endpoint, rank
        self.failures = 0
        self.last_fault = ""
        self._limit = endpoint.max_concurrency if isinstance(endpoint, Endpoint) else 1
        self._places = asyncio.Semaphore(self._limit)
        self._calls = 0
        self._resting_until = 0.0
        self._http: httpx2.AsyncClient | None = None

    @property
    def load(self) -> float:
        return self._calls / self._limit

    @property
    def rest_s(self) -> float:
        return max(0.0, self._resting_until - time.monotonic())

    def note(self, fault: ChatFault) -> None:
        """After a failure rest for as long as the endpoint asks, else longer each time. Calls that were under way
        together fail together, which is one failure."""
        if not fault.rests:
            return
        self.last_fault = str(fault)
        self.failures += self.rest_s == 0
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2 ** (self.failures - 1)) if fault.rest_s is None else fault.rest_s
        self._resting_until = max(self._resting_until, time.monotonic() + rest_s)

    @asynccontextmanager
    async def turn(self, clock: Clock) -> AsyncIterator[None]:
        """A place among the calls that are under way. Waiting for it counts against no deadline."""
        self._calls += 1
        try:
            with in_queue(clock):
                await self._places.acquire()
            try:
                yield
            finally:
                self._places.release()
        finally:
            self._calls -= 1

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def post(self, body: Mapping[str, Any]) -> str:
        """The text of the reply to a chat request. Raises ChatFault."""
        if not isinstance(self.endpoint, Endpoint):
            raise ChatFault("only `medrl train` and `medrl evaluate` start engines; name a server here", refused=True)
        if self._http is None:
            self._http = chat_connections(self.endpoint)
        choice = await chat_choice(self._http, self.endpoint, body, max_bytes=MAX_REPLY_BYTES)
        return _verdict(choice.message, choice.finish_reason)


def _verdict(message: Mapping[str, Any], finish_reason: str) -> str:
    """The text of a message. Raises ChatFault for a refusal, and for one that was cut off."""
    refusal, text = message.get("refusal"), message.get("content")
    if refusal or finish_reason == "content_filter":
        raise ChatFault(f"refused to judge: {str(refusal or 'content_filter')[:200]}", refused=True)
    if finish_reason == "length":
        raise ChatFault("the verdict was cut off; raise the judge's max_tokens")
    if not isinstance(text, str):
        raise ChatFault(f"sent no text: {text!r:.100}")
    return text


def _read(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return read_reply(text, schema)
    except ValueError as error:
        raise ChatFault(f"malformed verdict: {error}; got {text!r:.120}") from None


def _response_format(structured: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    if structured == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": dict(schema)}}
    return {"type": "json_object"} if structured == "json_object" else None


def _model(endpoint: Endpoint | EngineEndpoint) -> str:
    return endpoint.model if isinstance(endpoint, Endpoint) else endpoint.policy
