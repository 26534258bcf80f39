"""An engine that writes without a model, in its worker, behind a handle that looks like Ray's."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rl.errors import RolloutError
from rl.types import Trajectory
from rollouts import worker as worker_module
from rollouts.engine import Answer, GenerationRequest
from tests.samples import a_trajectory

REFUSED = "too long"


@dataclass
class Draft:
    """The completions of one request, as the version that wrote each token; ``lengths`` is where each ends."""

    request: GenerationRequest
    lengths: list[int]
    written_by: list[list[int]] = field(default_factory=list)
    began_s: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> bool:
        return [len(versions) for versions in self.written_by] == self.lengths


class FakeEngine:
    """One token a step for each completion in progress, of which there are ``max_num_seqs`` at the most.

    Sample i of a request is as long as the task's ``extra["lengths"][i]`` says, else 3 + i. A task with the question
    `REFUSED` is refused. ``loads`` has every version that was loaded, with how many completions were half-written.
    """

    def __init__(self, *, max_num_seqs: int = 8, step_s: float = 0.0) -> None:
        self.max_num_seqs, self.step_s = max_num_seqs, step_s
        self.answers: dict[str, Answer] = {}
        self.version = self.steps = 0
        self.loads: list[tuple[int, int]] = []
        self.drafts: dict[str, Draft] = {}
        self._waiting: deque[tuple[str, GenerationRequest]] = deque()
        self._added = 0

    def add(self, request: GenerationRequest, *, first: bool = False) -> str:
        self._added += 1
        key = f"{self._added}/{request.id}"
        (self._waiting.appendleft if first else self._waiting.append)((key, request))
        return key

    def step(self) -> None:
        while self._waiting and self._in_progress() < self.max_num_seqs:
            key, request = self._waiting.popleft()
            if request.task.question == REFUSED:
                self.answers[key] = RolloutError(f"task {request.task.id!r} cannot be given to the engine")
                continue
            lengths = request.task.extra.get("lengths", [3 + sample for sample in range(request.num_samples)])
            self.drafts[key] = Draft(request, list(lengths), [[] for _ in lengths])
        self.steps += 1
        time.sleep(self.step_s)
        for key, draft in list(self.drafts.items()):
            for versions, length in zip(draft.written_by, draft.lengths, strict=True):
                versions.extend([self.version] * (len(versions) < length))
            if draft.done:
                self.answers[key] = _trajectories(self.drafts.pop(key))

    def forget(self, keys: Collection[str]) -> None:
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in keys)
        for key in keys:
            self.drafts.pop(key, None)
            self.answers.pop(key, None)

    def load_weights(self, update: Mapping[str, Any], *, version: int) -> None:
        self.loads.append((version, self._in_progress()))
        self.version = version

    def drop_caches(self) -> None:
        assert not self.drafts

    def _in_progress(self) -> int:
        return sum(
            len(versions) < length
            for draft in self.drafts.values()
            for versions, length in zip(draft.written_by, draft.lengths, strict=True)
        )


def _trajectories(draft: Draft) -> tuple[Trajectory, ...]:
    return tuple(
        a_trajectory(
            id=f"{draft.request.id}/{sample}",
            task=draft.request.task,
            sample_index=sample,
            completion_token_ids=np.arange(len(versions), dtype=np.int32),
            completion_mask=np.ones(len(versions), dtype=bool),
            rollout_logprobs=np.full(len(versions), -1.0, dtype=np.float32),
            policy_version=versions[0],
            later_versions=tuple(
                (place, version)
                for place, version in enumerate(versions[1:], start=1)
                if version != versions[place - 1]
            ),
            seed=draft.request.seed + sample,
            duration_s=time.perf_counter() - draft.began_s,
        )
        for sample, versions in enumerate(draft.written_by)
    )


def a_worker(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> worker_module.RolloutWorker:
    monkeypatch.setattr(worker_module, "VllmEngine", lambda settings: engine)
    settings: Any = None
    return worker_module.RolloutWorker(settings)


class Handle:
    """A worker in this process as the pool sees it in another."""

    def __init__(self, worker: worker_module.RolloutWorker) -> None:
        self.worker = worker
        self.generate = SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._stream))
        self.generate_all = SimpleNamespace(remote=worker.generate_all)
        self.load_weights = SimpleNamespace(remote=self._load)
        self.drop_caches = SimpleNamespace(remote=self._drop)

    async def _stream(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Awaitable[Answer]]:
        async for answer in self.worker.generate(requests):
            there = asyncio.get_running_loop().create_future()
            there.set_result(answer)
            yield there

    async def _load(self, weights: Any, *, version: int) -> None:
        self.worker.engine.load_weights({}, version=version)

    async def _drop(self) -> None:
        self.worker.drop_caches()
