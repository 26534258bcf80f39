"""Whatever a policy writes is answered with a reason, soon, and in little memory.

The bounds here are generous, for busy machines; on a quiet one the slowest takes a tenth of them.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.answer import CHECKERS, AnswerScorer
from tests.bounded import bounded_work

MAX_PEAK_MB = 256.0

KEYS: list[dict[str, Any]] = [
    {"type": "yes_no", "value": "yes"},
    {"type": "choice", "value": "B", "options": ["Tuberculosis", "Pneumonia", "Lung cancer"]},
    {"type": "number", "value": 9, "unit": "mm"},
    {"type": "text", "value": "left nodule"},
    {"type": "text", "value": "left nodule", "match": "meaning"},
    {"type": "text", "value": "left nodule", "match": "overlap"},
    {"type": "labels", "value": ["effusion", "nausea and vomiting"]},
    {"type": "box", "value": [0, 0, 10, 10]},
    {"type": "date", "value": "2024-03-05"},
    {"type": "date", "value": "32w4d"},
    {"type": "formula", "value": "x^2 + 1"},
]
INSIDE = {
    "a tower of powers": "9**9**9**9**9**9",
    "a tower in LaTeX": "9^{9^{9^{9^{9}}}}",
    "a factorial": "(10^9)!",
    "brackets": "[" * 9_900,
    "nested brackets": "(" * 4_900 + ")" * 4_900,
    "deep LaTeX": r"\frac{" * 1_600,
    "closed LaTeX": r"\frac{1}{" * 900 + "}" * 900,
    "boxes in boxes": r"\boxed{" * 1_200 + "}" * 1_200,
    "digits": "9" * 9_900,
    "a huge exponent": "1e" + "9" * 9_000,
    "huge numbers": "1e999 " * 1_600,
    "commas": "1," * 4_900,
    "thousands": "1" + ",000" * 2_400,
    "points": "1" + ".000" * 2_400,
    "fractions": "1 1/2 " * 1_600,
    "units": "1 mg/kg/" * 1_200,
    "letters": "A, " * 3_300,
    "rejections": "not A or " * 1_100,
    "rejected after": "A, " * 1_600 + "is wrong",
    "spaces": "A" + " " * 9_900 + "B",
    "new lines": "\n" * 9_900 + "x",
    "emphasis": "*" * 9_900,
    "bait for backtracking": "a" * 9_900 + "!",
    "words": "nodule and " * 900,
    "negations": "no " * 3_300,
    "number words": "one hundred and " * 600,
    "dates": "1-1-" * 2_400,
    "weeks": "32w" * 3_300,
    "boxes": "[1,1,2,2]" * 1_100,
    "lists": "- x\n" * 2_400,
    "unicode digits": "٣" * 9_900,
    "superscripts": "10⁹" * 3_000,
    "ligatures that grow": "\ufdfa" * 9_900,
    "combining marks": "a" + "\u0301" * 9_900,
    "NUL bytes": "\x00" * 9_900,
    "lone surrogates": "\ud800" * 9_900,
    "invisible characters": "\u200b" * 9_900,
    "emoji": "\U0001f600" * 9_900,
}
AROUND = {
    "ten megabytes of brackets": "<answer>" + "[" * 10_000_000 + "</answer>",
    "a million tags": "<answer>" * 1_000_000,
    "tags up to the bound": "<answer>" * 31_000,
    "pairs of tags": "<answer></answer>" * 14_000,
    "nested thoughts": "<think>" * 35_000,
    "thoughts that never end": "<think>" + "x " * 120_000,
    "open boxes": r"\boxed{" * 35_000,
    "boxes": r"\boxed{x}" * 27_000,
    "deep braces": r"\boxed" + "{" * 240_000,
    "sayings": "the answer is " * 17_000,
    "sayings on lines": "the answer is x\n" * 15_000,
    "headings": "answer:\n" * 31_000,
    "half tags": "<answer" * 35_000,
    "spaces": " " * 249_000,
    "surrogates around": "\ud800<answer>\ud800</answer>",
}


def test_every_answer_type_is_tried() -> None:
    assert {key["type"] for key in KEYS} == set(CHECKERS)


@pytest.mark.parametrize("name", [*INSIDE, *AROUND])
async def test_hostile_text_is_answered_with_a_reason_in_bounded_time(trajectory: Any, name: str) -> None:
    text = f"<think>x</think><answer>{INSIDE[name]}</answer>" if name in INSIDE else AROUND[name]
    for key in KEYS if name in INSIDE else KEYS[:3]:
        with bounded_work():
            score = await AnswerScorer().score(trajectory(text, answer=key))
        assert score.reason, key
        assert score.value == 0.0, (key, score)


ATOMS = [
    *"ABab019.,;:+-*/^()[]{}|%°±<=!_~$\\'` \n",
    *("10^", "1e", "mg", "/kg", "weeks", "and", "not", "is wrong", "½"),
]
ATOMS += [
    "<answer>",
    "</answer>",
    "<think>",
    r"\boxed{",
    r"\frac{",
    r"\sqrt",
    "the answer is ",
    "yes",
    "no",
    "left",
    "one ",
]
ATOMS += [
    "hundred ",
    "2024-",
    "Mar ",
    "⁹",
    "٣",
    "①",
    "\x00",
    "\ud800",
    "\ufdfa",
    "年",
    "nodule ",
    "log_",
    r"\infty",
    "[0,0,1,1]",
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(ATOMS), max_size=40).map("".join), st.booleans())
async def test_whatever_is_written_is_scored(trajectory: Any, text: str, wrapped: bool) -> None:
    for key in KEYS:
        score = await AnswerScorer().score(trajectory(f"<answer>{text}</answer>" if wrapped else text, answer=key))
        assert 0.0 <= score.value <= 1.0
        assert score.reason


@pytest.mark.parametrize("name", ["closed LaTeX", "words", "a million tags"])
async def test_hostile_text_takes_little_memory(trajectory: Any, name: str) -> None:
    text = f"<answer>{INSIDE[name]}</answer>" if name in INSIDE else AROUND[name]
    made = [trajectory(text, answer=key) for key in KEYS]
    await AnswerScorer().score(made[0])
    tracemalloc.start()
    try:
        for each in made:
            await AnswerScorer().score(each)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / 2**20 < MAX_PEAK_MB
