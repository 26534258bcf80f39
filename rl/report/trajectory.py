"""One trajectory in a report: the case that it is about, what the policy wrote, and what was said of that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count, zip_longest

from rl.report.charts import format_value
from rl.report.input import Item
from rl.report.markup import Markup, element, join
from rl.report.trace import ScorerEvidence, evidence_list, marked_trace
from rl.types import (
    EncodedImage,
    Message,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    ToolCall,
    Trajectory,
    Unscored,
    Verdict,
)

Draw = Callable[[int, EncodedImage], Markup]
"""Makes an element of an image, given its number among all that the policy was shown."""

_MOST_CHARACTERS = 2_000
_CUT: Mapping[str, str] = {"length": "cut by the token limit", "abort": "aborted"}


def case_panel(task: Task, draw: Draw) -> Markup:
    """The images, the question, the reference answer, the follow-ups and the record of a case."""
    answer = task.answer.get("value", task.answer)
    written = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", f"{entry.value:g} {entry.unit}"),
            element("td", entry.reading),
        )
        for name, entry in task.record.items()
    ]
    record = element(
        "details", element("summary", f"Record, {len(rows)} measurements"), element("table", *rows), class_="folded"
    )
    return element(
        "div",
        *(draw(number, image) for number, image in enumerate(task.images)),
        element("p", task.question, class_="question"),
        element("p", element("span", "Reference ", class_="dim"), element("b", written)),
        _follow_ups(task.follow_ups) if task.follow_ups else Markup(),
        record if rows else Markup(),
        class_="case-panel",
    )


def _follow_ups(messages: Sequence[Message]) -> Markup:
    """What the user has to say after each turn, whether the policy came to hear it or not."""
    lines = [
        element("li", message.text, element("span", _shows(message), class_="dim"), class_="question")
        for message in messages
    ]
    return element("details", element("summary", f"Follow-ups, {len(lines)}"), element("ol", *lines), class_="folded")


def _shows(message: Message) -> str:
    number = len(message.images)
    return f" {number} image{'s' if number > 1 else ''}" if number else ""


def trace_panel(item: Item, roles: Mapping[str, str], *, draw: Draw) -> Markup:
    """What the policy wrote, what it was told in between, and what was said of it."""
    trajectory = item.trajectory
    versions = sorted({trajectory.policy_version, *(version for _, version in trajectory.later_versions)})
    facts = [f"{trajectory.length_tokens:,} tokens", f"policy version {', '.join(map(str, versions))}"]
    if trajectory.source:
        facts = [f"imported from {trajectory.source}"]
    if (reward := reward_of(item)) is not None:
        facts.insert(0, f"reward {reward:.3f}")
    if trajectory.finish_reason in _CUT:
        facts.append(_CUT[trajectory.finish_reason])
    if spoken := sum(told.message.role == "user" for told in trajectory.observations):
        facts.append(f"{1 + spoken} turns")
    if calls := trajectory.tool_calls:
        refused = sum(not call.ok for call in calls)
        facts.append(f"{len(calls)} tool call{'s' * (len(calls) > 1)}{f', {refused} not answered' if refused else ''}")
    failure = element("p", f"Unscored: {item.reason}", class_="failure") if isinstance(item, Unscored) else Markup()
    return element(
        "div",
        element("p", outcome_chip(item), element("span", " · ".join(facts), class_="dim"), class_="facts"),
        marked_trace(trajectory, all_evidence(item), told=_told(trajectory, draw)),
        failure,
        element(
            "div", *(_score(record, roles.get(record.scorer, "")) for record in item.scores.values()), class_="scores"
        ),
        class_="panel",
    )


def _told(trajectory: Trajectory, draw: Draw) -> list[Markup]:
    """What stands behind each piece of what the policy wrote: the calls that it made, and what it was told. Turns count
    as they do for scorers: only the user ends one."""
    numbers, turn = count(len(trajectory.task.images)), 1
    behind = []
    for piece, told in zip_longest(range(len(trajectory.turns)), trajectory.observations):
        calls = [_call(call) for call in trajectory.tool_calls if call.turn == piece]
        pictures = [_numbered(next(numbers), image, draw) for image in told.message.images] if told else []
        said = element("p", told.message.text if told else "", class_="question")
        by_user = told is not None and told.message.role == "user"
        results = [*([] if calls else [said]), *pictures] if told and not by_user else []
        blocks = []
        if calls or results:
            blocks.append(_block(f"Tools, in turn {turn}", *calls, *results, class_="told by-tools"))
        if by_user:
            blocks.append(_block(f"User, after turn {turn}", *pictures, said, class_="told"))
            turn += 1
        behind.append(join(*blocks))
    return behind


def _block(lead: str, *shown: Markup, class_: str) -> Markup:
    return element("div", element("p", lead, class_="dim"), *shown, class_=class_)


def _numbered(number: int, image: EncodedImage, draw: Draw) -> Markup:
    return element("div", draw(number, image), element("small", f"Image {number + 1}"))


def _call(call: ToolCall) -> Markup:
    """What was asked of a tool, and what it said to that."""
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    asked = element("p", element("b", call.name or "no call"), " ", element("code", _shortened(arguments)))
    refused = Markup() if call.ok else element("span", "not answered ", class_="failure")
    return element("div", asked, element("p", refused, _shortened(call.result), class_="question"), class_="call")


def _shortened(text: str) -> str:
    """What is shown of a text of a tool's."""
    left = len(text) - _MOST_CHARACTERS
    return text if left <= 0 else f"{text[:_MOST_CHARACTERS]} … {left:,} more characters"


