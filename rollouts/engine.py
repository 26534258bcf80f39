"""Engines turn generation requests into trajectories: `Engine` is the promise, `VllmEngine` keeps it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from rl.errors import PolicyError, RolloutError, TaskError
from rl.types import EncodedImage, Message, SamplingParams, Task, Trajectory
from rollouts.dialogue import Dialogue, Passage, PlacedImage, Telling
from rollouts.prompts import render_follow_up, render_prompt, render_results, special_tokens, unsayable
from rollouts.tools.config import build_tools
from rollouts.tools.toolbox import NO_CALLS, Answered, Calls, Toolbox, ToolLimits

WAIT_S = 0.02  # for a remote tool, where nothing else is to be done
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
    tools: Mapping[str, Any] = field(default_factory=dict)
    tools_folder: str = "."
    tool_limits: ToolLimits = NO_CALLS
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
        self.max_num_seqs, self.max_model_len = settings.max_num_seqs, settings.max_model_len
        self.answers: dict[str, Answer] = {}
        self._added = 0
        self._waiting: deque[tuple[str, GenerationRequest]] = deque()
        self._in_progress: dict[str, list[Dialogue]] = {}
        self._turns: dict[str, tuple[str, Dialogue]] = {}
        """What is being written: the key of its request and the dialogue, by the engine's name for it."""
        self._tools = Toolbox(
            build_tools(settings.tools, settings.tools_folder),
            settings.tool_limits,
            unsayable=unsayable(self.processor),
        )
        self._calling: list[tuple[str, Dialogue, Calls]] = []
        """Dialogues that wait for their tools, with the keys of their requests."""
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
            self._take_up(*self._waiting.popleft())
        if not engine.has_unfinished_requests() and self._calling:
            self._calling[0][2].wait(WAIT_S)
        for output in engine.step() if engine.has_unfinished_requests() else ():
            if output.finished and output.request_id in self._turns:
                self._end_turn(output)
        self._tell_results()

    def forget(self, keys: Collection[str]) -> None:
        """See `Engine.forget`."""
        turns = [name for name, (key, _) in self._turns.items() if key in keys]
        self.llm.llm_engine.abort_request(turns)
        for name in turns:
            del self._turns[name]
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in keys)
        self._calling = [entry for entry in self._calling if entry[0] not in keys]
        for key in keys:
            self._in_progress.pop(key, None)
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
        """Begin the request's dialogues. What they have in common is rendered once."""
        task = request.task
        with self._refusals(key, task):
            text = render_prompt(task, self.processor, tools=self._tools.declarations)
            prompt = self._passage(text, task.images)
            follow_ups = [self._follow_up(task, number) for number in range(len(task.follow_ups))]
            self._in_progress[key] = [
                Dialogue(request, index, prompt=prompt, follow_ups=follow_ups, max_model_len=self.max_model_len)
                for index in range(request.num_samples)
            ]
            for dialogue in self._in_progress[key]:
                self._begin_turn(key, dialogue)

    def _begin_turn(self, key: str, dialogue: Dialogue) -> None:
        name = f"{key}/{dialogue.index}/{dialogue.turn}"
        self.llm.llm_engine.add_request(name, self._engine_input(dialogue), self._sampling_params(dialogue))
        self._turns[name] = key, dialogue

    def _end_turn(self, output: Any) -> None:
        key, dialogue = self._turns.pop(output.request_id)
        dialogue.add_turn(output.outputs[0], version=self.version)
        if dialogue.finish_reason == "stop" and (
            calls := self._tools.begin(dialogue.last_turn, dialogue.scene, made=dialogue.calls)
        ):
            self._calling.append((key, dialogue, calls))
        else:
            self._go_on(key, dialogue)

    def _tell_results(self) -> None:
        """Go on with the dialogues whose tools have answered."""
        answered = [entry for entry in self._calling if entry[2].done]
        self._calling = [entry for entry in self._calling if entry not in answered]
        for key, dialogue, calls in answered:
            if key not in self._in_progress:
                continue  # another dialogue of the request was refused meanwhile
            with self._refusals(key, dialogue.request.task):
                answers, results = self._told(dialogue.request.task, calls.answers())
                dialogue.add_calls((each.call for each in answers), broken=results is None)
                self._go_on(key, dialogue, results)

    def _go_on(self, key: str, dialogue: Dialogue, results: Telling | None = None) -> None:
        """Begin the next turn, or end the dialogue, and with its last one the request."""
        with self._refusals(key, dialogue.request.task):
            if dialogue.goes_on(results):
                self._begin_turn(key, dialogue)
            elif all(each.finished for each in self._in_progress[key]):
                self.answers[key] = tuple(each.trajectory() for each in self._in_progress.pop(key))

    @contextmanager
    def _refusals(self, key: str, task: Task) -> Iterator[None]:
        """What the engine refuses is the answer to its request, and all of the request is given up."""
        from vllm.exceptions import VLLMClientError

        try:
            yield
        except (TaskError, PolicyError) as error:
            self._refuse(key, str(error))
        except (ValueError, VLLMClientError) as error:
            self._refuse(
                key,
                f"task {task.id!r} cannot be given to the engine: {error}. Shorten its texts, shrink its images or "
                f"raise rollouts.max_model_len",
            )

    def _refuse(self, key: str, why: str) -> None:
        self.forget([key])
        self.answers[key] = RolloutError(why)

    def _follow_up(self, task: Task, number: int) -> Telling:
        text = render_follow_up(task, number, self.processor, tools=self._tools.declarations)
        return self._telling(text, task.follow_ups[number])

    def _told(self, task: Task, answers: list[Answered]) -> tuple[list[Answered], Telling | None]:
        """The answers with what the policy is told of them: nothing where a tool failed, or has shown what the engine
        cannot take, which costs this trajectory alone."""
        from vllm.exceptions import VLLMClientError

        if any(each.broken for each in answers):
            return answers, None
        try:
            return answers, self._results(task, answers)
        except (ValueError, VLLMClientError) as error:
            *others, last = answers
            call = replace(last.call, result=f"{last.call.result}: the engine cannot take it: {error}", ok=False)
            return [*others, replace(last, call=call, broken=True)], None

    def _results(self, task: Task, answers: Sequence[Answered]) -> Telling:
        results = [Message(text=each.call.result, images=each.images, role="tool") for each in answers]
        text = render_results(task, results, self.processor, tools=self._tools.declarations)
        images = tuple(image for result in results for image in result.images)
        return self._telling(text, Message(text="\n\n".join(each.text for each in results), images=images, role="tool"))

    def _telling(self, text: str, message: Message) -> Telling:
        # What tools answer is no fault of the task's: what there is no room for ends the dialogue, not the request.
        passage = self._passage(text, message.images, of_any_length=message.role == "tool")
        first = passage.token_ids[0]
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        ends_turn = tokenizer.convert_ids_to_tokens(first) in special_tokens(tokenizer)
        return Telling(message, passage, end_of_turn=first if ends_turn else None)

    def _passage(self, text: str, images: Sequence[EncodedImage], *, of_any_length: bool = False) -> Passage:
        """Text and its images as the engine takes them. The template has written the tokens that begin a text."""
        prompt: dict[str, Any] = {"prompt": text}
        if images:
            prompt["multi_modal_data"] = {"image": [image.decode() for image in images]}
            prompt["multi_modal_uuids"] = {"image": [image.sha256 for image in images]}
        renderer = self.llm.llm_engine.renderer
        # The renderer's other cache hands out an image's features once and then its name alone.
        as_it_stands = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        if of_any_length:
            as_it_stands = replace(as_it_stands, max_total_tokens=None)
        (given,) = renderer.render_cmpl([prompt], as_it_stands, skip_mm_cache=True)
        if not images:
            return Passage(given["prompt_token_ids"])
        placed = zip(images, given["mm_kwargs"]["image"], given["mm_placeholders"]["image"], strict=True)
        return Passage(
            given["prompt_token_ids"],
            tuple(
                PlacedImage(image.sha256, features, placeholder.offset, placeholder)
                for image, features, placeholder in placed
            ),
        )

    def _engine_input(self, dialogue: Dialogue) -> Any:
        """All that the turn is written after, under names that no other version of the weights shares in the prefix and
        encoder caches."""
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems

        salt = str(self.version)
        if not dialogue.images:
            return tokens_input(dialogue.token_ids, cache_salt=salt)
        images = dialogue.images
        return mm_input(
            dialogue.token_ids,
            MultiModalKwargsItems({"image": [image.features for image in images]}),
            {"image": [f"{image.sha256}@{salt}" for image in images]},
            {"image": [replace(image.placeholder, offset=image.offset) for image in images]},
            cache_salt=salt,
        )

    def _sampling_params(self, dialogue: Dialogue) -> Any:
        from vllm import SamplingParams as EngineSamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = dialogue.request.sampling
        return EngineSamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=dialogue.left_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            seed=dialogue.seed,
            logprobs=0,
            logit_bias=dict.fromkeys(self.forbidden, FORBID),
            output_kind=RequestOutputKind.FINAL_ONLY,
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
