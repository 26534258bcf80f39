"""Criteria that a judge decides: one question for each, as HealthBench asks it (arXiv:2505.08775), all at once."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Literal

from rewards.judge import Judge, JudgeFailure, together
from rewards.judges.prompt import Question
from rewards.rubrics.file import Criterion
from rewards.rubrics.rules import Hit, RuleReader
from rewards.scorer import Trajectory
from rl.types import Measurement

Shown = Literal["question", "record", "answer_key", "reference", "images", "tools"]
"""Parts of the task that a judge may see; ``answer_key`` is the value of `Task.answer`."""

INSTRUCTIONS = (
    "You examine what a medical assistant wrote against one criterion. Decide only whether the criterion is met as it "
    "is worded, be that desirable or not: where it describes a fault, it is met if the fault is there. Of examples "
    "(`such as`, `for example`) one is enough; of several conditions all must hold. Say in one or two sentences what "
    "in the material decides it (`explanation`), then give the verdict (`criteria_met`)."
)
VERDICT_SCHEMA = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "criteria_met": {"type": "boolean"}},
    "required": ["explanation", "criteria_met"],
    "additionalProperties": False,
}
OF_TURNS = (
    " The assistant wrote several turns: they come as a list, and between them what the user said (`user`). Judge what "
    "the assistant wrote, over all of its turns."
)
OF_TOOLS = " The assistant called tools while it wrote: `tools` has what it asked each and what it was told, in order."
MAX_EXPLANATION_CHARS = 300
_PART = {"text": "completion", "reasoning": "reasoning", "answer": "answer"}


async def judge_criteria(
    criteria: Sequence[Criterion],
    judge: Judge,
    *,
    trajectory: Trajectory,
    readers: Sequence[RuleReader],
    shown: Collection[Shown],
) -> tuple[Hit, ...]:
    """One hit for each criterion, by the majority of the judge's votes. Raises JudgeFailure if one is not decided.

    There is a reader for each turn.
    """
    context = _context(trajectory, shown)
    images = trajectory.images if "images" in shown else ()

    async def decide(criterion: Criterion) -> Hit:
        part = _PART[criterion.place]
        question = Question(
            instructions=INSTRUCTIONS
            + (OF_TURNS if len(readers) > 1 else "")
            + (OF_TOOLS if "tools" in context else ""),
            material=context | {part: _written([reader.scope(criterion.place).text for reader in readers], trajectory)},
            task=f"Does the {part} in the data meet this criterion? {_quoted(criterion.criterion)}",
            schema=VERDICT_SCHEMA,
            images=images,
        )
        try:
            votes = [reply.content for reply in await judge.poll(question)]
        except JudgeFailure as failure:
            raise JudgeFailure(f"{criterion.source}: {failure}") from None
        share = sum(vote["criteria_met"] for vote in votes) / len(votes)
        holds = share > 0.5
        explanations = [vote["explanation"] for vote in votes if vote["criteria_met"] == holds]
        counted = f"{len(explanations)} of {len(votes)} votes: " if len(votes) > 1 else ""
        return Hit(holds, note=f"{judge.name}: {counted}{explanations[0][:MAX_EXPLANATION_CHARS]}", share=share)

    return await together(map(decide, criteria))


def agreement(shares: Sequence[float]) -> float:
    """The mean share of the votes that went with their majority: 1 where every vote was unanimous."""
    return sum(max(share, 1 - share) for share in shares) / len(shares)


def _written(turns: Sequence[str], trajectory: Trajectory) -> Any:
    """The part of each turn that is judged, with what the user said in between; of one turn its text alone."""
    if len(turns) == 1:
        return turns[0]
    conversation: list[dict[str, Any]] = [{"assistant": turns[0]}]
    said = (each.message for each in trajectory.observations if each.message.role == "user")
    for message, turn in zip(said, turns[1:], strict=True):
        shown = {"images": len(message.images)} if message.images else {}
        conversation += [{"user": message.text} | shown, {"assistant": turn}]
    return conversation


def _context(trajectory: Trajectory, shown: Collection[Shown]) -> dict[str, Any]:
    """What the judge sees besides the part that it judges."""
    task = trajectory.task
    parts: dict[Shown, Any] = {
        "question": "\n".join(filter(None, (task.system, task.question))),
        "record": {name: _measurement(each) for name, each in task.record.items()},
        "answer_key": task.answer.get("value"),
        "reference": dict(task.reference),
        "tools": [
            {"tool": call.name, "asked": dict(call.arguments), "told": call.result} for call in trajectory.tool_calls
        ],
    }
    return {name: part for name, part in parts.items() if name in shown and (part or part == 0)}


def _quoted(criterion: str) -> str:
    return json.dumps(criterion, ensure_ascii=False)


def _measurement(measurement: Measurement) -> str:
    return " ".join(filter(None, (f"{measurement.value:g}", measurement.unit, measurement.reading)))
