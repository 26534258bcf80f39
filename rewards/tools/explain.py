"""Why one trajectory got its score: scorer by scorer, claim by claim, and the arithmetic of the combination."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from rewards.combine import NoReward, Reward
from rewards.config import ConfiguredScorer, RewardsFile
from rewards.rubric import RubricScorer
from rewards.tools.scoring import reward_service
from rewards.tools.terminal import SYMBOLS, VERDICT_COLORS, Color, Paint, printable, shortened, wrapped
from rl.types import Evidence, Message, Outcome, ScoredTrajectory, ScoreRecord, ToolCall, Trajectory, Unscored, Verdict

MAX_EVIDENCE = 60
MAX_COMPLETION_CHARS = 4000
_OUTCOME_COLORS: Mapping[Outcome, Color] = {
    "scored": "green",
    "abstained": "dim",
    "failed": "red",
    "invalid_input": "red",
}
_CRITERION_WORDS: Mapping[Verdict, str] = {"supported": "fine", "refuted": "unwanted", "unsupported": "missing"}
"""A criterion is not claimed by the trace: what counts is whether the trace is as the criterion wants it."""


def explain(scored: ScoredTrajectory | Unscored, rewards: RewardsFile, *, paint: Paint) -> Iterator[str]:
    """Lines of at most 80 columns. ``rewards`` has the weights and gates that the scores are combined under."""
    with reward_service(rewards) as service:
        reward = service.combined(scored.trajectory, scored.scores)
    yield from _heading(scored, paint)
    yield from _completion(scored.trajectory, paint)
    for configured in rewards.scorers:
        if record := scored.scores.get(configured.name):
            yield ""
            yield from _scorer(configured, record, text=scored.trajectory.text, paint=paint)
    yield ""
    yield from _arithmetic(reward, scored, rewards, paint)


def _heading(scored: ScoredTrajectory | Unscored, paint: Paint) -> Iterator[str]:
    trajectory = scored.trajectory
    verdict = f"reward {scored.reward:.4f}" if isinstance(scored, ScoredTrajectory) else "unscored: no reward"
    yield f"{paint(printable(trajectory.id), 'bold')}  {paint(verdict, 'bold')}"
    yield from wrapped(shortened(trajectory.task.question, 300), indent="question    ")
    key = ", ".join(f"{name} {value}" for name, value in trajectory.task.answer.items())
    yield from wrapped(shortened(key, 300), indent="answer key  ")


def _completion(trajectory: Trajectory, paint: Paint) -> Iterator[str]:
    yield ""
    spoken = sum(told.message.role == "user" for told in trajectory.observations)
    size = f"{len(trajectory.text):,} characters{f' in {1 + spoken} turns' if spoken else ''}"
    yield paint(f"completion  {size}, finished by {trajectory.finish_reason}", "bold")
    for number, turn in enumerate(trajectory.turns):
        yield from _turn(turn, paint)
        for call in trajectory.tool_calls:
            if call.turn == number:
                yield from wrapped(shortened(_called(call), 300), indent="  call  ")
        for told in trajectory.observations[number : number + 1]:
            yield from wrapped(shortened(_told(told.message), 300), indent=f"  {told.message.role}  ")


def _turn(text: str, paint: Paint) -> Iterator[str]:
    for line in wrapped(text[:MAX_COMPLETION_CHARS], indent="  | ", hanging="  | "):
        yield paint(line, "dim")
    if len(text) > MAX_COMPLETION_CHARS:
        yield f"  … {len(text) - MAX_COMPLETION_CHARS:,} more characters"


def _called(call: ToolCall) -> str:
    """What was asked of a tool, and why it is not answered where it is not; the results stand behind all calls."""
    asked = f"{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}" if call.name else "no call"
    return asked if call.ok else f"{asked}: {call.result}"


def _told(message: Message) -> str:
    count = len(message.images)
    return f"{message.text} [{count} image{'s' * (count > 1)}]".strip() if count else message.text


def _scorer(configured: ConfiguredScorer, record: ScoreRecord, *, text: str, paint: Paint) -> Iterator[str]:
    score = record.score
    role = _role(configured)
    if score is None:
        said, reason = f"{role}  {record.outcome}", record.reason
    else:
        gate = ("  open" if score.gate_open else "  CLOSED") if configured.gate else ""
        said, reason = f"{role}{gate}  value {score.value:.4f}", score.reason
    color = "red" if score is not None and configured.gate and not score.gate_open else _OUTCOME_COLORS[record.outcome]
    version = paint(f"version {record.version}", "dim")
    yield f"{paint(printable(configured.name), 'bold')}  {paint(said, color)}  {version}"
    yield from wrapped(shortened(reason, 600), indent="  ") if reason else ()
    evidence = score.evidence if score is not None else ()
    words = _CRITERION_WORDS if isinstance(configured.scorer, RubricScorer) else {}
    for each in evidence[:MAX_EVIDENCE]:
        yield from _claim(each, word=words.get(each.verdict, each.verdict), text=text, paint=paint)
    if len(evidence) > MAX_EVIDENCE:
        yield f"  … and {len(evidence) - MAX_EVIDENCE:,} more"


def _role(configured: ConfiguredScorer) -> str:
    if configured.gate:
        return f"gate, weight {configured.weight:g}" if configured.weight else "gate"
    if configured.shaping:
        return f"shapes by {configured.shaping:g}{', rising' if configured.rising else ''}"
    return f"weight {configured.weight:g}" if configured.weight else "watched"


def _claim(evidence: Evidence, *, word: str, text: str, paint: Paint) -> Iterator[str]:
    """The verdict and what it is about, then the quoted span and what the verdict rests on."""
    mark = f"  {SYMBOLS[evidence.verdict]} {word:<12}"
    first, *others = wrapped(shortened(evidence.claim, 300), indent=mark)
    yield paint(mark, VERDICT_COLORS[evidence.verdict]) + first[len(mark) :]
    yield from others
    place = ""
    if 0 <= evidence.start < evidence.end:
        span = text[evidence.start : evidence.end]
        quoted = "" if span.strip() == evidence.claim.strip() else f" “{shortened(span, 160)}”"
        place = f"at {evidence.start}–{evidence.end}{quoted}"
    if basis := " · ".join(filter(None, (place, evidence.source, evidence.note))):
        yield from (paint(line, "dim") for line in wrapped(shortened(basis, 500), indent=" " * len(mark)))


def _arithmetic(
    reward: Reward | NoReward, scored: ScoredTrajectory | Unscored, rewards: RewardsFile, paint: Paint
) -> Iterator[str]:
    if isinstance(reward, NoReward):
        yield from wrapped(f"no reward: {reward.reason}")
        return
    counted = [
        (each.weight, record.score.value)
        for each in rewards.scorers
        if (record := scored.scores.get(each.name)) and record.score and each.weight > 0
    ]
    total = sum(weight for weight, _ in counted)
    products = " + ".join(f"{weight:g}×{value:.4f}" for weight, value in counted)
    gates = [each.name for each in rewards.scorers if each.gate]
    gate = f"{0 if reward.closed_gates else 1} × " if gates else ""
    sign = "-" if reward.shaping < 0 else "+"
    yield paint("reward = Π gates × Σ w·s / Σ w + shaping", "bold")
    yield from wrapped(f"{gate}({products}) / {total:g} {sign} {abs(reward.shaping):g}", indent="       = ")
    mean = reward.weighted_mean + reward.shaping
    if reward.closed_gates:
        yield from wrapped(f"0, because of the closed gate {', '.join(reward.closed_gates)}", indent="       = ")
    elif not 0 <= mean <= 1:
        yield f"       = {mean:.4f}, cut to {reward.value:.4f}"
    else:
        yield paint(f"       = {reward.value:.4f}", "bold")
    abstained = [name for name, record in scored.scores.items() if record.outcome == "abstained"]
    if abstained:
        yield from wrapped(f"left out of both sums, because they abstained: {', '.join(abstained)}")
    if isinstance(scored, ScoredTrajectory) and abs(scored.reward - reward.value) > 1e-6:
        yield from wrapped(f"The log says {scored.reward:.4f}: it was combined in another way than these rewards do.")
