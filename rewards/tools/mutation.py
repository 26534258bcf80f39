"""Mutation testing of rewards: known-good traces are spoilt, and a reward that does not drop has a blind spot."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rewards.config import RewardsFile
from rewards.tools.corruptions import CORRUPTIONS, Corruption
from rewards.tools.scoring import score_stream
from rewards.tools.terminal import Paint, shortened, wrapped
from rewards.turns import parts_of
from rl.types import ScoredTrajectory, Trajectory, Unscored

MIN_DROP = 1e-9
EXAMPLES = 2
_EXCERPT_CHARS = 160
_AROUND_CHARS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """A corruption that cost nothing: the trace, its reward, and what was changed into what."""

    id: str
    before: float
    after: float
    was: str
    now: str


@dataclass(slots=True)
class Finding:
    """What the rewards made of one corruption. ``caught_by`` counts the scorers whose value dropped or whose gate
    closed; ``not_applicable`` traces are neither caught nor missed."""

    corruption: Corruption
    caught: int = 0
    not_applicable: int = 0
    unscored: int = 0
    missed: list[Missed] = field(default_factory=list)
    caught_by: Counter[str] = field(default_factory=Counter)

    @property
    def applied(self) -> int:
        return self.caught + self.unscored + len(self.missed)


@dataclass(slots=True)
class MutationReport:
    """``rewards`` are those of the traces that were spoilt; ``unusable`` says of the others why a drop could not be
    told: they got no reward, or a reward of 0."""

    findings: dict[str, Finding]
    rewards: list[float] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)

    def unpunished(self, *, allowed: Collection[str] = ()) -> list[str]:
        """The corruptions that some trace got away with, or that a scorer broke on."""
        return [
            name
            for name, finding in self.findings.items()
            if (finding.missed or finding.unscored) and name not in allowed
        ]


def mutation_test(
    trajectories: Iterable[Trajectory],
    rewards: RewardsFile,
    *,
    corruptions: Sequence[Corruption] = tuple(CORRUPTIONS.values()),
) -> MutationReport:
    """Score every trace as it is and in each of its corruptions, of several turns those of the last one."""
    report = MutationReport({each.name: Finding(each) for each in corruptions})
    asked: deque[Corruption | None] = deque()
    original: ScoredTrajectory | Unscored | None = None

    def variants() -> Iterator[Trajectory]:
        for trajectory in trajectories:
            asked.append(None)
            yield trajectory
            (last,) = parts_of(trajectory, "last")
            for corruption in corruptions:
                spoilt = corruption.apply(last.trajectory)
                if spoilt is None:
                    report.findings[corruption.name].not_applicable += 1
                    continue
                asked.append(corruption)
                text = trajectory.text[: last.start] + spoilt
                yield _with_text(trajectory, text, name=corruption.name)

    def receive(scored: ScoredTrajectory | Unscored) -> None:
        nonlocal original
        corruption = asked.popleft()
        if corruption is None:
            original = scored
            _note_original(report, scored)
        elif isinstance(original, ScoredTrajectory) and original.reward > 0:
            _note(report.findings[corruption.name], original, scored)

    score_stream(variants(), rewards, receive=receive)
    return report


def _note_original(report: MutationReport, scored: ScoredTrajectory | Unscored) -> None:
    if isinstance(scored, Unscored):
        report.unusable[scored.trajectory.id] = scored.reason
    elif scored.reward <= 0:
        report.unusable[scored.trajectory.id] = "its reward is 0"
    else:
        report.rewards.append(scored.reward)


def _note(finding: Finding, original: ScoredTrajectory, spoilt: ScoredTrajectory | Unscored) -> None:
    if isinstance(spoilt, Unscored):
        finding.unscored += 1
    elif spoilt.reward < original.reward - MIN_DROP:
        finding.caught += 1
        finding.caught_by.update(_droppers(original, spoilt))
    else:
        was, now = _difference(original.trajectory.text, spoilt.trajectory.text)
        finding.missed.append(
            Missed(id=original.trajectory.id, before=original.reward, after=spoilt.reward, was=was, now=now)
        )


def _droppers(original: ScoredTrajectory, spoilt: ScoredTrajectory) -> Iterator[str]:
    for name, record in original.scores.items():
        before, after = record.score, spoilt.scores[name].score
        if before and after and (after.value < before.value - MIN_DROP or after.gate_open < before.gate_open):
            yield name


def _with_text(trajectory: Trajectory, text: str, *, name: str) -> Trajectory:
    """The trajectory with another text. A token count, where there is one, grows with the number of characters."""
    length = round(trajectory.length_tokens * len(text) / max(1, len(trajectory.text)))
    return replace(
        trajectory,
        id=f"{trajectory.id}#{name}",
        text=text,
        completion_token_ids=np.zeros(length, dtype=np.int32),
        completion_mask=np.ones(length, dtype=bool),
        rollout_logprobs=np.zeros(length, dtype=np.float32),
    )


def _difference(was: str, now: str) -> tuple[str, str]:
    """Where two texts differ, with a few characters around it."""
    ahead = _same(was, now)
    behind = min(_same(was[::-1], now[::-1]), len(was) - ahead, len(now) - ahead)
    start, left = max(0, ahead - _AROUND_CHARS), max(0, behind - _AROUND_CHARS)
    before, after = (f"{'…' * bool(start)}{text[start : len(text) - left]}{'…' * bool(left)}" for text in (was, now))
    return before, after


def _same(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(text), len(other)))


def report_lines(report: MutationReport, *, allowed: Collection[str], paint: Paint) -> Iterator[str]:
    """The report in lines of at most 80 columns."""
    good = report.rewards
    yield paint(f"{len(good)} known-good traces, mean reward {sum(good) / len(good):.3f}", "bold")
    if report.unusable:
        id, reason = next(iter(report.unusable.items()))
        yield from wrapped(f"{len(report.unusable)} others could not be used; {id}: {reason}")
    if sum(good) / len(good) < 0.8:
        yield from wrapped("These rewards do not call them good: is --in a file of good traces for these rewards?")
    yield ""
    yield f"{'corruption':<24} {'applies':>8} {'caught':>8} {'missed':>8}  caught by"
    for name, finding in report.findings.items():
        yield from _row(name, finding, allowed=allowed, paint=paint)
    for name, finding in report.findings.items():
        if finding.missed:
            yield ""
            yield from _examples(name, finding, paint)


def _row(name: str, finding: Finding, *, allowed: Collection[str], paint: Paint) -> Iterator[str]:
    if not finding.applied:
        yield paint(f"{name:<24} {'-':>8} {'-':>8} {'-':>8}  not applicable", "dim")
        return
    by = ", ".join(f"{scorer} {count}" for scorer, count in finding.caught_by.most_common())
    verdict = [f"NO SCORE for {finding.unscored}"] if finding.unscored else []
    if finding.missed:
        verdict.append("allowed" if name in allowed else "NOT PUNISHED")
    counts = f"{name:<24} {finding.applied:>8} {finding.caught:>8} {len(finding.missed):>8}  "
    first, *others = wrapped("; ".join([*verdict, *filter(None, [by])]), indent=counts, hanging=" " * 53)
    yield paint(first, "green" if not verdict else "yellow" if name in allowed else "red")
    yield from others


def _examples(name: str, finding: Finding, paint: Paint) -> Iterator[str]:
    share = f"{len(finding.missed)} of {finding.applied}"
    heading = f"{name}, not punished on {share} traces: {finding.corruption.summary}"
    yield from (paint(line, "bold") for line in wrapped(heading, hanging="  "))
    for missed in finding.missed[:EXAMPLES]:
        yield from wrapped(f"{missed.id}: reward {missed.before:.4f}, spoilt {missed.after:.4f}", indent="  ")
        yield from wrapped(shortened(missed.was, _EXCERPT_CHARS), indent="    - ")
        yield from wrapped(shortened(missed.now, _EXCERPT_CHARS), indent="    + ")
