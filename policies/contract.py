"""What the loop and the learner's ranks exchange; needs no torch, so that the driver does not load it for this."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What a learner is built from; see the keys of the same names in the config's ``learner`` and ``policy``."""

    policy_path: str
    dtype: str
    seed: int
    trust_remote_code: bool
    gradient_checkpointing: bool
    lora_rank: int
    lora_alpha: float
    lora_target_modules: tuple[str, ...]
    with_reference: bool
    entropy_gradient: bool
    temperature: float
    zero_stage: int
    offload_optimizer: bool
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    weight_decay: float
    adam_betas: tuple[float, float]
    max_grad_norm: float
    minibatches: int
    micro_batch_tokens: int
    packing: bool
    attention: Literal["sdpa", "flex", "flash"]
    on_gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """What an update measures its divergence and its ratios from: logprobs of trained tokens, float32 [loss_token] by
    trajectory id, under the frozen ``reference`` and under the weights before its first optimizer step."""

    reference: Mapping[str, np.ndarray] = field(default_factory=dict)
    before: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUpdate:
    """What one rank reports of an update: sums over its ``tokens``, and its samples' logprobs before the update.

    Both go by a sample's place in the batch: ``logprobs``, float32 [loss_token], and ``micro_batches``, the number of
    the forward pass that trained it, counted over the mini-batches, passes and ranks of the update.
    """

    shares: Mapping[str, float]
    """Parts of a mean over the whole batch: they add up over ranks."""
    sums: Mapping[str, float]
    maxima: Mapping[str, float]
    tokens: int
    logprobs: Mapping[int, np.ndarray]
    micro_batches: Mapping[int, int]
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update did, over all ranks.

    ``stats`` are means per token and maxima by metric name, the gradient's norm before clipping and the learning rate
    (of the last mini-batch). By sample, in the order of the batch: ``logprobs`` before the update, float32
    [loss_token], and ``micro_batches`` (see `RankUpdate`).
    """

    stats: Mapping[str, float]
    logprobs: Sequence[np.ndarray]
    micro_batches: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A digest of all of the policy's weights, by name, type, shape and bytes (SHA-256), and the size of those among
    them that are handed out."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """A gradient beside the one of the whole batch: its norm, and the dot product of both."""

    norm: float
    dot: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """The gradient of a whole batch, before clipping, and how others lie to it.

    ``samples`` has the part of each sample, in order of the batch: they add up to the whole, and so do their dot
    products with it to ``norm`` squared. ``variants`` has the gradient of each other batch or loss.
    """

    norm: float
    samples: Sequence[Gradient]
    variants: Sequence[Gradient]


def merge_updates(updates: Sequence[RankUpdate]) -> Update:
    """What all ranks together did."""
    tokens = sum(update.tokens for update in updates)
    merged: dict[str, float] = {}
    logprobs: dict[int, np.ndarray] = {}
    micro_batches: dict[int, int] = {}
    for update in updates:
        logprobs |= update.logprobs
        micro_batches |= update.micro_batches
        for name, value in update.shares.items():
            merged[name] = merged.get(name, 0.0) + value
        for name, value in update.sums.items():
            merged[name] = merged.get(name, 0.0) + value / tokens
        for name, value in update.maxima.items():
            merged[name] = max(merged.get(name, -math.inf), value)
    merged |= {"grad_norm": updates[0].grad_norm, "learning_rate": updates[0].learning_rate}
    return Update(
        stats=merged,
        logprobs=[logprobs[place] for place in sorted(logprobs)],
        micro_batches=[micro_batches[place] for place in sorted(micro_batches)],
    )
