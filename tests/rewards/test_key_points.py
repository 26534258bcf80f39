"""Key points of a report: covered ones add, false statements subtract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.key_points import KeyPointScorer
from rewards.scorer import Abstain, InvalidInput, Score
from rl.errors import ConfigError
from rl.types import Message, Observation, ToolCall
from tests.samples import a_task, a_trajectory

CHEST = Path(__file__).parents[2] / "configs" / "entities" / "chest_findings.csv"
REPORT = "There is a small pleural effusion. No pneumothorax. Possible consolidation."


async def scored(text: str, reference: dict[str, Any], **fields: Any) -> Score:
    task = a_task(reference=reference)
    return await KeyPointScorer(entities=CHEST, **fields).score(a_trajectory(text, task=task))


@pytest.mark.parametrize(
    ("report", "value", "false"),
    [
        # of three key points (effusion, no pneumothorax, consolidation left open): all three
        ("Pleural effusion. No pneumothorax. Possible consolidation.", 1.0, 0),
        ("Pleural effusion.", 1 / 3, 0),
        ("Pleural effusion. Pneumothorax.", 0.0, 1),  # (1 − 1) / 3
        (
            "Pleural effusion. No pneumothorax. Cardiomegaly.",
            1 / 3,
            1,
        ),  # (2 − 1) / 3: the reference has no cardiomegaly
        ("Pleural effusion. No cardiomegaly.", 1 / 3, 0),  # denying what nobody mentioned is worth nothing
        ("No pleural effusion. Pneumothorax.", 0.0, 2),  # −2/3, at least 0
        ("The weather is fine.", 0.0, 0),
    ],
)
async def test_covered_points_add_and_false_statements_subtract(report: str, value: float, false: int) -> None:
    score = await scored(f"<think>x</think><answer>{report}</answer>", {"sources": {"report": REPORT}})
    assert score.value == pytest.approx(value)
    assert score.metrics["false"] == false and score.metrics["key_points"] == 3


async def test_what_is_only_thought_is_no_part_of_the_report() -> None:
    text = "<think>Pneumothorax?! No: pneumothorax it is.</think><answer>Pleural effusion.</answer>"
    score = await scored(text, {"sources": {"report": REPORT}})
    (evidence,) = score.evidence
    assert score.value == pytest.approx(1 / 3)
    assert text[evidence.start : evidence.end] == evidence.claim == "Pleural effusion"


async def test_listed_findings_come_before_the_text() -> None:
    reference = {"findings": ["cardiomegaly"], "sources": {"report": REPORT}}
    assert (await scored("Cardiomegaly.", reference)).value == 1.0


async def test_a_false_statement_costs_what_the_config_says() -> None:
    text = "<answer>Pleural effusion. No pneumothorax. Cardiomegaly.</answer>"
    score = await scored(text, {"sources": {"report": REPORT}}, false_weight=0.5)
    assert score.value == pytest.approx((2 - 0.5) / 3)


async def test_without_a_key_point_there_is_nothing_to_say() -> None:
    with pytest.raises(Abstain, match="no key point"):
        await scored("Pneumothorax.", {"sources": {"report": "Normal study."}})
    with pytest.raises(Abstain, match=r"reference\.sources\.report"):
        await scored("Pneumothorax.", {})


async def test_a_reference_text_needs_names_of_findings() -> None:
    task = a_task(reference={"sources": {"report": REPORT}})
    with pytest.raises(InvalidInput, match="`entities`"):
        await KeyPointScorer().score(a_trajectory(task=task))


def test_a_negative_weight_and_a_gate_are_refused() -> None:
    with pytest.raises(ConfigError, match="false_weight must be >= 0"):
        KeyPointScorer(false_weight=-1)
    with pytest.raises(ConfigError, match="never closes a gate"):
        KeyPointScorer().check_use(gate=True)


async def test_the_report_is_what_follows_the_last_result_of_a_tool() -> None:
    first, last = "<think>Pneumothorax?</think>A pneumothorax.", "<think>x</think><answer>Pleural effusion.</answer>"
    text = f"{first}\n\n{last}"
    told = Observation(message=Message(text="closer", role="tool"), place=len(first))
    call = ToolCall(name="zoom", arguments={}, result="closer", turn=0)
    task = a_task(reference={"sources": {"report": REPORT}})
    made = a_trajectory(text, task=task, observations=(told,), tool_calls=(call,))
    score = await KeyPointScorer(entities=CHEST).score(made)
    (evidence,) = score.evidence
    assert score.value == pytest.approx(1 / 3)
    assert text[evidence.start : evidence.end] == evidence.claim == "Pleural effusion"
    hidden = text.replace("</answer>", "<tool_call>Pneumothorax.</tool_call></answer>")
    score = await KeyPointScorer(entities=CHEST).score(replace(made, text=hidden))
    assert score.metrics["false"] == 1  # no call is made in an answer
