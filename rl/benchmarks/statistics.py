"""Estimates of an evaluation and how far to trust them: pass@k, majority, bootstrap intervals, paired tests. Pure.

Tasks that ask about one image are no independent samples: where ``clusters`` names what each task belongs to, whole
clusters are drawn and flipped.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
Interval = tuple[float, float]


def pass_at_k(samples: int, correct: int, *, k: int) -> float:
    """The chance that one of ``k`` samples is right, unbiased: ``1 − C(n−c, k) / C(n, k)`` (arXiv:2107.03374).

    Raises ValueError where there are fewer than ``k`` samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of a task; there are {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_correct(answers: Sequence[tuple[str, bool]]) -> float:
    """Whether the most frequent answer is right; of several equally frequent ones the share that is.

    ``answers`` are readings, equal for equal answers, and whether each is right; an empty reading gives no vote. 0
    without a vote.
    """
    votes: dict[str, list[bool]] = {}
    for reading, right in answers:
        if reading:
            votes.setdefault(reading, []).append(right)
    most = max(map(len, votes.values()), default=0)
    leading = [float(any(rights)) for rights in votes.values() if len(rights) == most]
    return sum(leading) / len(leading) if leading else 0.0


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Interval | None:
    """The 95 % percentile interval of the mean over 2,000 resamples; None where no two clusters differ, since values
    without any spread say nothing of how they would spread."""
    from scipy.stats import bootstrap

    sums, counts = _by_cluster(values, clusters)
    if len(sums) < 2 or np.ptp(sums / counts) == 0:
        return None
    found = bootstrap(
        (sums, counts),
        lambda totals, sizes, axis: totals.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two models on the same tasks. ``difference`` is the second mean minus the first; ``better`` and ``worse`` count
    the tasks on which the second did so. ``p`` is two-sided, by the ``test`` that is named."""

    tasks: int
    before: float
    after: float
    difference: float
    interval: Interval | None
    better: int
    worse: int
    p: float
    test: str


def paired_test(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Paired:
    """McNemar's exact test where every value is 0 or 1 and tasks are independent, otherwise a permutation test of the
    mean difference by random signs.

    Raises ValueError for no tasks at all, or two lengths.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"a paired test needs the same tasks of both models; got {len(before)} and {len(after)}")
    differences = np.subtract(after, before)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    independent = clusters is None or len(set(clusters)) == len(before)
    if independent and set(before) | set(after) <= {0.0, 1.0}:
        p, test = mcnemar(better, worse), "exact McNemar"
    else:
        p, test = _sign_flips(_by_cluster(differences, clusters)[0], seed=seed), "sign permutation"
    return Paired(
        tasks=len(before),
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences.tolist(), clusters, seed=seed),
        better=better,
        worse=worse,
        p=p,
        test=test,
    )


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p of McNemar's test: a fair coin for each task on which the two models differ."""
    from scipy.stats import binomtest

    discordant = better + worse
    return float(binomtest(better, discordant, 0.5).pvalue) if discordant else 1.0


def _sign_flips(sums: np.ndarray, *, seed: int) -> float:
    from scipy.stats import permutation_test

    if not sums.any():
        return 1.0
    found = permutation_test(
        (sums,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=5 * RESAMPLES,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _by_cluster(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster; each value for itself without clusters."""
    if clusters is None:
        return np.asarray(values, dtype=np.float64), np.ones(len(values))
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=len(numbers))
    return sums, np.bincount(index, minlength=len(numbers)).astype(np.float64)
