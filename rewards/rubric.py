"""Rubrics: criteria with points in HealthBench's form (arXiv:2505.08775), of a config (static) and a task (dynamic)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rewards.judge import JUDGED_BY, Judge
from rewards.rubrics.file import Criterion, load_rubric, parse_criteria
from rewards.rubrics.judged import Shown, agreement, judge_criteria
from rewards.rubrics.rules import Hit, RuleReader
from rewards.scorer import Abstain, Evidence, InvalidInput, Score, Scorer, Trajectory
from rewards.trace import MAX_TEXT_CHARS, Span
from rewards.turns import Part, parts_of
from rl.errors import ConfigError
from rl.types import Task, Verdict

if TYPE_CHECKING:
    from entities.tree import EntityTree

Form = Literal["healthbench", "baichuan_m3"]


@dataclass(frozen=True, kw_only=True)
class RubricScorer(Scorer):
    """The points of the criteria that a trace meets.

    The criteria of ``path`` apply to every task, those of ``task.rubric`` (unless ``dynamic`` is false) to that task,
    together. As a gate it closes where a critical criterion is hit: an unwanted one met, or a wanted one not. Abstains
    where there is no criterion.

    A criterion with a `check` is decided by that rule, any other by ``judge``, who sees what is ``shown`` of the task
    beside the completion. One that the judge does not decide makes the whole score fail. Of several votes the majority
    decides, or with ``voting: mean`` a criterion earns its points by the share of the votes; a gate goes by majority.

    Of several turns the judge sees the whole conversation, since what it is asked may be about its course. What a rule
    reads (reasoning, answer, sections, length) every turn has: it must be as it is wanted in each.
    """

    path: Path | None = None
    dynamic: bool = True
    form: Form = "healthbench"
    judge: Judge | None = None
    shown: tuple[Shown, ...] = ("question", "record", "tools")
    voting: Literal["majority", "mean"] = "majority"
    tree: Path | None = None
    """An ontology (see `entities.ontology`) whose synonyms and kinds the rule `names` knows."""

    isolated: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ("ahocorasick_rs", "google-re2", "jsonschema", "Pint")
    depends_on: ClassVar[tuple[str, ...]] = (
        "entities.match",
        "entities.ontology",
        "entities.tree",
        "rewards.answer_types.reading",
        "rewards.assertion",
        "rewards.claims.cited_value",
        "rewards.claims.claim",
        "rewards.clinical_text",
        "rewards.cue_lexicon",
        *JUDGED_BY,
        "rewards.claims.measurements",
        "rewards.quantity",
        "rewards.rubrics.file",
        "rewards.rubrics.json_schema",
        "rewards.rubrics.judged",
        "rl.json_schema",
        "rl.regex",
        "rewards.rubrics.rules",
        "rewards.trace",
        "rewards.turns",
    )

    def __post_init__(self) -> None:
        if self.judge:  # keeps its own verdicts, for as long as its config says
            object.__setattr__(self, "deterministic", False)

    @functools.cached_property
    def static(self) -> tuple[Criterion, ...]:
        """The criteria of ``path``, read once and sent along to other processes."""
        return load_rubric(self.path) if self.path else ()

    @functools.cached_property
    def entity_tree(self) -> EntityTree | None:
        """The tree of ``tree``, read once and sent along to other processes."""
        from entities.tree import EntityTree

        return EntityTree.load(self.tree) if self.tree else None

    def check_use(self, *, gate: bool) -> None:
        if not self.path and not self.dynamic:
            raise ConfigError("the scorer `rubric` needs a path, or dynamic: true for the criteria of the tasks")
        _ = self.entity_tree  # a file that is missing or malformed is told now
        for criterion in self.static:
            if criterion.check is None and not self.judge:
                raise ConfigError(
                    f"{criterion.source}: {criterion.criterion!r} has no `check`, so that a judge would have to "
                    "decide, and the scorer `rubric` has none: name one as its `judge`, described in rewards.judges"
                )
        if gate and self.path and not any(criterion.critical for criterion in self.static):
            raise ConfigError(f"{self.path}: a gate needs a criterion with `critical: true`, or it never closes")
        if not gate and self.path and not any(criterion.points > 0 for criterion in self.static):
            raise ConfigError(f"{self.path}: no criterion has points > 0, so that no trace could score above 0")

    async def score(self, trajectory: Trajectory) -> Score:
        criteria = self.static + (self._dynamic(trajectory.task) if self.dynamic else ())
        if not criteria:
            raise Abstain("neither the config nor the task has a rubric")
        if len(trajectory.text) > MAX_TEXT_CHARS:
            return Score(
                0.0,
                reason=f"a completion of {len(trajectory.text)} characters is not read",
                gate_open=not any(criterion.critical for criterion in criteria),
            )
        return _score(criteria, await self._hits(criteria, trajectory), form=self.form, voting=self.voting)

    async def _hits(self, criteria: Sequence[Criterion], trajectory: Trajectory) -> list[Hit]:
        parts = parts_of(trajectory, "each")
        readers = [RuleReader(part.trajectory, tree=self.entity_tree) for part in parts]
        judged = [criterion for criterion in criteria if criterion.check is None]
        verdicts: Iterator[Hit] = iter(())
        if judged and self.judge:
            made = await judge_criteria(judged, self.judge, trajectory=trajectory, readers=readers, shown=self.shown)
            verdicts = iter(made)
        return [
            next(verdicts)
            if criterion.check is None
            else _over_turns(criterion, [reader.check(criterion.check) for reader in readers], parts)
            for criterion in criteria
        ]

    def _dynamic(self, task: Task) -> tuple[Criterion, ...]:
        try:
            criteria = parse_criteria(task.rubric, source="task.rubric")
        except ValueError as error:
            raise InvalidInput(f"task {task.id!r}: {error}") from error
        for criterion in criteria:
            if criterion.check is None and not self.judge:
                raise InvalidInput(
                    f"task {task.id!r}: {criterion.source} has no `check`, and the scorer `rubric` has no judge"
                )
        return criteria


def healthbench_score(points: Sequence[float], met: Sequence[float]) -> float:
    """HealthBench's score of one item, before clipping: points met over points that can be earned (may be negative).

    ``met`` is true or false, or the share of a judge's votes.
    """
    earnable = sum(each for each in points if each > 0)
    return sum(each * share for each, share in zip(points, met, strict=True)) / earnable


def baichuan_score(points: Sequence[float], met: Sequence[float]) -> float:
    """Baichuan-M3's form ``(Σ w·a − Σ_{w<0} w) / Σ|w|``, in [0, 1]: 1 where all wanted and nothing unwanted is met."""
    earned = sum(each * share for each, share in zip(points, met, strict=True))
    return (earned - sum(each for each in points if each < 0)) / sum(abs(each) for each in points)


