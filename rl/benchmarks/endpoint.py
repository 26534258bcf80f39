"""Any model behind an OpenAI-compatible server in the place of the rollout workers: same prompts, same trajectories.

A request that fails for good is a lost answer: its trajectory ends in ``abort``, which no scorer scores, and ``lost``
says why. It is never a wrong answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.judge import Endpoint
from rewards.judges.client import retry_after_s
from rewards.judges.prompt import data_url
from rl.types import FinishReason, Task, Trajectory
from rollouts.engine import GenerationRequest
from rollouts.prompts import chat_messages

if TYPE_CHECKING:
    import httpx2

MAX_REPLY_BYTES = 8 << 20
FIRST_REST_S = 0.5
LONGEST_REST_S = 30.0
_PASSING = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)


class _Fault(Exception):
    """What was wrong with one attempt; ``passing`` where another may go better, after ``rest_s`` if the server said."""

    def __init__(self, reason: str, *, passing: bool = False, rest_s: float | None = None) -> None:
        super().__init__(reason)
        self.passing, self.rest_s = passing, rest_s


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str
    finish_reason: FinishReason


@dataclass(kw_only=True)
class EndpointPool:
    """Asks ``endpoint`` for completions. Each sample is a request of its own, tried ``attempts`` times for at most
    ``timeout_s`` each; ``parameters`` go into every request as they are.

    ``lost`` grows by the id and the reason of every trajectory that no reply came for.
    """

    endpoint: Endpoint
    attempts: int = 4
    timeout_s: float = 300.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[Trajectory, ...]]:
        """Yield the trajectories of each request as its last sample is there. Raises ConfigError without a key."""
        import httpx2

        places = asyncio.Semaphore(self.endpoint.max_concurrency)
        key = self.endpoint.with_key().key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx2.AsyncClient(timeout=self.timeout_s, headers=headers) as client:
            tasks = [asyncio.create_task(self._trajectories(client, places, request)) for request in requests]
            try:
                for done in asyncio.as_completed(tasks):
                    yield await done
            finally:
                for task in tasks:
                    task.cancel()

    async def _trajectories(
        self, client: httpx2.AsyncClient, places: asyncio.Semaphore, request: GenerationRequest
    ) -> tuple[Trajectory, ...]:
        samples = range(request.num_samples)
        return tuple(await asyncio.gather(*(self._trajectory(client, places, request, sample) for sample in samples)))

    async def _trajectory(
        self, client: httpx2.AsyncClient, places: asyncio.Semaphore, request: GenerationRequest, sample: int
    ) -> Trajectory:
        name = f"{request.id}/{sample}"
        async with places:
            started = time.perf_counter()
            try:
                reply = await self._asked(client, self._body(request, sample))
            except _Fault as fault:
                self.lost[name] = str(fault)
                reply = _Reply("", "abort")
        nothing = np.empty(0, dtype=np.int32)
        return Trajectory(
            id=name,
            task=request.task,
            sample_index=sample,
            prompt_token_ids=nothing,
            completion_token_ids=nothing,
            completion_mask=np.empty(0, dtype=bool),
            rollout_logprobs=np.empty(0, dtype=np.float32),
            text=reply.text,
            finish_reason=reply.finish_reason,
            policy_version=-1,
            seed=request.seed + sample,
            sampling=request.sampling,
            duration_s=time.perf_counter() - started,
            source=f"endpoint {self.endpoint.model}",
        )

    def _body(self, request: GenerationRequest, sample: int) -> dict[str, Any]:
        sampling = request.sampling
        body = {
            "model": self.endpoint.model,
            "messages": openai_messages(request.task),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": (request.seed + sample) % 2**31,
        }
        optional = {"stop": list(sampling.stop), "top_k": sampling.top_k}
        asked = body | {name: value for name, value in optional.items() if value} | dict(self.parameters)
        return {name: value for name, value in asked.items() if value is not None}  # null takes one of ours out

    async def _asked(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> _Reply:
        """The reply of the last of at most ``attempts`` attempts. Raises _Fault with the reason of the last one."""
        for attempt in range(self.attempts):
            try:
                return await self._attempt(client, body)
            except _Fault as fault:
                if not fault.passing or attempt + 1 == self.attempts:
                    raise _Fault(f"{fault} (attempt {attempt + 1} of {self.attempts})") from None
                rest_s = FIRST_REST_S * 2**attempt if fault.rest_s is None else fault.rest_s
                await asyncio.sleep(min(LONGEST_REST_S, rest_s) * random.uniform(1.0, 1.25))
        raise AssertionError("attempts is at least 1")

    async def _attempt(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> _Reply:
        import httpx2

        content = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                client.stream("POST", f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body) as response,
            ):
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_REPLY_BYTES:
                        raise _Fault(f"sent more than {MAX_REPLY_BYTES} bytes")
        except TimeoutError:
            raise _Fault(f"no reply within {self.timeout_s:g} s", passing=True) from None
        except httpx2.HTTPError as error:
            raise _Fault(f"{type(error).__name__}: {error}".rstrip(": "), passing=True) from None
        if response.status_code != HTTPStatus.OK:
            raise self._refusal(response.status_code, response.headers.get("retry-after", ""), bytes(content))
        return read_reply(bytes(content))

    def _refusal(self, status: int, retry_after: str, content: bytes) -> _Fault:
        said = " ".join(content.decode(errors="replace").split())
        if key := self.endpoint.with_key().key:
            said = said.replace(key, "***")
        passing = status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return _Fault(f"HTTP {status} {said[:300]}".strip(), passing=passing, rest_s=retry_after_s(retry_after))


def openai_messages(task: Task) -> list[dict[str, Any]]:
    """The chat of `chat_messages` in OpenAI's form: text alone as text, images as data URLs before it."""
    images = iter(task.images)
    messages = []
    for message in chat_messages(task):
        parts = [
            {"type": "image_url", "image_url": {"url": data_url(next(images))}} if part["type"] == "image" else part
            for part in message["content"]
        ]
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": message["role"], "content": parts[0]["text"] if alone else parts})
    return messages


def read_reply(content: bytes) -> _Reply:
    """The first choice. Reasoning that the server has taken apart stands in ``<think>`` again. Raises _Fault for a
    body that is no chat completion, and for a reply that a filter has withheld."""
    try:
        choice = json.loads(content)["choices"][0]
        message, finished = choice["message"], choice.get("finish_reason")
        text, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Fault(f"sent no chat completion: {type(error).__name__}: {error}") from None
    if finished == "content_filter":
        raise _Fault("the server's content filter withheld the reply")
    if text is not None and not isinstance(text, str):
        raise _Fault(f"sent no text: {text!r:.100}")
    thought = f"<think>{reasoning}</think>" if isinstance(reasoning, str) else ""
    reason: FinishReason = finished if finished in ("stop", "length") else "unknown"
    return _Reply(thought + (text or ""), reason)
