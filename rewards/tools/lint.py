"""Problems in rewards that load, and do not do what they seem to: with the file and the line of each."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewards.answer_types.reading import normalised
from rewards.config import ConfiguredScorer, RewardsFile
from rewards.hallucination import HallucinationScorer
from rewards.rubric import RubricScorer
from rewards.rubrics.file import Criterion
from rewards.tools.rule_logic import certainty, excludes, holds_for_nothing, implies
from rl.types import ScoredTrajectory, Unscored

Severity = Literal["error", "warning"]
SAME_WORDS = 0.9
MIN_TRACES = 10

CHECKS: Mapping[str, str] = {
    "cannot-fail": "no trace can fail the criterion: points for nothing, or a fault that nobody can make",
    "cannot-pass": "no trace can pass the criterion: points that nobody can earn, or that everybody loses",
    "unreachable-points": "two wanted criteria exclude each other, so that nobody earns all points",
    "met-by-nothing": "an empty completion earns the points",
    "overlap": "one criterion contains another, or says the same: what both see counts twice",
    "double-counting": "two scorers with a weight see the same thing",
    "critical-without-gate": "`critical: true` has no effect in a scorer that is not a gate",
    "gate-left-to-tasks": "a gate has no criterion of its own: it closes only where a task brings a critical one",
    "never-closes": "a gate without a critical criterion, in itself or in any of the given tasks",
    "idle-in-gate": "a criterion that is not critical has no effect in a gate without weight",
    "correctness-outranked": "the scorers of correctness hold less than half of the weight",
    "never-differs": "every given trace meets the criterion, or none does",
}
"""What is looked for, by the name that ``--allow`` takes."""
ERRORS = frozenset({"cannot-fail", "cannot-pass", "never-closes", "unreachable-points"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem; ``place`` is ``file:line``."""

    check: str
    place: str
    message: str

    @property
    def severity(self) -> Severity:
        return "error" if self.check in ERRORS else "warning"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A criterion, its place and the scorer that it belongs to."""

    criterion: Criterion
    place: str
    scorer: ConfiguredScorer

    @property
    def wanted(self) -> bool:
        return self.criterion.points > 0

    @property
    def said(self) -> str:
        return f"{self.criterion.points:+g} {self.criterion.criterion!r}"


def lint(rewards: RewardsFile, *, place_of: Callable[[str], str]) -> list[Problem]:
    """Everything that can be said without a trace. ``place_of`` is the place of a key of the rewards file."""
    placed = {each.name: _criteria(each) for each in rewards.scorers}
    found: list[Problem] = []
    for scorer in rewards.scorers:
        criteria = placed[scorer.name]
        found += itertools.chain(
            *(_of_one(each) for each in criteria),
            *(_of_two(each, other) for each, other in itertools.combinations(criteria, 2)),
        )
        if _is_left_to_tasks(scorer):
            said = f"the gate {scorer.name!r} has no `path`: it closes only where a task's rubric has `critical: true`"
            found.append(Problem(check="gate-left-to-tasks", place=_place(scorer, place_of), message=said))
    counted = [each for each in rewards.scorers if each.weight > 0]
    for scorer, other in itertools.combinations(counted, 2):
        found += _of_two_scorers(scorer, other, placed, place_of)
    found += _correctness(counted, place_of)
    return found


def _criteria(scorer: ConfiguredScorer) -> list[_Placed]:
    if not isinstance(scorer.scorer, RubricScorer) or scorer.scorer.path is None:
        return []
    folder = _from_here(scorer.scorer.path.parent)
    return [_Placed(each, str(folder / each.source), scorer) for each in scorer.scorer.static]


def _of_one(placed: _Placed) -> Iterator[Problem]:
    criterion, rule = placed.criterion, placed.criterion.check
    if criterion.critical and not placed.scorer.gate:
        said = f"{placed.said} is critical, and the scorer {placed.scorer.name!r} is no gate: add `gate: true` there"
        yield Problem(check="critical-without-gate", place=placed.place, message=said)
    if placed.scorer.gate and not placed.scorer.weight and not criterion.critical:
        said = f"{placed.said} is not critical, and the gate {placed.scorer.name!r} has no weight: it has no effect"
        yield Problem(check="idle-in-gate", place=placed.place, message=said)
    if rule is None:
        return
    known = certainty(rule)
    if known != "depends":
        check = "cannot-fail" if (known == "always") == placed.wanted else "cannot-pass"
        met = "every trace meets" if known == "always" else "no trace can meet"
        result = f"{known} {'earned' if placed.wanted else 'lost'}"
        yield Problem(check=check, place=placed.place, message=f"{met} {placed.said}: its points are {result}")
    elif placed.wanted and holds_for_nothing(rule):
        said = f"an empty completion earns {placed.said}"
        yield Problem(check="met-by-nothing", place=placed.place, message=said)


def _of_two(placed: _Placed, other: _Placed) -> Iterator[Problem]:
    rule, other_rule = placed.criterion.check, other.criterion.check
    if rule is not None and other_rule is not None:
        if placed.wanted and other.wanted and excludes(rule, other_rule):
            said = f"{other.said} cannot be earned together with {placed.said} ({placed.place})"
            yield Problem(check="unreachable-points", place=other.place, message=said)
        earned, lost = (placed, other) if placed.wanted else (other, placed)
        if earned.wanted != lost.wanted and implies(earned.criterion.check or {}, lost.criterion.check or {}):
            said = f"whoever earns {earned.said} also meets {lost.said} ({lost.place})"
            yield Problem(check="unreachable-points", place=earned.place, message=said)
    if (reason := _overlap(placed, other)) and placed.wanted == other.wanted:
        said = f"{other.said} {reason} {placed.said} ({placed.place}): what both see counts twice"
        yield Problem(check="overlap", place=other.place, message=said)


def _overlap(placed: _Placed, other: _Placed) -> str:
    rule, other_rule = placed.criterion.check, other.criterion.check
    if rule is not None and other_rule is not None:
        if rule == other_rule:
            return "is checked in the same way as"
        if implies(rule, other_rule) or implies(other_rule, rule):
            return "is contained in, or contains,"
    words, others = (normalised(each.criterion.criterion) for each in (placed, other))
    return "says the same as" if difflib.SequenceMatcher(None, words, others).ratio() >= SAME_WORDS else ""


def _of_two_scorers(
    scorer: ConfiguredScorer,
    other: ConfiguredScorer,
    placed: Mapping[str, Sequence[_Placed]],
    place_of: Callable[[str], str],
) -> Iterator[Problem]:
    if (scorer.scorer, scorer.when, scorer.turns) == (other.scorer, other.when, other.turns):
        said = f"{other.name!r} is the same scorer with the same parameters as {scorer.name!r}"
        yield Problem(check="double-counting", place=_place(other, place_of), message=said)
        return
    for one, two in itertools.product(placed[scorer.name], placed[other.name]):
        if (reason := _overlap(one, two)) and one.wanted == two.wanted:
            said = f"{two.said} of {other.name!r} {reason} {one.said} of {scorer.name!r} ({one.place})"
            yield Problem(check="double-counting", place=two.place, message=said)
    for claims, rubric in ((scorer, other), (other, scorer)):
        if isinstance(claims.scorer, HallucinationScorer):
            for each in placed[rubric.name]:
                if each.criterion.check is not None and "cites_evidence" in each.criterion.check:
                    said = f"{each.said} of {rubric.name!r} counts the citations that {claims.name!r} scores too"
                    yield Problem(check="double-counting", place=each.place, message=said)


def _correctness(counted: Sequence[ConfiguredScorer], place_of: Callable[[str], str]) -> Iterator[Problem]:
    deciding = [each for each in counted if each.scorer.decides_correctness and not each.when]
    share = sum(each.weight for each in deciding) / sum(each.weight for each in counted)
    if deciding and share < 0.5:
        names = ", ".join(repr(each.name) for each in deciding)
        said = f"{names} holds {share:.0%} of the weight: a wrong answer that pleases the others outranks a right one"
        yield Problem(check="correctness-outranked", place=_place(deciding[0], place_of), message=said)


def _is_left_to_tasks(scorer: ConfiguredScorer) -> bool:
    return scorer.gate and isinstance(scorer.scorer, RubricScorer) and scorer.scorer.path is None


def _place(scorer: ConfiguredScorer, place_of: Callable[[str], str]) -> str:
    return place_of(f"rewards.scorers.{scorer.name}")


def lint_scored(
    scored: Sequence[ScoredTrajectory | Unscored], rewards: RewardsFile, *, place_of: Callable[[str], str]
) -> list[Problem]:
    """What these traces and their tasks show: gates that none of the tasks can close, and criteria that tell no trace
    from another, of which nothing is said for fewer than `MIN_TRACES`."""
    found: list[Problem] = []
    asked = [each.trajectory.task for each in scored]
    for scorer in rewards.scorers:
        tasks = [task for task in asked if scorer.applies_to(task)]
        if _is_left_to_tasks(scorer) and not any(each.get("critical") for task in tasks for each in task.rubric):
            said = f"none of {len(tasks)} tasks has a critical criterion: the gate {scorer.name!r} never closes"
            found.append(Problem(check="never-closes", place=_place(scorer, place_of), message=said))
        for each in _criteria(scorer):
            fine = [
                evidence.verdict == "supported"
                for item in scored
                if (record := item.scores.get(scorer.name)) and record.score
                for evidence in record.score.evidence
                if evidence.source == each.criterion.source and evidence.claim == each.criterion.criterion
            ]
            if len(fine) >= MIN_TRACES and len(set(fine)) == 1:
                verdict = "passes" if fine[0] else "fails"
                said = f"every one of {len(fine)} traces {verdict} {each.said}"
                found.append(Problem(check="never-differs", place=each.place, message=said))
    return found


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
