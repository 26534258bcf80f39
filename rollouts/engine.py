"""Engines turn generation requests into trajectories: `Engine` is the promise, `VllmEngine` keeps it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from rl.errors import RolloutError
from rl.types import SamplingParams, Task, Trajectory
from rollouts.prompts import render_prompt

FORBID = -100.0  # a logit bias that no logit can outweigh
PREFIX_BLOCK_TOKENS = 32  # the engine's default of 128 never finds a short prompt in its prefix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Ask for ``num_samples`` trajectories of one task. Sample i draws with seed ``seed + i``."""

    id: str
    task: Task
    num_samples: int
    seed: int
    sampling: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is built from; see the keys of the same names in the config's ``rollouts`` section."""

    policy_path: str
    dtype: str
    seed: int
    temperature: float
    max_model_len: int
    max_num_seqs: int
    kv_cache_mb: int
    gpu_memory_utilization: float
    max_images: int
    enforce_eager: bool
    tensor_parallel: int
    trust_remote_code: bool
    on_gpu: bool
    updates_in_flight: bool = False
    weight_transfer: Literal["host", "nccl"] = "host"


Answer = tuple[Trajectory, ...] | RolloutError
"""The trajectories of a request, in order of its samples, or why it was refused."""


class Engine(Protocol):
    """Generates step by step, with one set of weights at a time; in between, requests are added and weights change."""

    answers: dict[str, Answer]
    """What is done and was not fetched yet, by the key of the request, in order of completion."""

    def add(self, request: GenerationRequest, *, first: bool = False) -> str:
        """Queue ``request``, with ``first`` before all that wait; returns the key that its answer will have."""
        ...

    def step(self) -> None:
        """Write one more token of every completion in progress."""
        ...

    def forget(self, keys: Collection[str]) -> None:
        """Give up requests that nobody waits for any more."""
        ...

    def connect(self, group: Mapping[str, Any]) -> None:
        """Meet the learner and the other engines in a group that weights will come by. Returns once all are there."""
        ...

    def load_weights(self, update: Mapping[str, Any], *, version: int) -> None:
        """Replace the weights. What is half-written goes on with them; nothing else computed with the old is used.

        ``update`` holds them, as ``tensors`` by checkpoint name, or announces those that come by the group.
        """
        ...

    def drop_caches(self) -> None:
        """Forget every prompt."""
        ...


