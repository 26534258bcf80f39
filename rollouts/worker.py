"""The rollout worker: a Ray actor with an engine of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from rl.errors import RolloutError
from rl.types import Trajectory
from rollouts.engine import Engine, EngineSettings, GenerationRequest, VllmEngine


class RolloutWorker:
    """Holds one engine; made an asynchronous actor by `rl.cluster`.

    All calls share one thread and take turns: whoever waits for an answer steps the engine, which serves all others
    too, and weights are loaded between two steps.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.engine: Engine = VllmEngine(settings)

    def ready(self) -> None:
        """Answers once the engine is built."""

    async def generate(
        self, requests: Sequence[GenerationRequest], *, first: bool = False
    ) -> AsyncIterator[tuple[Trajectory, ...]]:
        """Yield each request's trajectories as soon as they are complete; ``first`` goes before all that wait.

        Raises RolloutError for a request that the engine refuses, and gives up the others of this call.
        """
        added = [self.engine.add(request, first=first) for request in (reversed(requests) if first else requests)]
        keys = set(added)
        try:
            while keys:
                self.engine.step()
                await asyncio.sleep(0)  # whatever else was asked of this actor takes its turn here
                for key in [key for key in self.engine.answers if key in keys]:
                    keys.remove(key)
                    answer = self.engine.answers.pop(key)
                    if isinstance(answer, RolloutError):
                        raise answer
                    yield answer
        finally:
            self.engine.forget(keys)

    async def generate_all(self, requests: Sequence[GenerationRequest]) -> list[tuple[Trajectory, ...]]:
        """All trajectories at once, in the order of ``requests``; they go before all that wait."""
        finished = {group[0].id.rpartition("/")[0]: group async for group in self.generate(requests, first=True)}
        return [finished[request.id] for request in requests]

    def drop_caches(self) -> None:
        self.engine.drop_caches()

    def load_weights(self, arrays: dict[str, np.ndarray], *, version: int) -> None:
        """Load published weights. bfloat16 has no numpy type and arrives as uint16 bits."""
        import torch

        tensors: dict[str, Any] = {}
        for name, array in arrays.items():
            tensor = torch.from_numpy(array)
            tensors[name] = tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
        self.engine.load_weights({"tensors": tensors}, version=version)

    def connect(self, group: dict[str, Any]) -> None:
        self.engine.connect(group)

    def receive_weights(self, announced: dict[str, Any], *, version: int) -> None:
        """Load what the learner sends meanwhile."""
        self.engine.load_weights(announced, version=version)
