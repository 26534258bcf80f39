"""LLM judges over the OpenAI chat protocol: what a config says of one, and what a scorer asks of it.

    rewards:
      judges:
        main:
          endpoints:
            - {url: "http://judge-1:8000/v1", model: qwen3-32b}
            - {url: "https://llm.example.org/v1", model: qwen3-32b, api_key_env: JUDGE_KEY}
          votes: 3
          temperature: 0.7
        own: {policy: /models/qwen3-8b, gpus: 1}      # a vLLM engine that the run starts itself
      scorers:
        quality: {use: rubric, path: rewards/process.yaml, judge: main}

A scorer that wants a judge has a field of the type `Judge`; its config names one of the section's.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from rewards.judges.prompt import Question
from rl.errors import ConfigError

T = TypeVar("T")

JUDGED_BY = ("rewards.judge", "rewards.judges.chat", "rewards.judges.client", "rewards.judges.prompt")
"""The modules that a judge's verdict depends on, for the ``depends_on`` of a scorer that asks one."""
UNVERSIONED = {"versioned": False}
"""Marks the fields that say where and how fast a judge answers, and not what."""


class JudgeFailure(Exception):
    """No verdict was to be had. It leaves the trajectory unscored, and never counts as a verdict."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server: ``url`` up to ``/v1``. The key is read from the environment variable
    ``api_key_env``, and is neither logged nor written anywhere."""

    url: str = field(metadata=UNVERSIONED)
    model: str
    api_key_env: str = field(default="", metadata=UNVERSIONED)
    max_concurrency: int = field(default=16, metadata=UNVERSIONED)
    """Calls under way at a time from one process that scores."""
    key: str = field(default="", init=False, repr=False, metadata=UNVERSIONED)
    """The key itself, once a run has read it for processes that do not have its environment."""

    def with_key(self) -> Endpoint:
        """The same with its key, to be sent to another process. Raises ConfigError where the variable is not set."""
        key = self.key or os.environ.get(self.api_key_env, "").strip()
        if self.api_key_env and not (key and key.isascii() and key.isprintable()):
            raise ConfigError(
                f"the environment variable {self.api_key_env} must hold the key of {self.url}; it "
                + ("has characters that no key has" if key else "is not set where this runs")
            )
        return endpoint_with_key(key, url=self.url, model=self.model, max_concurrency=self.max_concurrency)

    def __str__(self) -> str:
        return f"{self.url} ({self.model})"


def endpoint_with_key(key: str, **fields: Any) -> Endpoint:
    """An endpoint whose key is known here and now."""
    endpoint = Endpoint(**fields)
    object.__setattr__(endpoint, "key", key)
    return endpoint


@dataclass(frozen=True, kw_only=True)
class EngineEndpoint:
    """A vLLM engine that the run starts in a Ray actor of its own, for the ``policy`` in a folder or on the hub.

    ``kv_cache_mb`` counts on a CPU, ``gpu_memory_utilization`` on a GPU.
    """

    policy: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_model_len: int = 4096
    max_num_seqs: int = field(default=16, metadata=UNVERSIONED)
    gpus: float = field(default=0.0, metadata=UNVERSIONED)
    cpus: float = field(default=1.0, metadata=UNVERSIONED)
    threads: int = field(default=1, metadata=UNVERSIONED)
    tensor_parallel: int = field(default=1, metadata=UNVERSIONED)
    kv_cache_mb: int = field(default=256, metadata=UNVERSIONED)
    gpu_memory_utilization: float = field(default=0.9, metadata=UNVERSIONED)
    start_timeout_s: float = field(default=600.0, metadata=UNVERSIONED)

    def __str__(self) -> str:
        return f"the run's own engine for {self.policy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A judge's answer, of the question's schema, and the model that gave it."""

    content: Mapping[str, Any]
    model: str


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge and the patience that one has with it.

    Endpoints of the first one's model share the calls; those of another model are asked where these fail. ``votes`` are
    drawn with a seed each. A call is tried ``attempts`` times, each time for ``timeout_s`` at most, and all of it
    within ``deadline_s``; neither counts what the call waits behind others. ``parameters`` go into the request as they
    are; null takes one of ours out.
    """

    endpoints: tuple[Endpoint | EngineEndpoint, ...]
    name: str = field(default="judge", metadata=UNVERSIONED)
    votes: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the form of the reply is asked for; it is checked in any case."""
    attempts: int = field(default=4, metadata=UNVERSIONED)
    timeout_s: float = field(default=10.0, metadata=UNVERSIONED)
    deadline_s: float = field(default=25.0, metadata=UNVERSIONED)
    cache: Path | None = field(default=None, metadata=UNVERSIONED)
    """File that keeps verdicts across restarts; without one they are kept in memory."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("endpoints must name at least one")
        if self.votes < 1 or self.votes % 2 == 0:
            raise ConfigError(f"votes must be odd, or they could end in a tie; got {self.votes}")
        if self.votes > 1 and self.temperature == 0:
            raise ConfigError(f"votes: {self.votes} at temperature 0 would all be the same; raise the temperature")
        for name in ("attempts", "timeout_s", "deadline_s", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be > 0; got {getattr(self, name)}")
        if not self.temperature >= 0:
            raise ConfigError(f"temperature must be >= 0; got {self.temperature}")

    def prepare(self) -> None:
        """Load what asking needs, which takes longer than many a verdict."""
        for module in ("httpx2", "jsonschema", "rewards.judges.client"):
            importlib.import_module(module)

    async def ask(self, question: Question, *, vote: int = 0) -> Reply:
        """One reply, of the question's schema. Raises JudgeFailure with the reason of every attempt."""
        from rewards.judges.client import client_of

        return await client_of(self).ask(question, vote=vote)

    async def poll(self, question: Question) -> tuple[Reply, ...]:
        """All votes, or JudgeFailure if one of them is not to be had."""
        return await together([self.ask(question, vote=vote) for vote in range(self.votes)])


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> tuple[T, ...]:
    """Await all calls at once. The first one that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return tuple(task.result() for task in tasks)
