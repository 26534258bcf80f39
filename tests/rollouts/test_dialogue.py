"""A dialogue keeps every token as it was drawn, and says which the policy wrote and under which weights."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rl.types import Message, Observation, SamplingParams, ToolCall
from rollouts.dialogue import Dialogue, Passage, PlacedImage, Telling
from rollouts.engine import GenerationRequest
from tests.samples import a_task

END = 0
DOUBT, SHOWN = Message(text="Sure?"), Message(text="And this?")


def a_dialogue(*, index: int = 0, max_tokens: int = 20, max_model_len: int = 100) -> Dialogue:
    """A prompt of five tokens whose image stands at 1 and 2; then a doubt of three, and another image at 2 of four."""
    request = GenerationRequest(
        id="train-1",
        task=a_task(follow_ups=(DOUBT, SHOWN)),
        num_samples=2,
        seed=7,
        sampling=SamplingParams(max_tokens=max_tokens),
    )
    return Dialogue(
        request,
        index,
        prompt=Passage([50, 60, 60, 51, 52], (PlacedImage("a", "features of a", 1, "2 tokens"),)),
        follow_ups=[
            Telling(DOUBT, Passage([END, 53, 54]), end_of_turn=END),
            Telling(SHOWN, Passage([END, 55, 60, 56], (PlacedImage("b", "features of b", 2, "1 token"),)), END),
        ],
        max_model_len=max_model_len,
    )


def wrote(tokens: Sequence[int], text: str, *, finish: str = "stop", versions: Any = ((0, 4),)) -> Any:
    """A turn as the engine gives it: token i has the logprob -i."""
    return SimpleNamespace(
        token_ids=tuple(tokens),
        logprobs=[{token: SimpleNamespace(logprob=-float(token))} for token in tokens],
        text=text,
        finish_reason=finish,
        weight_versions=[SimpleNamespace(start=start, version=str(version)) for start, version in versions],
    )


def test_three_turns_become_one_trajectory_with_what_was_told_in_between() -> None:
    dialogue = a_dialogue(index=1)
    dialogue.add_turn(wrote([1, 2], "yes"), version=4)
    assert dialogue.goes_on()
    assert dialogue.token_ids == [50, 60, 60, 51, 52, 1, 2, END, 53, 54]
    dialogue.add_turn(wrote([3], "no"), version=4)
    assert dialogue.goes_on()
    dialogue.add_turn(wrote([5, 6], "both"), version=4)
    assert not dialogue.goes_on() and dialogue.finished
    trajectory = dialogue.trajectory()
    assert (trajectory.id, trajectory.sample_index, trajectory.seed) == ("train-1/1", 1, 8)
    assert trajectory.prompt_token_ids.tolist() == [50, 60, 60, 51, 52]
    assert trajectory.completion_token_ids.tolist() == [1, 2, END, 53, 54, 3, END, 55, 60, 56, 5, 6]
    assert trajectory.completion_mask.nonzero()[0].tolist() == [0, 1, 5, 10, 11]
    nan = np.nan
    np.testing.assert_array_equal(
        trajectory.rollout_logprobs, np.float32([-1, -2, nan, nan, nan, -3, nan, nan, nan, nan, -5, -6])
    )
    assert trajectory.text == "yes\n\nno\n\nboth" and trajectory.turns == ("yes", "no", "both")
    assert trajectory.observations == (Observation(message=DOUBT, place=3), Observation(message=SHOWN, place=7))
    assert trajectory.length_tokens == 5 and trajectory.finish_reason == "stop"


def test_images_stand_where_their_tokens_do() -> None:
    dialogue = a_dialogue()
    dialogue.add_turn(wrote([1, 2], ""), version=4)
    dialogue.goes_on()
    dialogue.add_turn(wrote([3], ""), version=4)
    dialogue.goes_on()
    # 5 of the prompt, 2 written, 3 told, 1 written: the follow-up begins at 11, its image at 13.
    assert [(image.sha256, image.offset) for image in dialogue.images] == [("a", 1), ("b", 13)]
    assert dialogue.token_ids[13] == 60


def test_a_turn_that_the_policy_ended_itself_is_not_ended_again() -> None:
    dialogue = a_dialogue()
    dialogue.add_turn(wrote([1, END], "yes"), version=4)
    dialogue.goes_on()
    assert dialogue.token_ids == [50, 60, 60, 51, 52, 1, END, 53, 54]
    dialogue.add_turn(wrote([END], ""), version=4)
    dialogue.goes_on()
    # 5 of the prompt, 2 written, 2 told, 1 written, and then 55: the image is the token after it.
    assert dialogue.images[1].offset == 11 and dialogue.token_ids[9:] == [END, 55, 60, 56]
    dialogue.add_turn(wrote([1], "no"), version=4)
    dialogue.goes_on()
    assert dialogue.trajectory().completion_mask.tolist() == [True, True, False, False, True, *[False] * 3, True]


def test_a_call_is_kept_with_the_turn_that_made_it() -> None:
    dialogue = a_dialogue()
    call = ToolCall(name="zoom", arguments={}, result="closer")
    results = Telling(Message(text="closer", role="tool"), Passage([END, 57]), END)
    for text in ("look", "closer still"):
        dialogue.add_turn(wrote([1], text), version=4)
        dialogue.add_calls([call], broken=False)
        assert dialogue.goes_on(results)
    dialogue.add_turn(wrote([2], "yes"), version=4)
    dialogue.add_calls([call], broken=True)
    assert not dialogue.goes_on(results)
    trajectory = dialogue.trajectory()
    assert [each.turn for each in trajectory.tool_calls] == [0, 1, 2]
    assert [each.message.role for each in trajectory.observations] == ["tool", "tool"]
    assert (trajectory.finish_reason, trajectory.turns) == ("abort", ("look", "closer still", "yes"))


def test_each_turn_may_write_what_those_before_it_left_and_draws_with_a_seed_of_its_own() -> None:
    dialogue, other = a_dialogue(index=0, max_tokens=6), a_dialogue(index=1)
    assert (dialogue.seed, other.seed) == (7, 8) and dialogue.left_tokens == 6
    for each in (dialogue, other):
        each.add_turn(wrote([1, 2], "yes"), version=4)
        each.goes_on()
    assert dialogue.left_tokens == 4
    assert len({dialogue.seed, other.seed, 7, 8}) == 4
    assert dialogue.seed == a_second_turn().seed


def a_second_turn() -> Dialogue:
    dialogue = a_dialogue()
    dialogue.add_turn(wrote([9], "no"), version=4)
    dialogue.goes_on()
    return dialogue


@pytest.mark.parametrize(
    ("limits", "goes_on"),
    [
        ({"max_tokens": 3}, True),  # 2 written: 1 is left
        ({"max_tokens": 2}, False),
        ({"max_model_len": 11}, True),  # 5 + 2 + 3 tokens leave room for one more
        ({"max_model_len": 10}, False),
    ],
)
def test_a_dialogue_without_room_for_another_turn_ends_in_length(limits: dict[str, int], goes_on: bool) -> None:
    dialogue = a_dialogue(**limits)
    dialogue.add_turn(wrote([1, 2], "yes"), version=4)
    assert dialogue.goes_on() == goes_on
    assert dialogue.finished != goes_on
    if not goes_on:
        trajectory = dialogue.trajectory()
        assert trajectory.finish_reason == "length" and trajectory.observations == ()
        assert trajectory.completion_token_ids.tolist() == [1, 2]


@pytest.mark.parametrize("finish", ["length", "abort"])
def test_a_turn_that_was_broken_off_is_the_last(finish: str) -> None:
    dialogue = a_dialogue()
    dialogue.add_turn(wrote([1], "ye", finish=finish), version=4)
    assert not dialogue.goes_on()
    assert dialogue.trajectory().finish_reason == finish


def test_every_token_knows_its_weights_and_what_was_told_those_that_read_it() -> None:
    dialogue = a_dialogue()
    dialogue.add_turn(wrote([1, 2, 3], "yes", versions=[(0, 4), (2, 5)]), version=5)
    dialogue.goes_on()
    dialogue.add_turn(wrote([3], "no", versions=[(0, 5)]), version=5)
    dialogue.goes_on()
    dialogue.add_turn(wrote([5, 6], "both", versions=[(0, 7), (1, 8)]), version=8)
    dialogue.goes_on()
    trajectory = dialogue.trajectory()
    assert trajectory.policy_version == 4
    assert trajectory.token_versions.tolist() == [4, 4, 5, *[5] * 3, 5, *[7] * 4, 7, 8]


def test_where_the_engine_does_not_say_the_weights_are_those_that_it_holds() -> None:
    dialogue = a_dialogue()
    dialogue.add_turn(wrote([1], "yes", versions=[]), version=3)
    dialogue.goes_on()
    dialogue.add_turn(wrote([2], "no", versions=[], finish="length"), version=6)
    dialogue.goes_on()
    assert dialogue.trajectory().token_versions.tolist() == [3, 6, 6, 6, 6]