class VllmEngine:
    """A vLLM engine inside this process: all requests in one continuous batch.

    In-process (no engine child) so that a batch of requests is scheduled the same way at every run, and weights are
    handed over without a copy to disk. Logprobs are those of the sampling distribution: raw at temperature 1,
    otherwise after the temperature.

    Weights that are loaded while completions are half-written leave their keys and values as they are
    (PipelineRL, arXiv:2509.19128): what was written is not computed again. Requests that are taken up afterwards share
    nothing with them, since the engine's caches go by the version of the weights.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from transformers import AutoProcessor
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from rollouts.weight_transfer import BACKEND

        by_host = settings.weight_transfer == "host"
        memory: dict[str, Any] = (
            {"gpu_memory_utilization": settings.gpu_memory_utilization}
            if settings.on_gpu
            else {
                "kv_cache_memory_bytes": settings.kv_cache_mb << 20,
                # After a piece of a prompt the engine rewinds the request's generator, which none on the CPU can.
                "enable_chunked_prefill": False,
            }
        )
        self.llm = LLM(
            settings.policy_path,
            dtype=settings.dtype,
            seed=settings.seed,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            tensor_parallel_size=settings.tensor_parallel,
            limit_mm_per_prompt={"image": settings.max_images},
            enforce_eager=settings.enforce_eager,
            trust_remote_code=settings.trust_remote_code,
            block_size=PREFIX_BLOCK_TOKENS,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs" if settings.temperature == 1.0 else "processed_logprobs",
            worker_extension_cls="rollouts.weight_transfer.WeightReceiver",
            weight_transfer_config=WeightTransferConfig(backend=BACKEND if by_host else "nccl"),
            disable_log_stats=True,
            # A pass that was begun before the weights changed would end under the name of the new ones.
            async_scheduling=False if settings.updates_in_flight else None,
            **memory,
        )
        if by_host:
            self.llm.init_weight_transfer_engine({"init_info": {}})
        self.processor = AutoProcessor.from_pretrained(
            settings.policy_path, trust_remote_code=settings.trust_remote_code
        )
        self.forbidden = image_token_ids(self.processor, self.llm.llm_engine.model_config.hf_config)
        self.max_num_seqs = settings.max_num_seqs
        self.answers: dict[str, Answer] = {}
        self._added = 0
        self._waiting: deque[tuple[str, GenerationRequest]] = deque()
        self._in_progress: dict[str, tuple[GenerationRequest, float]] = {}
        self.version = 0
        self.llm.update_weight_version("0")

    def add(self, request: GenerationRequest, *, first: bool = False) -> str:
        """See `Engine.add`. Its prompt is made when its turn comes, by the weights of that time."""
        self._added += 1
        key = f"{self._added}/{request.id}"
        (self._waiting.appendleft if first else self._waiting.append)((key, request))
        return key

    def step(self) -> None:
        """See `Engine.step`. A prompt that the engine refuses is answered by a RolloutError that names the task."""
        engine = self.llm.llm_engine
        # No more than fill the batch: whoever comes first is not kept waiting by what the engine has taken up already.
        while self._waiting and engine.get_num_unfinished_requests() < self.max_num_seqs:
            key, request = self._waiting.popleft()
            try:
                self._take_up(key, request)
            except RolloutError as refusal:
                self.answers[key] = refusal
        for output in engine.step() if engine.has_unfinished_requests() else ():
            if output.finished:
                request, began = self._in_progress.pop(output.request_id)
                self.answers[output.request_id] = self._trajectories(
                    request, output, duration_s=time.perf_counter() - began
                )

    def forget(self, keys: Collection[str]) -> None:
        """See `Engine.forget`."""
        self.llm.llm_engine.abort_request([key for key in keys if self._in_progress.pop(key, None)])
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in keys)
        for key in keys:
            self.answers.pop(key, None)

    def connect(self, group: Mapping[str, Any]) -> None:
        """See `Engine.connect`; ``group`` is vLLM's NCCLWeightTransferInitInfo."""
        self.llm.init_weight_transfer_engine({"init_info": dict(group)})

    def load_weights(self, update: Mapping[str, Any], *, version: int) -> None:
        """Load in place, see `Engine.load_weights`; announced are ``names``, ``dtype_names`` and ``shapes``."""
        self.llm.start_weight_update()
        self.llm.update_weights({"update_info": dict(update)})
        self.llm.finish_weight_update(str(version))
        self.version = version
        if not self._in_progress:
            self.drop_caches()

    def drop_caches(self) -> None:
        """Forget every prompt: what an engine has in its caches decides what it computes together, and so rounding."""
        if not self.llm.reset_prefix_cache():
            raise RolloutError("the engine kept its prefix cache; requests were still running")
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.llm_engine.reset_mm_cache()

    def _take_up(self, key: str, request: GenerationRequest) -> None:
        from vllm.exceptions import VLLMClientError

        try:
            self.llm.llm_engine.add_request(key, self._prompt(request.task), self._sampling_params(request))
        except (ValueError, VLLMClientError) as error:
            raise RolloutError(
                f"task {request.task.id!r} cannot be given to the engine: {error}. Shorten the question, shrink its "
                f"images or raise rollouts.max_model_len"
            ) from None
        self._in_progress[key] = request, time.perf_counter()

    def _prompt(self, task: Task) -> dict[str, Any]:
        """The prompt, under names that no other version of the weights shares in the prefix and encoder caches."""
        prompt: dict[str, Any] = {"prompt": render_prompt(task, self.processor), "cache_salt": str(self.version)}
        if task.images:
            prompt["multi_modal_data"] = {"image": [image.decode() for image in task.images]}
            prompt["multi_modal_uuids"] = {"image": [f"{image.sha256}@{self.version}" for image in task.images]}
        return prompt

    def _sampling_params(self, request: GenerationRequest) -> Any:
        from vllm import SamplingParams as EngineSamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        return EngineSamplingParams(
            n=request.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            seed=request.seed,
            logprobs=0,
            logit_bias=dict.fromkeys(self.forbidden, FORBID),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _trajectories(self, request: GenerationRequest, output: Any, *, duration_s: float) -> tuple[Trajectory, ...]:
        prompt_token_ids = np.asarray(output.prompt_token_ids, dtype=np.int32)
        return tuple(
            self._trajectory(request, completion, prompt_token_ids, duration_s=duration_s)
            for completion in sorted(output.outputs, key=lambda completion: completion.index)
        )

    def _trajectory(
        self, request: GenerationRequest, completion: Any, prompt_token_ids: np.ndarray, *, duration_s: float
    ) -> Trajectory:
        token_ids = np.asarray(completion.token_ids, dtype=np.int32)
        logprobs = [
            position[token].logprob for position, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        spans = [(span.start, int(span.version)) for span in completion.weight_versions]
        (_, began_by), *later = spans or [(0, self.version)]
        return Trajectory(
            id=f"{request.id}/{completion.index}",
            task=request.task,
            sample_index=completion.index,
            prompt_token_ids=prompt_token_ids,
            completion_token_ids=token_ids,
            completion_mask=np.ones(len(token_ids), dtype=bool),
            rollout_logprobs=np.asarray(logprobs, dtype=np.float32),
            text=completion.text,
            finish_reason=completion.finish_reason,
            policy_version=began_by,
            later_versions=tuple(later),
            seed=request.seed + completion.index,
            sampling=request.sampling,
            duration_s=duration_s,
        )


def image_token_ids(processor: Any, model_config: Any) -> tuple[int, ...]:
    """Ids of the tokens that stand for images and videos. A policy must not write them: there would be no image."""
    found = set()
    for owner in (processor, model_config):
        for name in dir(owner):
            is_id = name.endswith(("_token_id", "_token_index")) and name.startswith(("image", "video", "vision"))
            if is_id and isinstance(value := getattr(owner, name), int):
                found.add(value)
    return tuple(sorted(found))
