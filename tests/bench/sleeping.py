"""Rollout workers whose engine only sleeps, so that what is left of a step is what medrl itself costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from rl.types import Trajectory
from rollouts.engine import GenerationRequest


class SleepingWorker:
    """Answers every request after ``sleep_s``, all of them at once, with completions as long as they may be."""

    def __init__(self, *, sleep_s: float, prompt_tokens: int) -> None:
        self.sleep_s, self.prompt_tokens = sleep_s, prompt_tokens

    def ready(self) -> None:
        """Answers once the process is up."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[Trajectory, ...]]:
        time.sleep(self.sleep_s)
        for request in requests:
            yield tuple(self._trajectory(request, index) for index in range(request.num_samples))

    def _trajectory(self, request: GenerationRequest, index: int) -> Trajectory:
        tokens = request.sampling.max_tokens
        rng = np.random.default_rng(request.seed + index)
        answer = "yes" if rng.random() < 0.5 else "no"
        return Trajectory(
            id=f"{request.id}/{index}",
            task=request.task,
            sample_index=index,
            prompt_token_ids=np.arange(self.prompt_tokens, dtype=np.int32),
            completion_token_ids=rng.integers(0, 50_000, tokens).astype(np.int32),
            completion_mask=np.ones(tokens, dtype=bool),
            rollout_logprobs=-rng.exponential(1.0, tokens).astype(np.float32),
            text=f"<think>{'finding ' * (tokens // 2)}</think><answer>{answer}</answer>",
            finish_reason="stop",
            policy_version=0,
            seed=request.seed + index,
            sampling=request.sampling,
            duration_s=self.sleep_s,
        )
