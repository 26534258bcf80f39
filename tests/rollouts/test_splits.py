"""Splits by a hash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.errors import ConfigError
from rollouts.cytology import load_cytology
from rollouts.splits import held_out_images, is_held_out, tuning_split

CASES = st.lists(st.lists(st.integers(0, 20).map(lambda n: b"%d" % n), min_size=1, max_size=3), max_size=20)


def test_about_the_fraction_is_held_out_and_never_changes() -> None:
    held_out = [key for key in range(4000) if is_held_out(b"%d" % key, fraction=0.25)]
    assert 900 < len(held_out) < 1100  # 1,000 on average with a standard deviation of 27
    # sha256(b"1") = 6b86b273…, 0x6b / 256 = .42; sha256(b"3") = 4e074085…, 0x4e / 256 = .30
    assert not is_held_out(b"1", fraction=0.41) and is_held_out(b"1", fraction=0.43)
    assert not is_held_out(b"3", fraction=0.30) and is_held_out(b"3", fraction=0.31)


@given(CASES)
def test_the_images_of_a_case_are_on_one_side(cases: list[list[bytes]]) -> None:
    held_out = held_out_images(cases, fraction=0.5)
    for case in cases:
        assert len({image in held_out for image in case}) == 1


@given(CASES)
def test_the_order_of_cases_does_not_matter(cases: list[list[bytes]]) -> None:
    shuffled = [case[::-1] for case in cases[::-1]]
    assert held_out_images(cases, fraction=0.5) == held_out_images(shuffled, fraction=0.5)


@pytest.mark.slow
def test_the_tuning_tasks_are_the_same_for_every_seed_and_never_trained_on() -> None:
    training, tuning = tuning_split(load_cytology("train", seed=0), share=0.3)
    assert {task.id for task in tuning_split(load_cytology("train", seed=1), share=0.3)[1]} == {
        task.id for task in tuning
    }
    assert len(training) + len(tuning) == 419
    assert not {task.id for task in training} & {task.id for task in tuning}
    assert len(tuning) == pytest.approx(126, abs=29)  # 419 x 0.3; three standard deviations


def test_a_split_that_leaves_nothing_to_tune_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves 419 to train and 0 to tune on"):
        tuning_split(load_cytology("train"), share=1e-9)
