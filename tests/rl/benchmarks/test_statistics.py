"""Estimates of an evaluation, against numbers derived by hand and independent implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rl.benchmarks.statistics import bootstrap_interval, majority_correct, mcnemar, paired_test, pass_at_k


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: int, correct: int, k: int) -> None:
    draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k=k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_fewer_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@4 needs at least 4 samples of a task; there are 3"):
        pass_at_k(3, 1, k=4)


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        ([("A", False), ("B", True), ("B", True)], 1.0),
        ([("A", False), ("A", False), ("B", True)], 0.0),
        ([("A", False), ("B", True)], 0.5),  # a tie: as if drawn by lot
        ([("", False), ("", False), ("B", True)], 1.0),  # no answer is no vote
        ([("", False)], 0.0),
    ],
)
def test_the_majority_is_right_or_drawn_by_lot(answers: list[tuple[str, bool]], right: float) -> None:
    assert majority_correct(answers) == right


def test_the_interval_of_a_share_is_about_the_normal_one() -> None:
    """60 of 100: 0.6 ± 1.96 √(.6 · .4 / 100) = 0.504 … 0.696."""
    low, high = bootstrap_interval([1.0] * 60 + [0.0] * 40) or (math.nan, math.nan)
    assert low == pytest.approx(0.504, abs=0.015) and high == pytest.approx(0.696, abs=0.015)
    assert (low, high) == bootstrap_interval([1.0] * 60 + [0.0] * 40)  # the same every time


def test_tasks_about_one_image_count_as_one_sample() -> None:
    """20 images with five equal answers each: the standard error is that of 20 samples, √5 times as large.

    The bounds are multiples of 1/20 and 1/100, so that this holds within a quarter.
    """
    values = [float(image % 2) for image in range(20) for _ in range(5)]
    apart = bootstrap_interval(values)
    together = bootstrap_interval(values, [image for image in range(20) for _ in range(5)])
    assert apart and together
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(math.sqrt(5), rel=0.25)


def test_clusters_of_different_sizes_keep_the_mean_of_tasks() -> None:
    """A cluster of 90 zeros and ten single ones: the mean is .1, and an interval around the mean of clusters, .91,
    would not hold it."""
    low, high = bootstrap_interval([0.0] * 90 + [1.0] * 10, [0] * 90 + list(range(1, 11))) or (math.nan, math.nan)
    assert low <= 0.1 <= high


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 50])
def test_values_without_spread_have_no_interval(values: list[float]) -> None:
    assert bootstrap_interval(values) is None


def test_mcnemar_is_a_fair_coin_for_the_tasks_that_differ() -> None:
    """1 worse, 5 better: 2 · (C(6,0) + C(6,1)) / 2⁶ = 14/64."""
    assert mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(0, 0) == 1.0


def test_two_accuracies_are_compared_by_mcnemar() -> None:
    found = paired_test([0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1, 1])
    assert (found.test, found.better, found.worse) == ("exact McNemar", 5, 1)
    assert found.p == pytest.approx(14 / 64)
    assert found.difference == pytest.approx(0.5)


def test_two_scores_are_compared_by_all_signs() -> None:
    """Differences .1, .2, .4: the largest mean of 2³ sign patterns, so p = 2/8."""
    found = paired_test([0.1, 0.2, 0.3], [0.2, 0.4, 0.7])
    assert found.test == "sign permutation" and found.p == pytest.approx(0.25)


def test_answers_about_one_image_are_flipped_together() -> None:
    """Ten better answers, all about one of two images: of the two sums 10 and 0 both signs are as large, p = 1."""
    clusters = [0] * 10 + [1] * 10
    found = paired_test([0.0] * 20, [1.0] * 10 + [0.0] * 10, clusters)
    assert found.p == 1.0
    assert paired_test([0.0] * 20, [1.0] * 10 + [0.0] * 10).p == pytest.approx(2 / 2**10)


def test_no_difference_is_no_evidence() -> None:
    assert paired_test([0.25, 0.5], [0.25, 0.5]).p == 1.0


def test_different_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="the same tasks of both models; got 1 and 2"):
        paired_test([0.0], [0.0, 1.0])


@pytest.mark.slow
def test_p_values_are_uniform_where_nothing_differs() -> None:
    """The permutation test holds its level: of 200 null comparisons about 5 % fall below .05."""
    generator = np.random.default_rng(0)
    below = sum(paired_test(generator.random(8).tolist(), generator.random(8).tolist()).p <= 0.05 for _ in range(200))
    assert below <= 20  # 10 are expected; more than 20 has a chance below .002
