"""A completion taken apart, where tools answered between its pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewards.trace import last_word, trace_of
from rl.types import Message, ToolCall
from tests.bounded import bounded_work
from tests.rewards.conftest import MakeTrajectory, a_conversation

CALL = '<tool_call>{"name": "zoom", "arguments": {"box": [1, 2, 3, 4]}}</tool_call>'
CLOSER = Message(text="closer", role="tool")


def test_reasoning_and_answers_are_those_that_follow_the_last_result(trajectory: MakeTrajectory) -> None:
    made = a_conversation(
        trajectory(f"<think>A mass?</think>{CALL}"),
        (CLOSER, f"<think>So far <answer>no</answer>.</think>{CALL}"),
        (CLOSER, "<think>Or <answer>no</answer>? Seen.</think><answer>yes</answer>"),
    )
    trace = trace_of(made)
    assert trace.reasoning.text == "Or <answer>no</answer>? Seen."
    assert [answer.text for answer in trace.answers] == ["yes"]  # the others are drafts
    assert trace.outside.text == "<answer>yes</answer>"
    for span in (trace.reasoning, trace.outside, *trace.answers):
        assert made.text[span.start : span.end] == span.text


def test_claims_are_made_before_and_after_results_but_not_in_calls(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(f"<think>A mass.</think>{CALL}"), (CLOSER, "<think>Seen.</think><answer>yes"))
    claims = trace_of(made).before_answer
    assert claims.text.split() == ["<think>A", "mass.</think>", "<think>Seen.</think>"]
    assert claims.text.index("Seen") == made.text.index("Seen")


def test_without_tags_all_that_follows_the_last_result_is_what_is_said(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(f"A mass? {CALL}"), (CLOSER, "Yes."))
    trace = trace_of(made)
    assert (trace.reasoning.text, trace.outside.text) == ("Yes.", "Yes.")
    only_closed = a_conversation(trajectory(f"A mass?</think>{CALL}"), (CLOSER, "Seen.</think>Yes."))
    trace = trace_of(only_closed)
    assert (trace.reasoning.text, trace.outside.text) == ("Seen.", "Yes.")


def test_turns_that_the_user_ended_are_read_at_once_but_for_their_calls(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(f"one {CALL}"), (CLOSER, "two"), ("Sure?", "three"))
    assert last_word(made) == 0
    assert trace_of(made).before_answer.text.split() == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        (f"<think>a {CALL}</think>{CALL}b", f"<think>a {CALL}</think>b"),
        (f"{CALL}<think>a {CALL}", f"<think>a {CALL}"),
        (f"a{CALL}<tool_call>b", "a<tool_call>b"),
        (f"a</tool_call>{CALL}{CALL}", "a</tool_call>"),
    ],
)
def test_claims_cannot_be_hidden_in_what_is_no_call(trajectory: MakeTrajectory, text: str, claims: str) -> None:
    """What follows a call that was made last, as where no room was left for the result, is no other."""
    made = trajectory(text, tool_calls=(ToolCall(name="zoom", arguments={}, result="closer", turn=0),))
    assert trace_of(made).before_answer.text.replace(" " * len(CALL), "") == claims.strip()
    assert trace_of(replace(made, tool_calls=())).before_answer.text == text


def test_calls_are_found_in_time_linear_in_the_text(trajectory: MakeTrajectory) -> None:
    for hostile in ("<tool_call>" * 100_000, "</tool_call>" * 100_000, CALL * 20_000, "<think>" * 100_000):
        made = a_conversation(trajectory(hostile), (CLOSER, hostile))
        with bounded_work():
            trace_of(made)
