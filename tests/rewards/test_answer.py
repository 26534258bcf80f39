"""Expected values are read off the table's own words: each row says what a careful grader would say."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.answer import AnswerScorer, check_key
from rewards.scorer import InvalidInput
from rl.types import Message
from tests.rewards.conftest import a_conversation

YES = {"type": "yes_no", "value": "yes"}
CHOICE = {
    "type": "choice",
    "value": "B",
    "options": {"A": "Tuberculosis", "B": "Pneumonia", "C": "Lung cancer", "D": "Cancer", "E": "Hepatitis B"},
}


async def value(trajectory: Any, text: str, answer: dict[str, Any], **task: Any) -> float:
    return (await AnswerScorer().score(trajectory(text, answer=answer, **task))).value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>x</think><answer>yes</answer>", 1.0),
        ("<answer>Yes.</answer>", 1.0),
        ("<answer> **YES** </answer>", 1.0),
        ("<answer>Yes, the mass is malignant, with no doubt.</answer>", 1.0),
        ("<answer>The answer is yes</answer>", 1.0),
        ("<answer>Malignant, so yes</answer>", 1.0),
        ("<answer>no</answer>", 0.0),
        ("<answer>No mass</answer>", 0.0),
        ("<answer>yes and no</answer>", 0.0),
        ("<answer>yes/no</answer>", 0.0),
        ("<answer>yes no</answer>", 0.0),
        ("<answer>yes, no</answer>", 0.0),
        ("<answer>maybe</answer>", 0.0),
        ("<answer>yes or maybe</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>yesterday</answer>", 0.0),
        # wrappings
        ("<think>x</think>The answer is yes", 1.0),
        (r"<think>x</think>So \boxed{yes}", 1.0),
        (r"<answer>\boxed{\text{Yes}}</answer>", 1.0),
        ("Yes", 1.0),
        ("x</think><answer>yes</answer>", 1.0),
        # which block counts
        ("<think><answer>no</answer> a draft</think><answer>yes</answer>", 1.0),
        ("<think>all is <answer>yes</answer></think>", 0.0),
        ("<answer>no</answer><answer>yes</answer>", 0.0),
        ("<answer>yes</answer><answer>no</answer>", 0.0),
        ("<answer>yes</answer> and again <answer>Yes!</answer>", 1.0),
        ("<answer>...</answer><answer>yes</answer>", 1.0),
        ("<answer><answer>yes</answer>", 1.0),
        ("<think>I write <answer> later. <answer>yes</answer>", 1.0),
        # nothing that is an answer
        ("", 0.0),
        ("<think>yes yes yes", 0.0),
        ("I cannot say. " * 30 + "yes", 0.0),
    ],
)
async def test_yes_no_is_read_as_a_careful_reader_would(trajectory: Any, text: str, expected: float) -> None:
    assert await value(trajectory, text, YES) == expected


@pytest.mark.parametrize(
    ("key", "given"),
    [(True, "yes"), (False, "no"), ("no", "No mass"), ("no", "No."), ("Maybe", "maybe"), ("maybe", "uncertain")],
)
async def test_yes_no_keys_may_be_truth_values_and_maybe(trajectory: Any, key: Any, given: str) -> None:
    assert await value(trajectory, f"<answer>{given}</answer>", {"type": "yes_no", "value": key}) == 1.0


async def test_a_word_of_the_task_stands_for_yes_where_the_key_says_so(trajectory: Any) -> None:
    key = {**YES, "synonyms": {"yes": ["malignant"], "no": ["benign"]}}
    assert await value(trajectory, "<answer>malignant</answer>", key) == 1.0
    assert await value(trajectory, "<answer>benign</answer>", key) == 0.0
    assert await value(trajectory, "<answer>malignant or benign</answer>", key) == 0.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("B", 1.0),
        ("b", 1.0),
        ("(B)", 1.0),
        ("B.", 1.0),
        ("**B**", 1.0),
        ("Option B", 1.0),
        ("option b", 1.0),
        ("The answer is (B)", 1.0),
        (r"\boxed{B}", 1.0),
        ("Pneumonia", 1.0),
        ("pneumonia.", 1.0),
        ("B. Pneumonia", 1.0),
        ("B: pneumonia", 1.0),
        ("(B) Pneumonia", 1.0),
        ("B pneumonia", 1.0),
        ("A patient with pneumonia", 1.0),
        ("B, not A", 1.0),
        ("B rather than (C)", 1.0),
        ("Pneumonia, not tuberculosis", 1.0),
        ("B because it is lobar", 1.0),
        ("A", 0.0),
        ("A. Pneumonia", 0.0),
        ("B. Tuberculosis", 0.0),
        ("A or B", 0.0),
        ("A, B", 0.0),
        ("a, b, c, d", 0.0),
        ("A B C D E", 0.0),
        ("A. Tuberculosis B. Pneumonia C. Lung cancer D. Cancer", 0.0),
        ("pneumonia or tuberculosis", 0.0),
        ("not B", 0.0),
        ("no pneumonia", 0.0),
        ("F", 0.0),
        ("none of these", 0.0),
        ("Hepatitis B", 0.0),
        ("hepatitis B infection", 0.0),
        ("bronchopneumonia", 0.0),
    ],
)
async def test_choice_by_letter_by_text_or_both(trajectory: Any, given: str, expected: float) -> None:
    assert await value(trajectory, f"<think>A or B?</think><answer>{given}</answer>", CHOICE) == expected


@pytest.mark.parametrize(
    ("given", "letter"), [("advanced lung cancer", "C"), ("a cancer", "D"), ("chronic hepatitis B", "E")]
)
async def test_of_options_that_contain_each_other_the_longest_is_meant(
    trajectory: Any, given: str, letter: str
) -> None:
    assert await value(trajectory, f"<answer>{given}</answer>", {**CHOICE, "value": letter}) == 1.0


async def test_choice_keys_may_be_lists_and_values_may_be_texts(trajectory: Any) -> None:
    key = {"type": "choice", "value": "pneumonia", "options": ["Tuberculosis", "Pneumonia"]}
    assert await value(trajectory, "<answer>B</answer>", key) == 1.0


@pytest.mark.parametrize(
    ("given", "extra", "expected"),
    [
        ("17.99", {}, 1.0),
        ("17.990", {}, 1.0),
        ("1.799e1", {}, 1.0),
        ("18", {}, 0.0),
        ("18", {"tolerance": 0.01}, 1.0),  # |18 - 17.99| = .01, inclusive
        ("18.01", {"tolerance": 0.01}, 0.0),
        ("0.8", {"value": 0.7, "tolerance": 0.1}, 1.0),  # in floating point .7 + .1 < .8
        ("18.16", {"relative_tolerance": 0.01}, 1.0),  # .17 <= .1799
        ("18.18", {"relative_tolerance": 0.01}, 0.0),
        ("about 17.99", {}, 1.0),
        ("17.99 mm", {"unit": "mm"}, 1.0),
        ("17.99", {"unit": "mm"}, 1.0),
        ("17.99", {"unit": "mm", "unit_required": True}, 0.0),
        ("1.799 cm", {"unit": "mm"}, 1.0),
        ("17990 µm", {"unit": "mm"}, 1.0),
        ("17,990 um", {"unit": "mm"}, 1.0),
        ("17.99 cm", {"unit": "mm"}, 0.0),
        ("17.99 mg", {"unit": "mm"}, 0.0),
        ("17,99 mm", {"unit": "mm"}, 1.0),
        ("17.99 or 18.5", {}, 0.0),
        ("15 16 17 17.99 19", {}, 0.0),
        ("17.99 mm (1.799 cm)", {"unit": "mm"}, 1.0),
        ("35.98 / 2 = 17.99", {}, 1.0),
        ("17.99 + 1 = 18.99", {}, 0.0),
        ("17.99 ± 0.5", {}, 1.0),
        ("17.6", {"value": 18, "decimals": 0}, 1.0),
        ("17.4", {"value": 18, "decimals": 0}, 0.0),
        ("three", {"value": 3}, 1.0),
        ("There are three nodules", {"value": 3}, 1.0),
        ("none", {"value": 0}, 1.0),
        ("two or three", {"value": 3}, 0.0),
        ("-3", {"value": -3}, 1.0),
        ("3", {"value": -3}, 0.0),
        ("3/4", {"value": 0.75}, 1.0),
        ("45%", {"value": 0.45}, 1.0),
        ("45", {"value": 45, "unit": "%"}, 1.0),
        ("0.45", {"value": 45, "unit": "%"}, 0.0),
        ("45 %", {"value": "45%"}, 1.0),
        ("1,234,567", {"value": 1234567}, 1.0),
        ("4.5 x 10^9/L", {"value": 4.5e9, "unit": "/L"}, 1.0),
        ("4.5×10⁹/L", {"value": 4.5e9, "unit": "/L"}, 1.0),
        ("12.5 mg/dL", {"value": 0.125, "unit": "g/L"}, 1.0),  # 12.5 mg / .1 L = 125 mg/L
        ("98.6 °F", {"value": 37, "unit": "°C", "tolerance": 0.01}, 1.0),
        ("4", {"range": [3, 5]}, 1.0),
        ("3-5", {"range": [3, 5]}, 1.0),
        ("6", {"range": [3, 5]}, 0.0),
        ("several", {"value": 3}, 0.0),
        ("L4", {"value": 4}, 0.0),
        ("9**9**9**9", {"value": 9}, 0.0),  # a power, and never computed
    ],
)
async def test_number(trajectory: Any, given: str, extra: dict[str, Any], expected: float) -> None:
    key = {"type": "number", "value": 17.99, **extra}
    assert await value(trajectory, f"<answer>{given}</answer>", key) == expected


@pytest.mark.parametrize(
    ("given", "extra", "expected"),
    [
        ("right upper lobe", {}, 1.0),
        ("The Right Upper-Lobe.", {}, 1.0),
        ("It is the right upper lobe", {}, 1.0),
        ("RUL", {"synonyms": ["RUL"]}, 1.0),
        ("Right upper lobe (RUL)", {"synonyms": ["RUL"]}, 1.0),
        ("Right upper lobe (LUL)", {"synonyms": ["RUL"]}, 0.0),
        ("left upper lobe", {}, 0.0),
        ("right lobe", {}, 0.0),
        # overlap: 2 shared words of 2 + 3, F1 = 4/5; sides are then 'right' against 'right, upper'
        ("right lobe", {"match": "overlap"}, 0.0),
        # 3 shared of 4 + 3: F1 = 6/7
        ("right upper lung lobe", {"match": "overlap"}, 6 / 7),
        ("left upper lobe", {"match": "overlap"}, 0.0),
        ("not right upper lobe", {"match": "overlap"}, 0.0),
        ("right upper lobe 3", {"match": "overlap"}, 0.0),
    ],
)
async def test_text(trajectory: Any, given: str, extra: dict[str, Any], expected: float) -> None:
    key = {"type": "text", "value": "Right upper lobe", **extra}
    assert await value(trajectory, f"<answer>{given}</answer>", key) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "extra", "expected"),
    [
        ("effusion, cardiomegaly", {}, 1.0),
        ("Cardiomegaly and effusion", {}, 1.0),
        ("- effusion\n- cardiomegaly", {}, 1.0),
        ('["Effusion", "Cardiomegaly"]', {}, 1.0),
        ("effusion, effusion, cardiomegaly", {}, 1.0),
        ("effusion、cardiomegaly。", {}, 1.0),
        ("The image shows effusion as well as cardiomegaly.", {}, 1.0),
        ('{"findings": ["effusion", "cardiomegaly"]}', {}, 1.0),
        ("The image shows no effusion", {"value": ["effusion"]}, 0.0),
        ("无", {"value": []}, 1.0),
        ("effusion", {}, 2 / 3),  # 2 * 1 / (1 + 2)
        ("effusion, edema", {}, 0.5),  # 2 * 1 / (2 + 2)
        ("effusion, edema", {"metric": "recall"}, 0.5),
        ("effusion", {"metric": "precision"}, 1.0),
        ("effusion", {"metric": "exact"}, 0.0),
        ("cardiomegaly; fluid", {"synonyms": {"effusion": ["pleural fluid", "fluid"]}}, 1.0),
        ("none", {}, 0.0),
        ("none", {"value": []}, 1.0),
        ("effusion", {"value": []}, 0.0),
        ("effusion, cardiomegaly, edema", {"options": ["effusion", "cardiomegaly", "edema"]}, 0.0),
        ("effusion, cardiomegaly", {"options": ["effusion", "cardiomegaly"]}, 1.0),
        ("nausea and vomiting, fever", {"value": ["nausea and vomiting", "fever"]}, 1.0),
    ],
)  # fmt: skip
async def test_labels_are_compared_as_sets(trajectory: Any, given: str, extra: dict[str, Any], expected: float) -> None:
    key = {"type": "labels", "value": ["effusion", "cardiomegaly"], **extra}
    assert await value(trajectory, f"<answer>{given}</answer>", key) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "extra", "expected"),
    [
        ("[0, 0, 10, 10]", {}, 1.0),
        ("(0,0),(10,10)", {}, 1.0),
        ("<box>0 0 10 10</box>", {}, 1.0),
        ('[{"bbox_2d": [0, 0, 10, 10], "label": "cell"}]', {}, 1.0),
        ("[0, 0, 10, 5]", {}, 0.5),  # 50 / 100
        ("[5, 0, 15, 10]", {}, 1 / 3),  # 50 / (100 + 100 - 50)
        ("[5, 0, 15, 10]", {"threshold": 0.5}, 0.0),
        ("[0, 0, 10, 5]", {"threshold": 0.5}, 1.0),
        ("[20, 20, 30, 30]", {}, 0.0),
        ("[10, 10, 0, 0]", {}, 0.0),
        ("[0,0,10,10] [0,0,10,10]", {}, 0.5),  # one match, two boxes
        ("[0,0,10,10] [0,0,10,10]", {"threshold": 0.5}, 2 / 3),  # 2 * 1 / (2 + 1)
        # Taking the best pair first (first box on the second key, .9) would leave nothing for the other.
        ("[0,0,10,10] [0,20,10,30]", {"value": [[0, 20, 10, 30], [0, 0, 10, 10]]}, 1.0),
        ("[0,0,10,10]", {"value": [[0, 20, 10, 30], [0, 0, 10, 10]]}, 0.5),
        ("[0, 0, 0.5, 0.5]", {"image_size": [20, 20]}, 1.0),
        ("[0, 0, .5, .5]", {"value": [0, 0, 0.5, 0.5], "coordinates": "normalized"}, 0.0),
        ("[0, 0, 0.5, 0.5]", {"value": [0, 0, 0.5, 0.5], "coordinates": "normalized"}, 1.0),
        ("somewhere", {}, 0.0),
        ("[0, 0, 10]", {}, 0.0),
    ],
)
async def test_boxes_are_matched_one_to_one(
    trajectory: Any, given: str, extra: dict[str, Any], expected: float
) -> None:
    key = {"type": "box", "value": [0, 0, 10, 10], **extra}
    assert await value(trajectory, f"<answer>{given}</answer>", key) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "extra", "expected"),
    [
        ("2024-03-05", {}, 1.0),
        ("2024/3/5", {}, 1.0),
        ("5 March 2024", {}, 1.0),
        ("March 5th, 2024", {}, 1.0),
        ("03/05/2024", {}, 1.0),
        ("05/03/2024", {}, 0.0),
        ("05/03/2024", {"day_first": True}, 1.0),
        ("2024-03-06", {}, 0.0),
        ("2024-03-06", {"tolerance_days": 1}, 1.0),
        ("2024-03-05 or 2024-03-06", {}, 0.0),
        ("March 2024", {}, 0.0),
        ("March 2024", {"value": "2024-03"}, 1.0),
        ("2024-03-05", {"value": "2024-03"}, 1.0),
        ("2024-02-30", {}, 0.0),
        ("32w4d", {"value": "32 weeks 4 days"}, 1.0),
        ("32+4", {"value": "32w4d"}, 1.0),
        ("32 4/7 weeks", {"value": "32w4d"}, 1.0),
        ("32 weeks and 4 days", {"value": "32w4d"}, 1.0),
        ("32 weeks", {"value": "32w4d"}, 0.0),
        ("32 weeks", {"value": "32w4d", "tolerance_days": 4}, 1.0),
    ],
)
async def test_dates_and_gestational_ages(trajectory: Any, given: str, extra: dict[str, Any], expected: float) -> None:
    key = {"type": "date", "value": "2024-03-05", **extra}
    assert await value(trajectory, f"<answer>{given}</answer>", key) == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"type": "yesno", "value": "yes"}, "Did you mean 'yes_no'?"),
        ({"value": "yes"}, "must be one of"),
        ({"type": "yes_no", "value": "perhaps not"}, "must be yes, no or maybe"),
        ({"type": "yes_no"}, "answer.value"),
        ({"type": "choice", "value": "Z", "options": ["a", "b"]}, "none of its options"),
        ({"type": "number", "value": "several"}, "finite number"),
        ({"type": "number", "value": float("nan")}, "finite number"),
        ({"type": "number", "value": 1, "tolerance": -1}, "answer.tolerance"),
        ({"type": "number", "range": [5, 3]}, "answer.range"),
        ({"type": "text", "value": "..."}, "no words"),
        ({"type": "labels", "value": "effusion"}, "list of labels"),
        ({"type": "labels", "value": ["a"], "metric": "f2"}, "answer.metric"),
        ({"type": "box", "value": [10, 10, 0, 0]}, "left < right"),
        ({"type": "date", "value": "soon"}, "a date or a gestational age"),
    ],
)
async def test_a_key_that_cannot_be_read_is_invalid_input_and_not_a_zero(
    trajectory: Any, answer: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message.replace("?", r"\?")):
        await value(trajectory, "<answer>yes</answer>", answer)
    with pytest.raises(InvalidInput):
        check_key(trajectory("", answer=answer).task)


async def test_an_open_block_is_an_answer_only_where_the_policy_stopped_there(trajectory: Any) -> None:
    stopped = await AnswerScorer().score(trajectory("<think>x</think><answer>yes", answer=YES))
    cut_off = await AnswerScorer().score(trajectory("<think>x</think><answer>yes", answer=YES, finish_reason="length"))
    assert (stopped.value, cut_off.value, cut_off.reason) == (1.0, 0.0, "no answer")


async def test_a_block_can_be_insisted_on(trajectory: Any) -> None:
    score = await AnswerScorer(require_block=True).score(trajectory("<think>x</think>The answer is yes", answer=YES))
    assert (score.value, score.reason) == (0.0, "no answer")


async def test_the_evidence_points_at_the_answer(trajectory: Any) -> None:
    made = trajectory("<think>x</think>\n<answer> no </answer>", answer=YES)
    (evidence,) = (await AnswerScorer().score(made)).evidence
    assert made.text[evidence.start : evidence.end] == "no"
    assert (evidence.verdict, evidence.source, evidence.note) == (
        "refuted",
        "task.answer",
        "read 'no', expected 'yes'",
    )


async def test_a_draft_in_what_was_thought_around_a_tools_result_is_no_answer(trajectory: Any) -> None:
    made = a_conversation(
        trajectory("<think>It may be.</think>I would say <answer>no</answer>", answer=YES),
        (Message(text="closer", role="tool"), "<think>Or <answer>no</answer>?</think><answer>yes</answer>"),
    )
    assert (await AnswerScorer().score(made)).value == 1.0
