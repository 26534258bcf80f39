"""Bare ``vllm.LLM.generate`` as one would call it by hand: prompts ready-made, and a call for each turn.

The engine is that of a rollout worker, and so are the sampling parameters; what is asked for is the tokens, their
logprobs and the text, as for a trajectory, and none is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollouts.engine import FORBID, GenerationRequest, VllmEngine
from rollouts.prompts import render_follow_up, render_prompt


class BareGenerate:
    """Calling it writes ``requests``, whose follow-ups have no images, and returns the number of tokens."""

    def __init__(self, engine: VllmEngine, requests: Sequence[GenerationRequest]) -> None:
        self.llm, self.forbidden, self.requests = engine.llm, engine.forbidden, requests
        self.prompts = [
            {
                "prompt": render_prompt(request.task, engine.processor),
                "multi_modal_data": {"image": [image.decode() for image in request.task.images]},
                "multi_modal_uuids": {"image": [image.sha256 for image in request.task.images]},
            }
            for request in requests
        ]
        self.told = [
            [render_follow_up(request.task, turn, engine.processor) for turn in range(len(request.task.follow_ups))]
            for request in requests
        ]

    def __call__(self) -> int:
        first = [self._sampling(request, n=request.num_samples, seed=request.seed) for request in self.requests]
        outputs = self.llm.generate(self.prompts, first, use_tqdm=False)
        written = [(number, completion) for number, output in enumerate(outputs) for completion in output.outputs]
        texts = [self.prompts[number]["prompt"] + completion.text for number, completion in written]
        lengths = [len(completion.token_ids) for _, completion in written]
        going = [place for place, (_, completion) in enumerate(written) if completion.finish_reason == "stop"]
        for turn in range(max(map(len, self.told))):
            going = [place for place in going if lengths[place] < self.requests[written[place][0]].sampling.max_tokens]
            asked, sampling = [], []
            for place in going:
                number = written[place][0]
                request = self.requests[number]
                texts[place] += self.told[number][turn]
                asked.append({**self.prompts[number], "prompt": texts[place]})
                left = request.sampling.max_tokens - lengths[place]
                sampling.append(self._sampling(request, seed=request.seed + 1000 * turn + place, max_tokens=left))
            outputs = self.llm.generate(asked, sampling, use_tqdm=False)
            for place, output in zip(going, outputs, strict=True):
                texts[place] += output.outputs[0].text
                lengths[place] += len(output.outputs[0].token_ids)
            finished = dict(zip(going, (output.outputs[0].finish_reason for output in outputs), strict=True))
            going = [place for place in going if finished[place] == "stop"]
        return sum(lengths)

    def _sampling(self, request: GenerationRequest, **changes: Any) -> Any:
        from vllm import SamplingParams

        asked = request.sampling
        return SamplingParams(
            **{
                "temperature": asked.temperature,
                "max_tokens": asked.max_tokens,
                "stop": list(asked.stop),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
                "logprobs": 0,
                "logit_bias": dict.fromkeys(self.forbidden, FORBID),
            }
            | changes
        )
