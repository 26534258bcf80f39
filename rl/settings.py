"""From the config's sections to what engines, learner and loss are built from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policies.contract import LearnerSettings
from rewards.judge import EngineEndpoint
from rl.config_schema import LearnerConfig, RunConfig
from rl.types import SamplingParams
from rollouts.chat_server import ChatServerSettings
from rollouts.engine import EngineSettings
from rollouts.tools.toolbox import ToolLimits


def engine_settings(config: RunConfig, policy_path: str) -> EngineSettings:
    rollouts = config.rollouts
    return EngineSettings(
        policy_path=_found_anywhere(policy_path),
        dtype=config.policy.dtype,
        seed=config.seed,
        temperature=config.sampling.temperature,
        max_model_len=rollouts.max_model_len,
        max_num_seqs=rollouts.max_num_seqs,
        kv_cache_mb=rollouts.kv_cache_mb,
        gpu_memory_utilization=rollouts.gpu_memory_utilization,
        max_images=rollouts.max_images,
        enforce_eager=rollouts.enforce_eager,
        tensor_parallel=rollouts.tensor_parallel,
        trust_remote_code=config.policy.trust_remote_code,
        on_gpu=rollouts.gpus_per_worker > 0,
        tools=rollouts.tools,
        tools_folder=rollouts.tools_dir,
        tool_limits=tool_limits(config),
        updates_in_flight=config.async_.max_staleness > 0,
        weight_transfer=rollouts.weight_transfer,  # type: ignore[arg-type]
    )


def tool_limits(config: RunConfig) -> ToolLimits:
    return ToolLimits(
        calls=config.rollouts.max_tool_calls,
        images=config.rollouts.max_images,
        image_pixels=config.tasks.max_image_pixels,
        timeout_s=config.rollouts.tool_timeout_s,
    )


def chat_server_settings(engine: EngineEndpoint) -> ChatServerSettings:
    return ChatServerSettings(
        policy=engine.policy,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        tensor_parallel=engine.tensor_parallel,
        kv_cache_mb=engine.kv_cache_mb,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        start_timeout_s=engine.start_timeout_s,
        on_gpu=engine.gpus > 0,
    )


def learner_settings(config: RunConfig, policy_path: str) -> LearnerSettings:
    learner, policy = config.learner, config.policy
    return LearnerSettings(
        policy_path=_found_anywhere(policy_path),
        dtype=policy.dtype,
        seed=config.seed,
        trust_remote_code=policy.trust_remote_code,
        gradient_checkpointing=policy.gradient_checkpointing,
        lora_rank=policy.lora.rank,
        lora_alpha=policy.lora.alpha,
        lora_target_modules=tuple(policy.lora.target_modules),
        with_reference=config.loss.kl_coef > 0,
        entropy_gradient=config.loss.entropy_coef > 0,
        temperature=config.sampling.temperature,
        zero_stage=learner.zero_stage,
        offload_optimizer=learner.offload_optimizer,
        learning_rate=learner.learning_rate,
        warmup_steps=learner.warmup_steps,
        decay_steps=learner.decay_steps,
        weight_decay=learner.weight_decay,
        adam_betas=(learner.adam_betas[0], learner.adam_betas[1]),
        max_grad_norm=learner.max_grad_norm,
        minibatches=learner.minibatches,
        micro_batch_tokens=learner.micro_batch_tokens,
        packing=learner.packing,
        attention=_attention_kernel(learner),
        on_gpu=learner.gpus_per_rank > 0,
    )


def _found_anywhere(policy_path: str) -> str:
    """The folder of a policy by a path that holds for actors, which may run in another folder; a hub id as it is."""
    return str(Path(policy_path).resolve()) if Path(policy_path).is_dir() else policy_path


def _attention_kernel(learner: LearnerConfig) -> Any:
    """What ``auto`` stands for: the kernel that never holds a branch's keys twice, where there is one."""
    if learner.attention == "auto":
        return "flex" if learner.gpus_per_rank > 0 else "sdpa"
    return learner.attention


def loss_function(config: RunConfig) -> Callable[..., Any]:
    """`rl.loss.policy_loss` with the config's settings bound; picklable, since the learner's ranks call it."""
    from rl.loss import LossSettings, policy_loss

    loss = config.loss
    settings = LossSettings(
        objective=loss.objective,  # type: ignore[arg-type]
        importance=loss.importance,  # type: ignore[arg-type]
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        dual_clip=loss.dual_clip,
        kl_coef=loss.kl_coef,
        kl_estimator=loss.kl_estimator,  # type: ignore[arg-type]
        entropy_coef=loss.entropy_coef,
        aggregation=loss.aggregation,  # type: ignore[arg-type]
        max_tokens=config.sampling.max_tokens,
        correction=loss.rollout_correction.mode,  # type: ignore[arg-type]
        correction_level=loss.rollout_correction.level,  # type: ignore[arg-type]
        correction_cap=loss.rollout_correction.cap,
    )
    return functools.partial(policy_loss, settings=settings)


def has_early_forward(config: RunConfig) -> bool:
    """Whether the learner rests while groups are written, and needs more than its update's own passes over them."""
    return not config.async_.max_staleness and (config.loss.kl_coef > 0 or config.learner.minibatches > 1)


def training_sampling(config: RunConfig) -> SamplingParams:
    sampling = config.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=tuple(sampling.stop),
    )


def greedy_sampling(config: RunConfig) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=config.sampling.max_tokens, stop=tuple(config.sampling.stop))