def _score(record: ScoreRecord, role: str) -> Markup:
    score = record.score
    if score is None:
        figure = element("span", record.outcome.replace("_", " "), class_=f"outcome {record.outcome}")
        reason, evidence = record.reason, Markup()
    else:
        figure = element("span", element("i", style=f"width:{100 * score.value:.1f}%"), class_="meter")
        figure = join(figure, element("b", format_value(score.value, "score")))
        reason, evidence = score.reason, evidence_list(score.evidence)
    closed = (
        element("span", "gate closed: reward 0", class_="failure")
        if score and not score.gate_open and "gate" in role
        else Markup()
    )
    name = element("span", element("b", record.scorer), " ", element("small", role), title=f"version {record.version}")
    why = element("div", element("p", reason[:1000]) if reason else Markup(), closed, evidence, class_="why")
    return element("div", element("div", name, figure, class_="score-head"), why, class_="score")


def group_strip(rewards: Sequence[float], this: int | None) -> Markup:
    """The rewards of a group on a line from 0 to 1, its mean as a tick, the one at the place ``this`` filled."""
    if len(rewards) < 2:
        return Markup()
    mean = sum(rewards) / len(rewards)
    low, high = min(0.0, *rewards), max(1.0, *rewards)

    def place(reward: float) -> float:
        return 5 + 90 * (reward - low) / (high - low)

    dots = [
        element("circle", cx=place(rewards[index]), cy=9, r=3.2, class_="this" if index == this else "other")
        for index in sorted(range(len(rewards)), key=lambda index: index == this)
    ]
    label = f"rewards of the group's {len(rewards)} trajectories, mean {mean:.2f}"
    return element(
        "svg",
        element("title", label),
        element("line", x1=5, x2=95, y1=9, y2=9, class_="rule"),
        element("line", x1=place(mean), x2=place(mean), y1=3, y2=15, class_="mean"),
        *dots,
        class_="strip",
        viewBox="0 0 100 18",
        role="img",
        aria_label=label,
    )


def outcome_chip(item: Item) -> Markup:
    if isinstance(item, Unscored):
        return element("span", "unscored", class_="chip unscored-chip")
    name = {True: "right", False: "wrong", None: "scored"}[item.correct]
    return element("span", name, class_=f"chip {name}-chip")


def hallucinated(item: Item) -> dict[Verdict, int]:
    """Refuted and unsupported claims, as counted by the scorers that check claims."""
    checked = [record.score.metrics for record in item.scores.values() if record.score is not None]
    verdicts: tuple[Verdict, ...] = ("refuted", "unsupported")
    counts = {verdict: int(max((count.get(verdict, 0.0) for count in checked), default=0)) for verdict in verdicts}
    return {verdict: count for verdict, count in counts.items() if count}


def all_evidence(item: Item) -> list[ScorerEvidence]:
    return [
        ScorerEvidence(record.scorer, evidence)
        for record in item.scores.values()
        if record.score is not None
        for evidence in record.score.evidence
    ]


def reward_of(item: Item) -> float | None:
    return item.reward if isinstance(item, ScoredTrajectory) else None
