"""From rewards to advantages, group by group: pure functions of numpy arrays, in float64.

A group holds the rewards of the scored trajectories of one task. Unscored trajectories are not in it, so group sizes
may differ. Every advantage starts as ``(r - r[0]) - mean(r - r[0])``: for equal rewards ``r - r[0]`` is exactly zero,
whatever the value and the group size, whereas ``r - mean(r)`` may leave a rounding error (three times 0.1: 1.4e-17,
eight times 0.7 in float32: 6e-8) that a division by the standard deviation can blow up into a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[Any]
Advantages = NDArray[np.float64]
Sizes = NDArray[np.int64]
Baseline = Literal["group_mean", "leave_one_out"]
Scale = Literal["std", "none", "batch"]

STD_EPSILON = 1e-4
"""Added to every standard deviation, so that a spread far below 1e-4 counts as noise and not as signal."""


def advantages(
    groups: Sequence[Rewards],
    *,
    baseline: Baseline = "group_mean",
    scale: Scale = "none",
    epsilon: float = STD_EPSILON,
) -> list[Advantages]:
    """Centre the rewards of every group and scale them.

    ``groups``: one float array [sample] per group; returns as many float64 arrays of the same shapes.
    ``baseline``: ``group_mean`` (GRPO, arXiv:2402.03300) or ``leave_one_out``, the mean of the *other* rewards (RLOO,
    arXiv:2402.14740). ``scale``: divide by the group's standard deviation plus ``epsilon`` (``std``, GRPO), by that
    of all rewards of the batch (``batch``), or not at all (``none``, Dr. GRPO, arXiv:2503.20783). Standard deviations
    are the sample's (n - 1). Raises ValueError for a group of fewer than two, a reward that is not finite, and an
    unknown ``baseline`` or ``scale``.
    """
    if not groups:
        return []
    rewards, sizes = _joined(groups)
    starts = np.cumsum(sizes) - sizes
    centred = _centre_groups(rewards, starts, sizes)
    factors = _baseline_factors(baseline, sizes) / _divisors(rewards, centred, starts, sizes, scale, epsilon)
    scaled = centred * np.repeat(factors, sizes)
    return [scaled[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]


def per_reward_advantages(
    groups: Sequence[Rewards], weights: Sequence[float], *, epsilon: float = STD_EPSILON
) -> list[Advantages]:
    """Normalise every reward on its own within the group, sum with ``weights``, and normalise over the batch.

    ``groups``: one float array [sample, reward] per group, NaN where a scorer abstained; ``weights`` [reward];
    returns one float64 array [sample] per group. A reward that fewer than two samples of a group have says nothing
    about the group and adds zero. Two trajectories that reach one sum by different rewards keep different
    advantages, which a sum taken before the normalisation would merge (GDPO, arXiv:2601.05242). Raises ValueError for
    a group of fewer than two, a sample without any reward, an infinite reward, and weights that do not fit.

    The weighted sum of each group is zero by construction, hence so is the batch mean: only the division by the
    batch's standard deviation is left to do, and equal rewards stay exactly zero.
    """
    rewards = [_checked(group, index, ndim=2) for index, group in enumerate(groups)]
    factors = _checked_weights(weights, rewards)
    summed = [_normalise_columns(group, epsilon) @ factors for group in rewards]
    divisor = _std(np.concatenate(summed)) + epsilon if summed else 1.0
    return [group / divisor for group in summed]


def has_signal(rewards: Rewards) -> bool:
    """Whether any two rewards of a group differ, without which all its advantages are zero.

    ``rewards`` [sample], or [sample, reward] with NaN where a scorer abstained. Groups without signal are refilled by
    dynamic sampling (DAPO, arXiv:2503.14476).
    """
    values = np.asarray(rewards, dtype=np.float64)
    return len(values) > 0 and bool(np.any(np.fmax.reduce(values) > np.fmin.reduce(values)))


def _checked(group: Rewards, index: int, *, ndim: int) -> Advantages:
    values = np.asarray(group, dtype=np.float64)
    if values.ndim != ndim:
        axes = "[sample]" if ndim == 1 else "[sample, reward]"
        raise ValueError(f"the rewards of a group must have axes {axes}; got shape {values.shape} in group {index}")
    if len(values) < 2:
        raise ValueError(
            f"the number of scored trajectories in a group must be >= 2 to centre rewards; got {len(values)} in group "
            f"{index} (leave such groups out)"
        )
    missing = np.isnan(values).all(axis=-1) if ndim == 2 else np.isnan(values)
    if missing.any() or np.isinf(values).any():
        raise ValueError(
            f"a reward must be a finite number; got {group!r} in group {index} (leave unscored trajectories out)"
        )
    return values


def _checked_weights(weights: Sequence[float], groups: list[Advantages]) -> Advantages:
    factors = np.asarray(weights, dtype=np.float64)
    if factors.ndim != 1 or not np.isfinite(factors).all():
        raise ValueError(f"weights must be finite numbers, one per reward; got {weights!r}")
    for index, group in enumerate(groups):
        if group.shape[1] != len(factors):
            raise ValueError(f"group {index} has {group.shape[1]} rewards; got {len(factors)} weights")
    return factors


def _centre(rewards: Advantages) -> Advantages:
    shifted: Advantages = rewards - rewards[0]
    shifted -= shifted.mean()
    return shifted


def _joined(groups: Sequence[Rewards]) -> tuple[Advantages, Sizes]:
    """All rewards [sample] one group after the other, and the size of each group: a loop over groups would cost more
    than the arithmetic."""
    sizes = np.array([len(group) for group in groups])
    flat = np.concatenate(groups, dtype=np.float64)
    if flat.ndim != 1 or sizes.min() < 2 or not np.isfinite(flat).all():
        for index, group in enumerate(groups):
            _checked(group, index, ndim=1)  # says which of them it is
    return flat, sizes


def _centre_groups(rewards: Advantages, starts: Sizes, sizes: Sizes) -> Advantages:
    shifted: Advantages = rewards - np.repeat(rewards[starts], sizes)
    shifted -= np.repeat(np.add.reduceat(shifted, starts) / sizes, sizes)
    return shifted


def _baseline_factors(baseline: Baseline, sizes: Sizes) -> Advantages:
    if baseline == "group_mean":
        return np.ones(len(sizes))
    if baseline == "leave_one_out":
        return sizes / (sizes - 1)  # r_i - mean of the others = n / (n - 1) * (r_i - mean of all)
    raise ValueError(f"baseline must be 'group_mean' or 'leave_one_out'; got {baseline!r}")


def _divisors(
    rewards: Advantages, centred: Advantages, starts: Sizes, sizes: Sizes, scale: Scale, epsilon: float
) -> Advantages | float:
    if scale == "none":
        return 1.0
    if scale == "std":
        return np.sqrt(np.add.reduceat(np.square(centred), starts) / (sizes - 1)) + epsilon
    if scale == "batch":
        return _std(rewards) + epsilon
    raise ValueError(f"scale must be 'std', 'none' or 'batch'; got {scale!r}")


def _std(values: Advantages) -> float:
    return float(np.sqrt(np.square(_centre(values)).sum() / (len(values) - 1)))


def _normalise_columns(rewards: Advantages, epsilon: float) -> Advantages:
    """[sample, reward] with NaN for abstained → the same shape, every column centred and scaled, zero for NaN."""
    normalised = np.zeros_like(rewards)
    for column in range(rewards.shape[1]):
        present = ~np.isnan(rewards[:, column])
        if present.sum() >= 2:
            values = rewards[present, column]
            normalised[present, column] = _centre(values) / (_std(values) + epsilon)
    return normalised
