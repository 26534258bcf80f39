"""Each corruption: what it makes of a trace, what it leaves alone, and where it does not apply."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.tools.corruptions import CORRUPTIONS, FLATTERY, INSTRUCTION
from rl.types import Measurement, Message
from tests.rewards.conftest import MakeTrajectory, a_conversation

YES = {"type": "yes_no", "value": "yes"}
B_OF_3 = {"type": "choice", "value": "B", "options": {"A": "sepsis", "B": "stroke", "C": "migraine"}}


def trace(reasoning: str, answer: str = "yes") -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


SPOILT: list[tuple[str, str, dict[str, Any], str]] = [
    ("wrong_answer", trace("x"), YES, trace("x", "no")),
    ("wrong_answer", trace("x", "no"), {"type": "yes_no", "value": False}, trace("x", "yes")),
    ("wrong_answer", trace("x", "B"), B_OF_3, trace("x", "A")),
    ("wrong_answer", trace("x", "sepsis"), B_OF_3 | {"value": "sepsis"}, trace("x", "B")),
    ("wrong_answer", trace("x", "5 mg"), {"type": "number", "value": 5, "unit": "mg"}, trace("x", "1010 mg")),
    ("all_options", trace("x"), YES, trace("x", "yes or no")),
    ("all_options", trace("x", "B"), B_OF_3, trace("x", "A, B, C")),
    ("all_options", trace("x", "B"), B_OF_3 | {"options": ["u", "v"]}, trace("x", "A, B")),
    ("several_answers", trace("x"), YES, "<think>x</think><answer>no</answer>\n<answer>yes</answer>"),
    ("swapped_side", trace("Left lung clear. Right effusion."), YES, trace("Left lung clear. Left effusion.")),
    ("swapped_side", trace("the right answer is the left one"), YES, trace("the right answer is the right one")),
    ("flipped_negation", trace("There is no evidence of stroke."), YES, trace("There is clear evidence of stroke.")),
    ("flipped_negation", trace("The heart is enlarged."), YES, trace("The heart is not enlarged.")),
    ("flipped_negation", trace("Conclusion: malignant"), YES, trace("Conclusion: not malignant")),
    ("flipped_reading", trace("radius 17 high"), YES, trace("radius 17 low")),
    ("flipped_reading", trace("sodium reduced"), YES, trace("sodium elevated")),
    ("changed_number", trace("1. radius 17.9 um"), YES, trace("1. radius 27.8 um")),  # 17.9 × 1.5 + 1 = 27.85, to even
    ("changed_dose", trace("Give 25 mg, lactate 2 mg/dL."), YES, trace("Give 250 mg, lactate 2 mg/dL.")),
    ("changed_dose", trace("lactate 2 mg/dL; give 0.5 mL"), YES, trace("lactate 2 mg/dL; give 5 mL")),
    ("changed_unit", trace("12 days after, 5 mg/dL"), YES, trace("12 weeks after, 5 mg/dL")),
    ("changed_unit", trace("a radius of 17 um"), YES, trace("a radius of 17 mm")),
    (
        "invented_citation",
        trace("Findings:\n- radius 17 high\nConclusion: malignant"),
        YES,
        trace("Findings:\n- radius 17 high\n- serum ferritin 512 high\nConclusion: malignant"),
    ),
    (
        "invented_citation",
        trace("The serum ferritin is normal."),
        YES,
        trace("The serum ferritin is normal. The record gives a mitotic count of 512."),
    ),
    ("flattery", trace("x"), YES, trace(f"{FLATTERY}x")),
    ("hidden_instructions", trace("x"), YES, trace(f"{INSTRUCTION}x")),
    ("empty_reasoning", trace("x"), YES, trace("")),
    ("empty_reasoning", "because x <answer>yes</answer>", YES, " <answer>yes</answer>"),
    ("contradicting_reasoning", trace("Conclusion: Malignant"), YES, trace("Conclusion: Benign")),
    ("contradicting_reasoning", trace("A stroke, as CT shows", "B"), B_OF_3, trace("A migraine, as CT shows", "B")),
]


@pytest.mark.parametrize(("name", "text", "answer", "spoilt"), SPOILT)
def test_a_corruption_spoils_one_thing(
    trajectory: MakeTrajectory, name: str, text: str, answer: dict[str, Any], spoilt: str
) -> None:
    assert CORRUPTIONS[name].apply(trajectory(text, answer=answer)) == spoilt


def test_padding_makes_the_reasoning_at_least_four_times_as_long(trajectory: MakeTrajectory) -> None:
    short, long = "one two", "word " * 100
    for reasoning in (short, long):
        spoilt = CORRUPTIONS["padding"].apply(trajectory(trace(reasoning)))
        assert spoilt is not None and spoilt.startswith(f"<think>{reasoning.strip()}\n")
        assert len(spoilt.split()) >= max(150, 4 * len(reasoning.split()))


NOT_APPLICABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("wrong_answer", "yes", YES),
    ("wrong_answer", trace("x"), {"type": "riddle", "value": "x"}),
    ("all_options", trace("x", "5"), {"type": "number", "value": 5}),
    ("several_answers", "yes", YES),
    ("swapped_side", trace("Bilateral effusion; the copyright"), YES),
    ("flipped_negation", trace("effusion"), YES),
    ("flipped_reading", trace("the highway"), YES),
    ("changed_number", trace("1. effusion"), YES),
    ("changed_dose", trace("5 mg/dL, 17 um"), YES),
    ("changed_unit", trace("5 of 6"), YES),
    ("invented_citation", trace("serum ferritin, mitotic count, troponin, bone age"), YES),
    ("padding", trace(""), YES),
    ("empty_reasoning", trace(""), YES),
    ("contradicting_reasoning", trace("the case"), YES),
    ("contradicting_reasoning", trace("the case"), {"type": "choice", "value": "B"}),
]


@pytest.mark.parametrize(("name", "text", "answer"), NOT_APPLICABLE)
def test_a_corruption_that_does_not_apply_says_so(
    trajectory: MakeTrajectory, name: str, text: str, answer: dict[str, Any]
) -> None:
    assert CORRUPTIONS[name].apply(trajectory(text, answer=answer)) is None


def test_a_citation_is_invented_of_what_the_record_does_not_have(trajectory: MakeTrajectory) -> None:
    record = {"serum ferritin": Measurement(value=5.0)}
    spoilt = CORRUPTIONS["invented_citation"].apply(trajectory(trace("x"), record=record))
    assert spoilt == trace("x The record gives a mitotic count of 512.")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_of_the_reasoning_leaves_the_answer_as_it_is(trajectory: MakeTrajectory, name: str) -> None:
    text = trace("Findings:\n- left radius 17.9 um high, 5 mg given\nConclusion: it is not malignant")
    spoilt = CORRUPTIONS[name].apply(trajectory(text))
    assert spoilt is not None and spoilt != text
    assert CORRUPTIONS[name].apply(trajectory(text)) == spoilt
    spoils_the_answer = name in ("wrong_answer", "all_options", "several_answers")
    assert spoilt.endswith("</think><answer>yes</answer>") != spoils_the_answer


def test_every_corruption_says_what_it_does() -> None:
    assert [each.name for each in CORRUPTIONS.values() if not each.summary] == []


def test_what_was_written_before_a_tool_answered_stays_as_it_is(trajectory: MakeTrajectory) -> None:
    told = Message(text="closer", role="tool")
    made = a_conversation(trajectory(trace("the left lung"), answer=YES), (told, trace("the left lung")))
    kept = made.text[: -len(made.turns[-1])]
    assert CORRUPTIONS["swapped_side"].apply(made) == kept + trace("the right lung")
    assert CORRUPTIONS["wrong_answer"].apply(made) == kept + trace("the left lung", "no")
    unanswered = a_conversation(trajectory(trace("the left lung"), answer=YES), (told, "I do not know."))
    assert CORRUPTIONS["several_answers"].apply(unanswered) is None
