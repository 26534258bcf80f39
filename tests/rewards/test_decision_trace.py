from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rewards import decision_trace
from rewards.config import load_rewards
from rewards.decision_trace import parse_decision_trace
from rewards.scorer import Abstain, Score
from rewards.service import RewardService
from rewards.trace_scorer import TraceScorer
from rl.errors import ConfigError
from rl.types import EncodedImage, Measurement, Message, ToolCall
from tests.bounded import bounded_work
from tests.rewards.conftest import a_conversation

LINES = """<think>
Findings:
- The radius is high. [record: radius]
- A new opacity [box: 10, 60, 80, 90] [quote: "a new opacity" in report]
Reasoning:
The drug is safe, says the second call. [tool: 2]
Conclusion: malignant
</think><answer>yes</answer>"""
DOCUMENT = {
    "steps": [
        {
            "name": "findings",
            "claims": [
                {"text": "The radius is high. [record: radius]", "evidence": [{"record": "radius"}]},
                {
                    "text": 'A new opacity [box: 10, 60, 80, 90] [quote: "a new opacity" in report]',
                    "evidence": [{"box": [10, 60, 80, 90]}, {"quote": "a new opacity", "source": "report"}],
                },
            ],
        },
        {
            "name": "reasoning",
            "claims": [{"text": "The drug is safe, says the second call. [tool: 2]", "evidence": [{"tool_call": 2}]}],
        },
    ],
    "conclusion": "malignant",
}
TASK: dict[str, Any] = {
    "record": {"radius": Measurement(value=17.99)},
    "images": (EncodedImage(content=b"", width=200, height=100),),
    "reference": {"sources": {"report": "There is a new opacity.", "old note": "Nothing new there."}},
}
CALLS = (
    ToolCall(name="zoom_in", arguments={}, result="", ok=False),
    ToolCall(name="search drug", arguments={}, result="No interaction is known."),
)


async def scored(trajectory: Any, text: str, **parameters: Any) -> Score:
    return await TraceScorer(**parameters).score(trajectory(text, tool_calls=CALLS, **TASK))


def test_headings_and_lines_give_the_same_trace_as_json() -> None:
    from_lines = parse_decision_trace(LINES)
    from_json = parse_decision_trace(f"<think>{json.dumps(DOCUMENT)}</think><answer>yes</answer>")
    fenced = parse_decision_trace(f"<think>So:\n```json\n{json.dumps(DOCUMENT, indent=1)}\n```\n</think>")
    assert from_lines.problem == from_json.problem == fenced.problem == ""
    assert from_lines.document() == from_json.document() == fenced.document() == DOCUMENT


def test_both_forms_meet_the_schema_and_know_their_places() -> None:
    schema = json.loads((decision_trace.importlib.resources.files("rewards") / "trace.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(parse_decision_trace(LINES).document())
    assert [LINES[each.span.start : each.span.end] for each in parse_decision_trace(LINES).references] == [
        "[record: radius]",
        "[box: 10, 60, 80, 90]",
        '[quote: "a new opacity" in report]',
        "[tool: 2]",
    ]
    text = f"<think>{json.dumps(DOCUMENT)}</think>"
    for step in parse_decision_trace(text).steps:
        for claim in step.claims:
            assert json.loads(f'"{text[claim.span.start : claim.span.end]}"') == claim.span.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<think>It is malignant.</think>", "no section with claims"),
        ("<think>Findings:\n- x [record: radius]\n</think>", "no conclusion"),
        ('<think>{"steps": [}</think>', "not valid JSON: Expecting value"),
        ('<think>{"steps": [], "conclusion": "x"}</think>', "steps: [] should be non-empty"),
        ('<think>{"steps": [{"claims": []}]}</think>', "trace: 'conclusion' is a required property"),
        ('<think>{"steps": [{"claims": [{"text": "a", "evidence": [{}]}]}], "conclusion": "x"}</think>', "evidence.0"),
        ("<think>" + '{"steps":' * 5_000 + "}</think>", "not valid JSON"),
        ("<think>{" + "1" * 60_000 + "}</think>", "JSON of 60002 characters is not read"),
        ("<think>Findings:\n" + "- a [record: radius]\n" * 301 + "Conclusion: b</think>", "more than 300 references"),
    ],
)
async def test_what_is_no_decision_trace_is_said_and_scores_nothing(trajectory: Any, text: str, problem: str) -> None:
    score = await scored(trajectory, text)
    assert (score.value, problem in score.reason) == (0.0, True), score.reason


