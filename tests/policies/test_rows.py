"""Rows and passes: what the samples of a group share, and which rank runs what."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rows import Row, group_rows, plan_passes
from rl.errors import LearnerError
from rl.types import EncodedImage, TrainSample
from tests.samples import a_sample

IMAGE = 9


def an_image(content: bytes) -> EncodedImage:
    """Stands in the tokens as often as it has bytes."""
    return EncodedImage(content=content, width=1, height=1)


def row_of(samples: Sequence[TrainSample]) -> Row:
    (row,) = group_rows(samples, image_token_id=IMAGE, image_tokens=lambda image: len(image.content))
    return row


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    ranks=st.integers(1, 5),
    budget=st.integers(1, 2000),
    padded=st.booleans(),
)
def test_a_plan_runs_every_row_once_within_the_budget_and_gives_every_rank_as_many_passes(
    lengths: list[int], ranks: int, budget: int, padded: bool
) -> None:
    plan = plan_passes(lengths, ranks=ranks, budget_tokens=budget, padded=padded)
    assert sorted(row for share in plan for rows in share for row in rows) == list(range(len(lengths)))
    assert len(plan) == ranks and len({len(share) for share in plan}) == 1
    for rows in (rows for share in plan for rows in share if len(rows) > 1):
        sizes = [lengths[row] for row in rows]
        assert (len(rows) * max(sizes) if padded else sum(sizes)) <= budget


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40), ranks=st.integers(1, 5))
def test_no_rank_has_more_than_one_row_more_to_do_than_another(lengths: list[int], ranks: int) -> None:
    plan = plan_passes(lengths, ranks=ranks, budget_tokens=1000, padded=False)
    loads = [sum(lengths[row] for rows in share for row in rows) for share in plan]
    assert max(loads) - min(loads) <= max(lengths)


def test_rows_of_unequal_length_fill_a_pass_where_nothing_is_padded() -> None:
    # 60 + 40 and 30 + 30 + 30 fit in 100 tokens; padded to their longest row, 60 + 40 would take 120
    lengths = [60, 40, 30, 30, 30]
    assert plan_passes(lengths, ranks=1, budget_tokens=100, padded=False) == [[(0, 1), (2, 3, 4)]]
    assert plan_passes(lengths, ranks=1, budget_tokens=100, padded=True) == [[(0,), (1, 2), (3, 4)]]


def test_the_shared_part_ends_where_the_completions_part() -> None:
    row = row_of([a_sample([4, 5, 6]), a_sample([4, 5, 7, 8]), a_sample([4, 5])])
    assert (row.shared_tokens, row.rests) == (5, (1, 2, 0))
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.length == 8 and row.loss_tokens == 9  # each sample trains on the shared 4 and 5


def test_equal_completions_stand_in_a_row_once() -> None:
    row = row_of([a_sample([4, 5])] * 3)
    assert (row.length, row.rests, row.loss_tokens) == (5, (0, 0, 0), 6)


def test_the_images_of_the_prompt_are_shared() -> None:
    images = (an_image(b"ab"), an_image(b"c"))
    row = row_of(
        [a_sample([4], prompt=[1, 9, 9, 2, 9], images=images), a_sample([5], prompt=[1, 9, 9, 2, 9], images=images)]
    )
    assert (row.shared_tokens, row.shared_images) == (5, 2)
    assert row.images == list(images) and row.images_of(1) == [0, 1]


def test_an_image_in_a_completion_is_shared_only_where_it_stands_before_the_parting() -> None:
    scan, crop = an_image(b"ab"), an_image(b"c")
    before = [a_sample([4, 9, end], prompt=[9, 9], images=(scan, crop)) for end in (5, 6)]
    assert (row_of(before).shared_tokens, row_of(before).shared_images) == (4, 2)
    after = [a_sample([start, 9], prompt=[9, 9], images=(scan, crop)) for start in (5, 6)]
    assert (row_of(after).shared_tokens, row_of(after).shared_images) == (2, 1)
    assert row_of(after).images == [scan, crop, crop]
    assert [row_of(after).images_of(number) for number in (0, 1)] == [[0, 1], [0, 2]]


def test_images_that_differ_part_the_completions_though_their_tokens_are_the_same() -> None:
    scan = an_image(b"ab")
    samples = [a_sample([4, 9, 9, 5], prompt=[9, 9], images=(scan, an_image(crop))) for crop in (b"xy", b"zw")]
    row = row_of(samples)
    assert (row.shared_tokens, row.shared_images) == (3, 1)
    assert row.token_ids.tolist() == [9, 9, 4, 9, 9, 5, 9, 9, 5]


def test_an_image_is_never_split_between_the_shared_part_and_the_rest() -> None:
    # The crops begin alike, as tokens and as images: one of two tokens, one of three.
    samples = [
        a_sample([4, 9, 9, 5], prompt=[3], images=(an_image(b"xy"),)),
        a_sample([4, 9, 9, 9, 5], prompt=[3], images=(an_image(b"xyz"),)),
    ]
    assert (row_of(samples).shared_tokens, row_of(samples).shared_images) == (2, 0)


def test_a_trajectory_that_ends_where_another_goes_on_to_an_image_keeps_to_the_shared_part() -> None:
    scan, crop = an_image(b"ab"), an_image(b"c")
    row = row_of(
        [a_sample([4], prompt=[9, 9], images=(scan,)), a_sample([4, 9, 5], prompt=[9, 9], images=(scan, crop))]
    )
    assert (row.shared_tokens, row.shared_images, row.rests) == (3, 1, (0, 2))
    assert row.images == [scan, crop]


def test_a_group_with_two_prompts_is_an_error() -> None:
    with pytest.raises(LearnerError, match="part at token 2 of their prompt of 3"):
        row_of([a_sample([4]), a_sample([4], prompt=[1, 2, 7])])
