"""Key points of a report: what it covers of a reference adds, what it says falsely subtracts (arXiv:2602.12705)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from entities.tree import EntityTree
from rewards.assertion import Polarity, classify
from rewards.claims.claim import Claim, TooManyClaims, one_per_subject
from rewards.claims.findings import FindingClaims
from rewards.claims.forms import count_claims
from rewards.scorer import Abstain, Evidence, InvalidInput, Score, Scorer, Trajectory, Turns
from rewards.trace import MAX_TEXT_CHARS, Span, trace_of
from rl.errors import ConfigError

MAX_EVIDENCE = 200
_STRONGEST_FIRST: tuple[Polarity, ...] = ("affirmed", "uncertain", "negated")


@dataclass(frozen=True, kw_only=True)
class KeyPointScorer(Scorer):
    """``(covered − false) / key points`` of a report, at least 0.

    The report is the last answer block, or all that follows the reasoning. Its key points are the findings of
    ``reference.findings`` or, where the task has none, those that the text ``reference.sources[source]`` affirms,
    denies or leaves open, found by the names of the tree ``entities``. A key point is covered where the report says
    the same of it. False is what contradicts the reference, and to affirm a finding that it does not mention; to deny
    such a one, or to leave something open, neither adds nor subtracts. Abstains without a key point.
    """

    entities: Path | None = None
    source: str = "report"
    false_weight: float = 1.0

    isolated: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    turns: ClassVar[Turns] = "last"
    libraries: ClassVar[tuple[str, ...]] = ("ahocorasick_rs",)
    depends_on: ClassVar[tuple[str, ...]] = (
        "entities",
        "rewards.assertion",
        "rewards.case_reference",
        "rewards.claims.forms",
        "rewards.claims.claim",
        "rewards.clinical_text",
        "rewards.cue_lexicon",
        "rewards.claims.findings",
        "rewards.trace",
    )

    def __post_init__(self) -> None:
        if not self.false_weight >= 0:
            raise ConfigError(f"false_weight must be >= 0; got {self.false_weight}")

    def check_use(self, *, gate: bool) -> None:
        if gate:
            raise ConfigError("the scorer `key_points` never closes a gate; use it with a weight")
        self.prepare()

    def prepare(self) -> None:
        if self.entities is not None:
            EntityTree.load(self.entities)

    async def score(self, trajectory: Trajectory) -> Score:
        findings = self._key_points(trajectory.task.reference, trajectory.task.id)
        if not findings:
            raise Abstain("the reference has no key point")
        if len(trajectory.text) > MAX_TEXT_CHARS:
            return Score(0.0, reason=f"a completion of {len(trajectory.text)} characters is not read")
        report = _report(trajectory)
        kind = FindingClaims(entities=self.entities, closed_world=True)
        task = replace(trajectory.task, reference={"findings": findings})
        read = replace(trajectory, text=report.text, observations=(), tool_calls=(), task=task)
        try:
            claims = kind.find(read)
        except TooManyClaims as error:
            return Score(0.0, reason=str(error))
        return self._score(claims, kind.expected(read) or {}, start=report.start)

    def _score(self, claims: list[Claim], expected: Mapping[str, float], *, start: int) -> Score:
        judged = one_per_subject(claims)
        counts = count_claims(judged, expected)
        false = [claim for claim in judged if claim.verdict == "refuted"]
        value = (counts.covered - self.false_weight * len(false)) / counts.expected
        said = "".join(f"; false: {claim.span.text[:80]!r} ({claim.note})" for claim in false[:5])
        return Score(
            max(0.0, value),
            reason=f"{counts.covered} of {counts.expected} key points covered{said}",
            evidence=tuple(_evidence(claim, start) for claim in claims[:MAX_EVIDENCE]),
            metrics={
                "key_points": float(counts.expected),
                "covered": float(counts.covered),
                "false": float(len(false)),
                "unclipped": value,
            },
        )

    def _key_points(self, reference: Mapping[str, Any], task: str) -> list[Any]:
        if "findings" in reference:
            return list(reference["findings"])
        text = reference.get("sources", {}).get(self.source)
        if text is None:
            raise Abstain(f"the task has neither reference.findings nor reference.sources.{self.source}")
        if self.entities is None:
            raise InvalidInput(f"task {task!r}: the key points of a reference text need `entities`, a tree of findings")
        return _findings_of(text, EntityTree.load(self.entities))


def _findings_of(text: str, tree: EntityTree) -> list[dict[str, str]]:
    """What a reference text says of this patient now, one finding for an entity, the strongest that is said of it."""
    said: dict[str, set[Polarity]] = {}
    for mention in tree.find(text):
        assertion = classify(text, mention.start, mention.end)
        if assertion.temporality == "recent" and assertion.experiencer == "patient":
            said.setdefault(mention.entity_id, set()).add(assertion.polarity)
    return [
        {"name": tree.entities[entity].name, "polarity": next(each for each in _STRONGEST_FIRST if each in polarities)}
        for entity, polarities in said.items()
    ]


def _report(trajectory: Trajectory) -> Span:
    trace = trace_of(trajectory)
    return trace.answers[-1] if trace.answers else trace.open_answer or trace.outside


def _evidence(claim: Claim, start: int) -> Evidence:
    """The evidence of a claim with its place in the whole completion."""
    found = claim.evidence()
    return replace(found, start=found.start + start, end=found.end + start)
