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
        talks = [
            Talk(request, index, list(self.prompts[request.id]))
            for request in self.requests
            for index in range(request.num_samples)
        ]
        self._write(talks, turn=0)
        for turn in range(1, 1 + max(map(len, self.told.values()))):
            going = [talk for talk in talks if talk.finish_reason == "stop" and talk.left_tokens > 0]
            for talk in going:
                told = self.told[talk.request.id][turn - 1]
                talk.token_ids += told[int(talk.token_ids[-1] == self.end_of_turn) :]
            self._write(going, turn=turn)
        return sum(talk.written for talk in talks)

    def _write(self, talks: Sequence[Talk], *, turn: int) -> None:
        prompts = [
            {
                "prompt_token_ids": talk.token_ids,
                "multi_modal_data": {"image": self.images[talk.request.id]},
                "multi_modal_uuids": {"image": [image.sha256 for image in talk.request.task.images]},
            }
            for talk in talks
        ]
        sampling = [self._sampling(talk, turn) for talk in talks]
        for talk, output in zip(talks, self.llm.generate(prompts, sampling, use_tqdm=False), strict=True):
            (completion,) = output.outputs
            talk.token_ids += completion.token_ids
            talk.written += len(completion.token_ids)
            talk.finish_reason = completion.finish_reason

    def _sampling(self, talk: Talk, turn: int) -> Any:
        from vllm import SamplingParams

        sampling = talk.request.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=talk.left_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            seed=turn_seed(talk.request.seed + talk.index, turn),
            logprobs=0,
            logit_bias=dict.fromkeys(self.forbidden, FORBID),
        )
