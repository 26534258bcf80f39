"""Scored groups become a train batch: rewards to advantages, trajectories to samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rl.advantage import Baseline, Scale, advantages, per_reward_advantages
from rl.types import Group, ScoredTrajectory, TrainBatch, TrainSample, Trajectory


def make_train_batch(
    groups: Sequence[Group],
    *,
    baseline: Baseline,
    scale: Scale,
    per_reward: bool,
    weights: Mapping[str, float],
    gates: Collection[str],
    max_shaping: float,
    policy_version: int,
) -> TrainBatch:
    """All scored trajectories of groups that have at least two, each with its advantage.

    ``weights`` are the weights of the scorers that the reward averages, by name, ``gates`` the names of those that may
    close it, and ``max_shaping`` is the most that shaping takes off; they are read where ``per_reward`` normalises
    every scorer on its own. A group that broken scorers left with fewer than two rewards has no baseline and is left
    out.
    """
    usable = [group for group in groups if len(group.scored) >= 2]
    if per_reward:
        columns = [reward_columns(group, weights=weights, gates=gates) for group in usable]
        # A normalised column weighs its factor, however small its values: shaping must keep to its own size.
        computed = per_reward_advantages(columns, [*weights.values(), max_shaping * sum(weights.values())])
    else:
        rewards = [np.array([scored.reward for scored in group.scored]) for group in usable]
        computed = advantages(rewards, baseline=baseline, scale=scale)
    samples = tuple(
        train_sample(scored.trajectory, group=number, advantage=float(advantage))
        for number, (group, group_advantages) in enumerate(zip(usable, computed, strict=True))
        for scored, advantage in zip(group.scored, group_advantages, strict=True)
    )
    return TrainBatch(
        samples=samples,
        loss_tokens=sum(int(sample.loss_mask.sum()) for sample in samples),
        policy_version=policy_version,
    )


def train_sample(trajectory: Trajectory, *, group: int, advantage: float) -> TrainSample:
    """The token ids and logprobs that the engine returned, prompt then completion, nothing re-tokenized."""
    prompt = len(trajectory.prompt_token_ids)
    return TrainSample(
        trajectory_id=trajectory.id,
        group=group,
        token_ids=np.concatenate([trajectory.prompt_token_ids, trajectory.completion_token_ids]),
        prompt_length=prompt,
        loss_mask=np.concatenate([np.zeros(prompt, dtype=bool), trajectory.completion_mask]),
        rollout_logprobs=np.concatenate([np.full(prompt, np.nan, dtype=np.float32), trajectory.rollout_logprobs]),
        advantage=advantage,
        images=trajectory.images,
    )


def reward_columns(group: Group, *, weights: Mapping[str, float], gates: Collection[str]) -> np.ndarray:
    """Float64 [sample, reward] of a group's scored trajectories: one column per weighted scorer, zero where a gate
    closed and NaN where it abstained, and a last one for the shaping that the reward holds beside them."""
    return np.array([_columns_of(scored, weights, gates) for scored in group.scored])


def _columns_of(scored: ScoredTrajectory, weights: Mapping[str, float], gates: Collection[str]) -> list[float]:
    scores = {name: record.score for name, record in scored.scores.items() if record.score is not None}
    gate = float(all(scores[name].gate_open for name in gates if name in scores))
    values = [gate * scores[name].value if name in scores else np.nan for name in weights]
    present = [(weights[name], scores[name].value) for name in weights if name in scores]
    mean = sum(weight * value for weight, value in present) / sum(weight for weight, _ in present)
    return [*values, scored.reward - gate * mean]
