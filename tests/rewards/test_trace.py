"""A completion taken apart, where tools answered between its pieces."""

from __future__ import annotations

from rewards.trace import last_word, parse_trace, without_calls
from rl.types import Message
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
    trace = parse_trace(made.text, last_word(made))
    assert trace.reasoning.text == "Or <answer>no</answer>? Seen."
    assert [answer.text for answer in trace.answers] == ["yes"]  # the others are drafts
    assert trace.outside.text == "<answer>yes</answer>"
    for span in (trace.reasoning, trace.outside, *trace.answers):
        assert made.text[span.start : span.end] == span.text


def test_claims_are_made_before_and_after_results_but_not_in_calls(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(f"<think>A mass.</think>{CALL}"), (CLOSER, "<think>Seen.</think><answer>yes"))
    claims = parse_trace(made.text, last_word(made)).before_answer
    assert claims.text.split() == ["<think>A", "mass.</think>", "<think>Seen.</think>"]
    assert claims.text.index("Seen") == made.text.index("Seen")


def test_without_tags_all_that_follows_the_last_result_is_what_is_said(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(f"A mass? {CALL}"), (CLOSER, "Yes."))
    trace = parse_trace(made.text, last_word(made))
    assert (trace.reasoning.text, trace.outside.text) == ("Yes.", "Yes.")
    only_closed = a_conversation(trajectory(f"A mass?</think>{CALL}"), (CLOSER, "Seen.</think>Yes."))
    trace = parse_trace(only_closed.text, last_word(only_closed))
    assert (trace.reasoning.text, trace.outside.text) == ("Seen.", "Yes.")


def test_turns_that_the_user_ended_are_read_at_once_as_ever(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(f"one {CALL}"), (CLOSER, "two"), ("Sure?", "three"))
    assert last_word(made) == 0
    assert parse_trace(made.text, 0).before_answer.text == made.text


def test_calls_are_blanked_in_time_linear_in_the_text() -> None:
    assert without_calls(f"a{CALL}b<tool_call>c") == f"a{' ' * len(CALL)}b<tool_call>c"
    for hostile in ("<tool_call>" * 100_000, "</tool_call>" * 100_000, CALL * 20_000):
        with bounded_work():
            assert len(without_calls(hostile)) == len(hostile)
