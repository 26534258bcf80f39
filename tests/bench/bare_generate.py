"""Bare ``vllm.LLM.generate`` as one would call it by hand: prompts ready-made, and a call for each turn.

The engine is that of a rollout worker, and so are sampling parameters and seeds. What is asked for is what a trajectory
needs, tokens, logprobs and text; nothing is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rollouts.dialogue import turn_seed
from rollouts.engine import FORBID, GenerationRequest, VllmEngine
from rollouts.prompts import render_follow_up, render_prompt


@dataclass
class Talk:
    """A sample: ``token_ids`` as they are given to the engine, with one placeholder for an image."""

    request: GenerationRequest
    index: int
    token_ids: list[int]
    written: int = 0
    finish_reason: str = "stop"

    @property
    def left_tokens(self) -> int:
        return self.request.sampling.max_tokens - self.written

    def add(self, completion: Any) -> None:
        self.token_ids += completion.token_ids
        self.written += len(completion.token_ids)
        self.finish_reason = completion.finish_reason


class BareGenerate:
    """Calling it writes ``requests``, whose follow-ups have no images, and returns the number of tokens."""

    def __init__(self, engine: VllmEngine, requests: Sequence[GenerationRequest]) -> None:
        self.llm, self.forbidden, self.requests = engine.llm, engine.forbidden, requests
        tokenizer = engine.processor.tokenizer

        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        self.end_of_turn = tokenizer.eos_token_id
        self.prompts = {request.id: ids(render_prompt(request.task, engine.processor)) for request in requests}
        self.told = {
            request.id: [
                ids(render_follow_up(request.task, number, engine.processor))
                for number in range(len(request.task.follow_ups))
            ]
            for request in requests
        }
        self.images = {request.id: [image.decode() for image in request.task.images] for request in requests}

    def __call__(self) -> int:
        talks = self._first_turns()
        for turn in range(1, 1 + max(map(len, self.told.values()))):
            going = [talk for talk in talks if talk.finish_reason == "stop" and talk.left_tokens > 0]
            for talk in going:
                told = self.told[talk.request.id][turn - 1]
                talk.token_ids += told[int(talk.token_ids[-1] == self.end_of_turn) :]
            prompts = [self._prompt(talk.request, talk.token_ids) for talk in going]
            sampling = [
                self._sampling(
                    talk.request, seed=turn_seed(talk.request.seed + talk.index, turn), max_tokens=talk.left_tokens
                )
                for talk in going
            ]
            for talk, output in zip(going, self.llm.generate(prompts, sampling, use_tqdm=False), strict=True):
                talk.add(output.outputs[0])
        return sum(talk.written for talk in talks)

    def _first_turns(self) -> list[Talk]:
        """All samples of a request at once."""
        prompts = [self._prompt(request, self.prompts[request.id]) for request in self.requests]
        sampling = [self._sampling(request, n=request.num_samples, seed=request.seed) for request in self.requests]
        talks = []
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        for request, output in zip(self.requests, outputs, strict=True):
            for completion in output.outputs:
                talks.append(Talk(request, completion.index, list(self.prompts[request.id])))
                talks[-1].add(completion)
        return talks

    def _prompt(self, request: GenerationRequest, token_ids: list[int]) -> dict[str, Any]:
        return {
            "prompt_token_ids": token_ids,
            "multi_modal_data": {"image": self.images[request.id]},
            "multi_modal_uuids": {"image": [image.sha256 for image in request.task.images]},
        }

    def _sampling(self, request: GenerationRequest, **changes: Any) -> Any:
        from vllm import SamplingParams

        asked = request.sampling
        given: dict[str, Any] = {"temperature": asked.temperature, "max_tokens": asked.max_tokens} | changes
        return SamplingParams(
            stop=list(asked.stop),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            logprobs=0,
            logit_bias=dict.fromkeys(self.forbidden, FORBID),
            **given,
        )