@pytest.mark.parametrize(
    ("reference", "source", "problem"),
    [
        ("[record: Radius]", "record.radius", ""),
        ("[record: texture]", "record", "the record has no field 'texture'"),
        ("[tool: 2]", "tool_calls.1", ""),
        ("[tool 2]", "tool_calls.1", ""),
        ("[tool: search_drug]", "tool_calls.1", ""),
        ("[tool: 1]", "tool_calls.0", "the call failed"),
        ("[tool: 3]", "tool_calls", "there was no such call among 2 that succeeded"),
        ("[tool: visit]", "tool_calls", "there was no such call among 2 that succeeded"),
        ('[quote: "there is a new opacity"]', "reference.sources.report", ""),
        ('[quote: "no interaction is known"]', "tool_calls.1", ""),
        ('[quote: "a new opacity" in old note]', "reference.sources", "stands in no text 'old note'"),
        ('[quote: "an old opacity"]', "reference.sources", "stands in no text"),
        ('[quote: "new"]', "", "a quote needs 2 words to be found"),
        ("[box: 0, 0, 200, 100]", "images.0", ""),
        ("[box: 0, 0, 201, 100]", "images.0", "leaves the image of 200x100 pixels"),
        ("[box: 9, 9, 3, 3]", "images.0", "has no area: left < right and top < bottom"),
        ("[image 2: 0, 0, 2, 1]", "images.1", "there is no image 2"),
        ("[box: left base]", "", "refers to nothing"),
    ],
)
async def test_a_reference_is_resolved_or_named(trajectory: Any, reference: str, source: str, problem: str) -> None:
    score = await scored(trajectory, f"<think>Findings:\n- x {reference}\nConclusion: y</think>", min_references=1)
    assert [(each.claim, each.source, each.note) for each in score.evidence] == [(reference, source, problem)]
    assert score.value == float(not problem)
    assert (problem in score.reason) and score.evidence[0].verdict == ("refuted" if problem else "supported")


async def test_a_trace_that_refers_to_nothing_or_to_one_thing_again_and_again_earns_little(trajectory: Any) -> None:
    assert (await scored(trajectory, "<think>Findings:\n- x\nConclusion: y</think>")).value == 0.0
    repeated = "<think>Findings:\n" + "- x [record: radius]\n" * 9 + "Conclusion: y</think>"
    assert (await scored(trajectory, repeated)).value == pytest.approx(1 / 3)
    assert (await scored(trajectory, LINES)).value == 1.0


async def test_as_a_gate_it_closes_above_so_many_unresolved_references(trajectory: Any) -> None:
    text = LINES.replace("[tool: 2]", "[tool: 7]")
    assert (await scored(trajectory, text, max_unresolved=1)).gate_open
    assert not (await scored(trajectory, text, max_unresolved=0)).gate_open
    with pytest.raises(ConfigError, match="max_unresolved"):
        TraceScorer().check_use(gate=True)
    with pytest.raises(ConfigError, match="min_references must be >= 1"):
        TraceScorer(min_references=0)


async def test_a_task_without_evidence_is_none_of_its_business(trajectory: Any) -> None:
    with pytest.raises(Abstain):
        await TraceScorer().score(trajectory(LINES))


@pytest.mark.parametrize(
    "text",
    [
        "Findings:\n" + "[record: " * 20_000,
        "Findings:\n" + '[quote: "' * 20_000,
        "Findings:\n" + "[box: 1, 2, 3, 4] " * 10_000,
        "```json\n{" * 20_000,
        "{" * 200_000,
        "```{" + " " * 200_000,
    ],
)
async def test_hostile_text_is_answered_in_bounded_time(trajectory: Any, text: str) -> None:
    with bounded_work():
        assert (await scored(trajectory, f"<think>{text}</think>")).value == 0.0


@pytest.mark.parametrize("turns", ["each", "all"])
async def test_a_reference_may_lead_to_the_image_of_a_follow_up(trajectory: Any, turns: str) -> None:
    """No image, no record: nothing to refer to in the first turn; one of at least three references in the second."""
    film = EncodedImage(content=b"", width=10, height=10)
    text = "<think>Findings:\n- An opacity. [image 1: 0, 0, 5, 5]\nConclusion: yes</think>"
    made = a_conversation(trajectory("What film?"), (Message(text="Here.", images=(film,)), text))
    with RewardService(load_rewards({"scorers": {"trace": {"use": "trace", "turns": turns}}})) as service:
        score = (await service.score(made)).scores["trace"].score
    assert score is not None
    assert score.value == pytest.approx(1 / 3)
    nothing = "turn 1 abstained: the task has nothing that a trace could refer to; turn 2 (0.333)"
    assert score.reason.startswith(nothing if turns == "each" else "1 of 1 references resolve")
    assert [(each.source, each.verdict) for each in score.evidence] == [("images.0", "supported")]


async def test_the_trace_is_what_follows_the_last_result_of_a_tool(trajectory: Any) -> None:
    alone = await scored(trajectory, LINES)
    first = trajectory("<think>I look closer.</think>", tool_calls=CALLS, **TASK)
    after = await TraceScorer().score(a_conversation(first, (Message(text="closer", role="tool"), LINES)))
    assert alone.value > 0 and (after.value, after.reason) == (alone.value, alone.reason)