def _score(criteria: Sequence[Criterion], hits: Sequence[Hit], *, form: Form, voting: str) -> Score:
    points = [criterion.points for criterion in criteria]
    shares = [hit.share for hit in hits if hit.share is not None]
    met = [hit.share if voting == "mean" and hit.share is not None else float(hit.holds) for hit in hits]
    earnable = any(each > 0 for each in points)  # not so in a gate, which may hold nothing but what is unwanted
    raw = healthbench_score(points, met) if form == "healthbench" and earnable else baichuan_score(points, met)
    critical = [
        criterion
        for criterion, hit in zip(criteria, hits, strict=True)
        if criterion.critical and not _is_fine(criterion, hit)
    ]
    return Score(
        max(0.0, min(1.0, raw)),
        reason=_reason(criteria, hits, critical),
        evidence=tuple(_evidence(criterion, hit) for criterion, hit in zip(criteria, hits, strict=True)),
        gate_open=not critical,
        metrics={
            "criteria": float(len(criteria)),
            "met": float(sum(hit.holds for hit in hits)),
            "unclipped": raw,
            **({"judged": float(len(shares)), "agreement": agreement(shares)} if shares else {}),
        },
    )


def _over_turns(criterion: Criterion, hits: Sequence[Hit], parts: Sequence[Part]) -> Hit:
    """What a rule found in the first turn that is not as it is wanted; in the first of all where every one is."""
    for number, (part, hit) in enumerate(zip(parts, hits, strict=True), start=1):
        if len(parts) > 1 and not _is_fine(criterion, hit):
            span = Span(hit.span.start + part.start, hit.span.end + part.start, hit.span.text)
            return replace(hit, span=span, note=", ".join(filter(None, (f"turn {number}", hit.note))))
    return hits[0]


def _is_fine(criterion: Criterion, hit: Hit) -> bool:
    return hit.holds == (criterion.points > 0)


def _reason(criteria: Sequence[Criterion], hits: Sequence[Hit], critical: Sequence[Criterion]) -> str:
    faults = [
        f"{criterion.points:+g} {'met' if hit.holds else 'not met'}: {criterion.criterion}"
        for criterion, hit in zip(criteria, hits, strict=True)
        if not _is_fine(criterion, hit)
    ]
    closed = [f"gate closed by: {criterion.criterion}" for criterion in critical]
    return "; ".join([*closed, *faults]) or f"all {len(criteria)} criteria as wanted"


def _evidence(criterion: Criterion, hit: Hit) -> Evidence:
    """The verdict says whether the trace is fine on this: ``refuted`` where something unwanted is met, ``unsupported``
    where something wanted is not."""
    verdict: Verdict = "supported" if _is_fine(criterion, hit) else "refuted" if criterion.points < 0 else "unsupported"
    placed = bool(hit.span.text) and hit.holds
    return Evidence(
        claim=criterion.criterion,
        verdict=verdict,
        start=hit.span.start if placed else -1,
        end=hit.span.end if placed else -1,
        source=criterion.source,
        note=", ".join(filter(None, (f"{criterion.points:+g}", "met" if hit.holds else "not met", hit.note))),
    )
