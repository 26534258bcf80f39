"""Answers as models really write them. Each row says what a careful grader would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.answer import AnswerScorer
from rl.errors import ConfigError

CHOICE = {
    "type": "choice",
    "value": "B",
    "options": {"A": "Tuberculosis", "B": "Pneumonia", "C": "Lung cancer", "D": "None of the above"},
}


async def value(trajectory: Any, text: str, answer: dict[str, Any], **scorer: Any) -> float:
    return (await AnswerScorer(**scorer).score(trajectory(text, answer=answer))).value


def answered(given: str) -> str:
    return f"<think>x</think><answer>{given}</answer>"


@pytest.mark.parametrize(
    "given",
    [
        *("b)", "[B]", "{B}", "Ｂ", "（B）", "Ⓑ", "B\u200b", "__B__", "`B`", "$B$", r"\(B\)", r"\boxed{\text{B}}"),
        *(r"\boxed{(B)}", r"\boxed{B. Pneumonia}", "option (b)", "Choice B", "answer: b", "The best answer is **B**"),
        *("I would pick (B).", "B!", "B - Pneumonia", "Pneumonia (B)", "<b>B</b>", "Answer:\nB", "答案是B"),
        *("\nB\nbecause of lobar consolidation", "B because A is wrong", "B. A is unlikely", "B (not A, C or D)"),
        *("B is correct; A, C and D are not", "A is wrong, so B", "Not A; B", "Tuberculosis is unlikely; pneumonia"),
        *(
            "I would not choose A, I would choose B",
            "The patient does not have tuberculosis; pneumonia",
            "答案为（B）。",
        ),
    ],
)
async def test_an_option_is_found_in_whatever_wrapping(trajectory: Any, given: str) -> None:
    assert await value(trajectory, answered(given), CHOICE) == 1.0


@pytest.mark.parametrize(
    "given",
    [
        *("AB", "A/B", "ABCD", "Either A or B", "All of the above", "none of the above", "B is wrong", "pneumonias"),
        *("Anything but B", "I would not choose B", "The patient does not have pneumonia"),
        *("The answer is a", "Pneumonia is unlikely", r"\boxed{A} or \boxed{B}", r"\boxed{B} or \boxed{A}"),
        "A. Tuberculosis\nB. Pneumonia\nC. Lung cancer\nD. None of the above",
    ],
)
async def test_what_names_none_or_several_options_is_no_answer(trajectory: Any, given: str) -> None:
    assert await value(trajectory, answered(given), CHOICE) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**Answer:** B", 1.0),
        ("### Answer\nB", 1.0),
        # more than a reply that is hardly longer than its answer
        ("It is lobar, and acute. " * 10 + "\n\n### Final Answer\n\n**B. Pneumonia**", 1.0),
        ("The answer is B. The diagnosis is hard to make.", 1.0),
        ("**Answer:** B\n\n**Diagnosis:** tuberculosis", 0.0),
        ("**Answer**: B\n\n**Explanation**: " + "It is lobar, and acute. " * 10, 1.0),
        ("## Answer\nOption A is tempting. " + "It is lobar, and acute. " * 10 + "\n\nSo the answer is B.", 1.0),
        ("It is lobar, and acute. " * 10 + "\n\n## Answer options\nA and B", 0.0),
        ("It is lobar, and acute. " * 10 + "\n\n正确答案：B。", 1.0),
        ("It is lobar, and acute. " * 10 + "\n\n故选B。", 1.0),
        ("Therefore, the answer is\n\n(B)", 1.0),
        ("So my final answer is **B) Pneumonia**", 1.0),
        ("The answer is B, not A.", 1.0),
        (r"Therefore: $\boxed{\textbf{B}}$", 1.0),
        ("The diagnosis is not easy to make. The answer is B.", 1.0),
        ("The answer is B. I repeat: the answer is (b).", 1.0),
        # several that say different things are wrong, whichever comes last
        ("The answer is A. No, the answer is B.", 0.0),
        ("The answer is B. No, the answer is A.", 0.0),
        (r"\boxed{A} and then \boxed{B}", 0.0),
        (r"\boxed{B} and again \boxed{B}", 1.0),
    ],
)
async def test_a_reply_without_a_block_must_not_contradict_itself(trajectory: Any, text: str, expected: float) -> None:
    assert await value(trajectory, text, CHOICE) == expected


async def test_an_option_with_a_number_is_found_however_its_unit_is_set(trajectory: Any) -> None:
    key = {"type": "choice", "value": "B", "options": ["5 mg", "15 mg", "vitamin B12", "10⁹/L"]}
    assert await value(trajectory, answered("15mg"), key) == 1.0
    assert await value(trajectory, answered("115mg"), key) == 0.0
    assert await value(trajectory, answered("5mg"), key) == 0.0
    assert await value(trajectory, answered("vitamin B-12 daily"), {**key, "value": "C"}) == 1.0
    assert await value(trajectory, answered("some 10⁹/L"), {**key, "value": "D"}) == 1.0


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("There is no effusion", "no"),
        ("There's no effusion", "no"),
        ("There is no doubt: yes", "yes"),
        ("Yes, there is no effusion", "yes"),
        ("是的，有骨折。", "yes"),
        ("不是。", "no"),
        ("Inconclusive", "maybe"),
    ],
)
async def test_yes_and_no_in_a_sentence_of_their_own(trajectory: Any, given: str, read: str) -> None:
    assert await value(trajectory, answered(given), {"type": "yes_no", "value": read}) == 1.0


@pytest.mark.parametrize(
    ("given", "expected"), [("Ｙｅｓ", 1.0), ("Not yes", 0.0), ("It is not true", 0.0), ("true", 1.0)]
)
async def test_yes_no_in_full_width_and_denied(trajectory: Any, given: str, expected: float) -> None:
    assert await value(trajectory, answered(given), {"type": "yes_no", "value": "yes"}) == expected
    if expected == 0.0:
        assert await value(trajectory, answered(given), {"type": "yes_no", "value": "no"}) == 1.0


MILLION = {"value": 1234567}
PERCENT, PRESSURE = {"value": 0.5}, {"value": 120, "unit": "mmHg", "tolerance": 0.1}
CELSIUS, PULSE = {"value": 37, "unit": "°C", "tolerance": 0.05}, {"value": 72, "unit": "bpm"}
DOSE, FILTRATION = {"value": 5, "unit": "mg/kg/day"}, {"value": 60, "unit": "mL/min/1.73m2"}


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        *[(MILLION, spelled, 1.0) for spelled in ("1 234 567", "1.234.567", "1'234'567", "1\u202f234\u202f567")],
        *[(MILLION, spelled, 1.0) for spelled in (r"1.234567 \times 10^{6}", "1.234567*10**6", "1.234567 million")],
        ({"value": 120}, "120 100", 0.0),
        *[({"value": 1.5}, spelled, 1.0) for spelled in (r"\frac{3}{2}", "1 1/2", "1½", "1,5", "１.５")],
        *[(PERCENT, spelled, 1.0) for spelled in (r"50\%", "50 per cent", "½", "1/2")],
        (PERCENT, "50", 0.0),
        ({"value": -3}, "minus 3", 1.0),
        ({"value": -3}, "– 3", 1.0),
        ({"value": 1e30}, "10^30", 1.0),
        ({"value": 21}, "twenty-one", 1.0),
        ({"value": 100}, "a hundred", 1.0),
        ({"value": 105}, "one hundred and five", 1.0),
        ({"value": 5}, "four or five", 0.0),
        (PRESSURE, "120 mm Hg", 1.0),
        (PRESSURE, "16 kPa", 1.0),  # 16 * 7.50062 = 120.01
        (PRESSURE, "120/80 mmHg", 0.0),
        *[(CELSIUS, spelled, 1.0) for spelled in ("98.6 F", "98.6 degrees Fahrenheit", "37 C", "37 degrees Celsius")],
        *[(PULSE, spelled, 1.0) for spelled in ("72 beats per minute", "72/min", "72 per minute", "1.2 Hz")],
        *[(DOSE, spelled, 1.0) for spelled in ("5 mg/kg per day", "5 mg/(kg·day)", "5000 mcg/kg/d")],
        (DOSE, "5 mg/kg", 0.0),
        *[(FILTRATION, spelled, 1.0) for spelled in ("60 mL/min/1.73 m²", "60 ml/min", "60")],
        ({"value": 4.5e9, "unit": "/L"}, "4.5 x 10^3/uL", 1.0),
        ({"range": [3, 5], "unit": "cm"}, "30 to 40 mm", 1.0),
        ({"range": [3, 5], "unit": "cm"}, "60 mm", 0.0),
        ({"value": 24.16, "unit": "kg/m^2"}, r"74 / 1.75^2 = 24.16 $\text{kg/m}^2$", 1.0),
        ({"value": 2}, "2^2 = x", 0.0),
        ({"value": 2.5e5, "unit": "/uL"}, "250 K/µL", 1.0),
        ({"value": 4.5, "unit": "mg/dL"}, "4.5 mg dL^{-1}", 1.0),
        *[
            ({"value": 5.2, "unit": "cm"}, spelled, 1.0)
            for spelled in ("约5.2cm。", "5.2厘米", "52毫米", "<b>5.2</b> cm")
        ],
        *[({"value": 5.2, "unit": "cm"}, spelled, 0.0) for spelled in ("> 5.2 cm", "less than 5.2 cm", "not 5.2 cm")],
        ({"value": 5.2, "unit": "cm"}, "5.2 cm, not 6.1 cm", 1.0),
        ({"value": 5.2, "unit": "cm"}, "6.1 cm, not 5.2 cm", 0.0),
        ({"value": 4.5, "unit": "mg/dL"}, "4.5 mg/dL (normal 3.5–5.0)", 1.0),
        ({"value": 4.5, "unit": "mg/dL"}, "4.5 mg/dL [reference range: 3.5 to 5.0 mg/dL]", 1.0),
        ({"value": 4.5, "unit": "mg/dL"}, "5.1 mg/dL (normal 4.5)", 0.0),
        ({"value": 4.5, "unit": "mg/dL"}, "4.5 mg/dL (or 5.1 mg/dL)", 0.0),
        ({"value": 5, "decimals": 0}, "5.4", 1.0),
        ({"value": 5, "decimals": 0}, "5.6", 0.0),
    ],
)
async def test_numbers_in_other_spellings(trajectory: Any, key: dict[str, Any], given: str, expected: float) -> None:
    assert await value(trajectory, answered(given), {"type": "number", **key}) == expected


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        *[("2024-03-05", spelled, 1.0) for spelled in ("20240305", "2024年3月5日", "5/Mar/2024", "05MAR2024")],
        ("2024-03-05", "2024 March 5", 1.0),
        *[("2024-03-05", spelled, 1.0) for spelled in ("5-Mar-2024", "2024-03-05 10:00", "Tuesday, March 5, 2024")],
        ("2024-03-05", "2024-03-05, not 2024-03-06", 1.0),
        ("2024-03-05", "not 2024-03-05", 0.0),
        ("2024-03-05", "3/5/24", 0.0),
        *[("28w3d", spelled, 1.0) for spelled in ("28周3天", "28⁺³ weeks", "28-week, 3-day gestation")],
        ("28w3d", "28 - 30 weeks", 0.0),
        ("2024-03", "03/2024", 1.0),
        ("2024-03", "2024/03", 1.0),
        *[("32w4d", spelled, 1.0) for spelled in ("32 4/7", "32-4/7 weeks", "32 and 4/7 weeks", "228 days", "32w+4d")],
        ("32w4d", "229 days", 0.0),  # 7 * 32 + 4 = 228
        ("32w4d", "32 5/7 weeks", 0.0),
    ],
)  # fmt: skip
async def test_dates_in_other_spellings(trajectory: Any, key: str, given: str, expected: float) -> None:
    assert await value(trajectory, answered(given), {"type": "date", "value": key}) == expected


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        # a 20 x 40 image: [0, 0, 10, 10] is half of its width and a quarter of its height
        ({"value": [0, 0, 10, 10]}, "[0, 0, 0.5, 0.25]", 1.0),
        ({"value": [0, 0, 10, 10], "answer_coordinates": "per_mille"}, "[0, 0, 500, 250]", 1.0),
        ({"value": [0, 0, 10, 10]}, "[0, 0, 500, 250]", 100 / 125_000),
        ({"value": [0, 0, 0.5, 0.25], "coordinates": "normalized"}, "[0, 0, 10, 10]", 1.0),
        ({"value": [0, 0, 500, 250], "coordinates": "per_mille"}, "[0, 0, 0.5, 0.25]", 1.0),
        ({"value": [0, 0, 500, 250], "coordinates": "per_mille"}, "[0, 0, 500, 250]", 1.0),
        ({"value": [0, 0, 10, 10]}, '{"x1": 0, "y1": 0, "x2": 10, "y2": 10}', 1.0),
        ({"value": [0, 0, 10, 10]}, "<|box_start|>(0,0),(10,10)<|box_end|>", 1.0),
    ],
)
async def test_boxes_in_other_coordinates(trajectory: Any, key: dict[str, Any], given: str, expected: float) -> None:
    answer = {"type": "box", "image_size": [20, 40], **key}
    assert await value(trajectory, answered(given), answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("effusion / cardiomegaly", 1.0),
        ("effusion + cardiomegaly", 1.0),
        ("1) effusion 2) cardiomegaly", 1.0),
        ("Labels: effusion, cardiomegaly", 1.0),
        ("The findings are effusion and cardiomegaly.", 1.0),
        ("effusion, cardiomegaly, no edema", 1.0),
        ("no effusion, cardiomegaly", 2 / 3),  # one right of one named and two expected
    ],
)
async def test_lists_of_labels_in_other_spellings(trajectory: Any, given: str, expected: float) -> None:
    answer = {"type": "labels", "value": ["effusion", "cardiomegaly"]}
    assert await value(trajectory, answered(given), answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "given", "right"),
    [
        ("pleural effusion", "left pleural effusion", True),
        ("pleural effusion", "Bilateral pleural effusion", True),
        ("pleural effusion", "pleural effusion on the right side", True),
        ("left pleural effusion", "left-sided pleural effusion", True),
        ("left pleural effusion", "pleural effusion, left", False),  # a list of two
        ("left pleural effusion", "right pleural effusion", False),
        ("left pleural effusion", "bilateral pleural effusion", False),
        ("left pleural effusion", "pleural effusion", False),
        ("pleural effusion", "left pericardial effusion", False),
        ("pleural effusion", "no left pleural effusion", False),
    ],
)
async def test_a_side_must_agree_where_the_key_has_one(trajectory: Any, key: str, given: str, right: bool) -> None:
    answer = {"type": "labels", "value": [key], "metric": "exact"}
    assert await value(trajectory, answered(given), answer) == float(right)


async def test_precision_recall_and_overlap_are_metrics(trajectory: Any) -> None:
    # one right of three named and two expected: F1 = 2 * 1 / (3 + 2)
    answer = {"type": "labels", "value": ["effusion", "cardiomegaly"]}
    score = await AnswerScorer().score(trajectory(answered("effusion, edema, mass"), answer=answer))
    assert score.metrics == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5})
    box = {"type": "box", "value": [0, 0, 10, 10], "threshold": 0.5}
    score = await AnswerScorer().score(trajectory(answered("[0, 0, 10, 5]"), answer=box))
    assert (score.value, score.metrics) == (1.0, {"iou": 0.5, "boxes": 1.0})


EFFUSION, NODULES = "left pleural effusion", "left effusion and right nodule"


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        *[(EFFUSION, same, 1.0) for same in ("pleural effusion on the left", "Left-sided pleural effusion.")],
        *[(EFFUSION, same, 1.0) for same in ("There is a left pleural effusion", "L pleural effusion")],
        *[(EFFUSION, other, 0.0) for other in ("right pleural effusion", "bilateral pleural effusion")],
        (EFFUSION, "pleural effusion", 0.0),
        *[(EFFUSION, other, 0.0) for other in ("no left pleural effusion", "left pleural effusion is absent")],
        (EFFUSION, "possible left pleural effusion", 0.0),
        (EFFUSION, "left pleural effusion and pneumothorax", 0.0),
        *[("no pneumothorax", same, 1.0) for same in ("without pneumothorax", "no evidence of pneumothorax")],
        ("no pneumothorax", "pneumothorax", 0.0),
        *[("metoprolol 25 mg", same, 1.0) for same in ("25 mg metoprolol", "metoprolol 0.025 g", "metoprolol 25mg")],
        *[("metoprolol 25 mg", other, 0.0) for other in ("metoprolol 250 mg", "metoprolol 25 mcg", "metoprolol")],
        (NODULES, "right nodule, left effusion", 1.0),
        (NODULES, "right effusion and left nodule", 0.0),
        ("small effusion, no pneumothorax", "small pneumothorax, no effusion", 0.0),
        ("left and right effusion", "bilateral effusion", 1.0),
        ("RUL nodule", "right upper lobe nodule", 1.0),
        ("RUL nodule", "left upper lobe nodule", 0.0),
        ("left", "on the left side", 1.0),
        ("left", "right", 0.0),
        ("nodule", "nodule " * 200, 0.0),
    ],
)  # fmt: skip
async def test_texts_of_the_same_meaning_agree_in_polarity_side_and_dose(
    trajectory: Any, key: str, given: str, expected: float
) -> None:
    answer = {"type": "text", "value": key, "match": "meaning"}
    assert await value(trajectory, answered(given), answer) == expected


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("severe hyperkalemia", "hyperkalemia", 2 / 3),  # 2 * 1 / (1 + 2)
        ("severe hyperkalemia", "severe hypokalemia", 0.0),
        ("severe hyperkalemia", "mild hyperkalemia", 0.0),
        ("severe hyperkalemia", "severe hyperkalemia, 3", 0.0),
        (EFFUSION, "large left pleural effusion", 6 / 7),  # 2 * 3 / (4 + 3)
        (EFFUSION, "right pleural effusion", 0.0),
        (EFFUSION, "no left pleural effusion", 0.0),
        (EFFUSION, "possible left pleural effusion", 0.0),
        (NODULES, "right effusion and left nodule", 0.0),
        ("metoprolol 25 mg daily", "metoprolol 250 mg daily", 0.0),
        ("metoprolol 25 mg daily", "metoprolol 25 mcg daily", 0.0),
    ],
)
async def test_a_text_that_shares_words_and_says_the_opposite_is_wrong(
    trajectory: Any, key: str, given: str, expected: float
) -> None:
    answer = {"type": "text", "value": key, "match": "overlap"}
    assert await value(trajectory, answered(given), answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "given"),
    [("two nodules", "three nodules"), ("stage II disease", "stage III disease"), ("T1 lesion", "T2 lesion")],
)
async def test_what_is_numbered_otherwise_is_something_else(trajectory: Any, key: str, given: str) -> None:
    answer = {"type": "text", "value": key, "match": "overlap"}
    assert await value(trajectory, answered(given), answer) == 0.0
    assert await value(trajectory, answered(key.upper()), answer) == 1.0


async def test_a_count_in_words_is_a_number(trajectory: Any) -> None:
    answer = {"type": "text", "value": "two nodules", "match": "meaning"}
    assert await value(trajectory, answered("2 nodules"), answer) == 1.0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree.obo"
    path.write_text(
        'format-version: 1.2\n\n[Term]\nid: X:1\nname: myocardial infarction\nsynonym: "heart attack" EXACT []\n\n'
        "[Term]\nid: X:2\nname: pulmonary embolism\n"
    )
    return path


async def test_names_of_one_entity_are_one_label_and_one_meaning(trajectory: Any, tree: Path) -> None:
    labels = {"type": "labels", "value": ["myocardial infarction", "pulmonary embolism"]}
    said = answered("heart attack, pulmonary embolism")
    assert await value(trajectory, said, labels) == 0.5
    assert await value(trajectory, said, labels, tree=tree) == 1.0
    sided = {"type": "labels", "value": ["left pulmonary embolism"]}
    assert await value(trajectory, answered("pulmonary embolism on the left"), sided, tree=tree) == 1.0
    assert await value(trajectory, answered("pulmonary embolism"), sided, tree=tree) == 0.0
    assert await value(trajectory, answered("left heart attack"), labels, tree=tree) == pytest.approx(2 / 3)
    exact = {"type": "text", "value": "myocardial infarction"}
    assert await value(trajectory, answered("Heart attack"), exact, tree=tree) == 1.0
    meaning = {"type": "text", "value": "acute myocardial infarction", "match": "meaning"}
    assert await value(trajectory, answered("acute heart attack"), meaning) == 0.0
    assert await value(trajectory, answered("acute heart attack"), meaning, tree=tree) == 1.0
    assert await value(trajectory, answered("no acute heart attack"), meaning, tree=tree) == 0.0


def test_a_tree_that_is_not_there_is_named_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.obo"):
        AnswerScorer(tree=Path("nowhere.obo")).check_use(gate=False)
