"""Whether the reasoning is a decision trace, and whether all that it refers to is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entities.reference import Coordinates
from rewards.case_reference import case_reference
from rewards.decision_trace import EvidenceReference, parse_decision_trace
from rewards.evidence_references import ReferenceResolver, Resolution
from rewards.scorer import Abstain, Evidence, Score, Scorer, Trajectory, Turns
from rewards.trace import MAX_TEXT_CHARS, last_word
from rl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TraceScorer(Scorer):
    """The share of the trace's evidence references that resolve; 0 where the reasoning is no decision trace.

    See `rewards.decision_trace` for the two forms that a trace may have. The share is of at least ``min_references``,
    so that referring to nothing does not score 1; the same reference in several places counts once. Abstains where the
    task and the tools give nothing that could be referred to. As a gate it closes above ``max_unresolved``.
    """

    min_references: int = 3
    max_unresolved: int | None = None
    box_coordinates: Coordinates = "pixel"

    isolated: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    turns: ClassVar[Turns] = "each"
    counted_metrics: ClassVar[tuple[str, ...]] = ("steps", "references", "unresolved")
    libraries: ClassVar[tuple[str, ...]] = ("ahocorasick_rs",)
    depends_on: ClassVar[tuple[str, ...]] = (
        "entities",
        "rewards.case_reference",
        "rewards.claims.claim",
        "rewards.decision_trace",
        "rewards.evidence_references",
        "rewards.claims.quotes",
        "rewards.claims.regions",
        "rewards.trace",
        "rewards.turns",
    )

    def __post_init__(self) -> None:
        if self.min_references < 1:
            raise ConfigError(
                f"min_references must be >= 1, or referring to nothing would score 1; got {self.min_references}"
            )

    def check_use(self, *, gate: bool) -> None:
        if gate and self.max_unresolved is None:
            raise ConfigError("a gate of the scorer `trace` needs max_unresolved: above it the gate closes")

    async def score(self, trajectory: Trajectory) -> Score:
        task = trajectory.task
        if not (task.record or trajectory.images or trajectory.tool_calls or case_reference(task).sources):
            raise Abstain("the task has nothing that a trace could refer to")
        if len(trajectory.text) > MAX_TEXT_CHARS:
            return Score(0.0, reason=f"a completion of {len(trajectory.text)} characters is not read")
        trace = parse_decision_trace(trajectory.text, last_word(trajectory))
        resolver = ReferenceResolver(trajectory, coordinates=self.box_coordinates)
        resolved = [(reference, resolver.resolve(reference)) for reference in trace.references]
        distinct = {repr(sorted(reference.fields.items())): found for reference, found in resolved}
        unresolved = sum(bool(found.problem) for found in distinct.values())
        share = (len(distinct) - unresolved) / max(len(distinct), self.min_references)
        return Score(
            0.0 if trace.problem else share,
            reason=trace.problem or _reason(resolved, unresolved, total=len(distinct)),
            evidence=tuple(_evidence(reference, found) for reference, found in resolved),
            gate_open=self.max_unresolved is None or unresolved <= self.max_unresolved,
            metrics={
                "steps": float(len(trace.steps)),
                "references": float(len(distinct)),
                "unresolved": float(unresolved),
            },
        )


def _reason(resolved: list[tuple[EvidenceReference, Resolution]], unresolved: int, *, total: int) -> str:
    if not total:
        return "refers to no evidence"
    nowhere = [f"{reference.span.text[:80]!r}: {found.problem}" for reference, found in resolved if found.problem]
    return "; ".join([f"{total - unresolved} of {total} references resolve", *nowhere[:5]])


def _evidence(reference: EvidenceReference, found: Resolution) -> Evidence:
    return Evidence(
        claim=reference.span.text[:200],
        verdict="refuted" if found.problem else "supported",
        start=reference.span.start,
        end=reference.span.end,
        source=found.source,
        note=found.problem,
    )
