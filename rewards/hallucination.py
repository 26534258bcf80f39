"""What the trace claims, held against the evidence that the task came with."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from entities.reference import Coordinates
from entities.tree import EntityTree
from rewards.claims.claim import (
    Claim,
    ClaimKind,
    ClaimKindName,
    TooManyClaims,
    claim_text,
    one_per_subject,
    sentences,
    without_other_lines,
    without_recited_options,
)
from rewards.claims.findings import FindingClaims
from rewards.claims.forms import ClaimCounts, count_claims, crimson, saliency_share, unit_interval
from rewards.claims.free import free_claims
from rewards.claims.measurements import MeasurementClaims
from rewards.claims.quotes import QuoteClaims
from rewards.claims.regions import RegionClaims
from rewards.claims.tools import ToolClaims
from rewards.judge import JUDGED_BY, Judge
from rewards.scorer import Abstain, Score, Scorer, Trajectory, Turns
from rewards.trace import MAX_TEXT_CHARS
from rl.errors import ConfigError
from rl.types import Verdict

MAX_EVIDENCE = 200
MAX_ANSWER_SENTENCES = 50

_TAG = re.compile(r"</?\w{1,10}>")
_UNBOUNDED = frozenset[ClaimKindName]({"quotes", "tools"})
"""Kinds without a list of what there is to claim, so that silence is never all that was to be said."""

ClaimForm = Literal["share", "recall", "f1", "crimson", "saliency"]


@dataclass(frozen=True, kw_only=True)
class HallucinationScorer(Scorer):
    """How well the trace's claims stand up to the record, the reference and the tools' results.

    ``claims`` names the kinds that are looked for: measurements (against the record), findings (``reference.findings``;
    ``entities`` is an entity tree for names beyond those), quotes (``reference.sources`` and tool results), regions
    (``reference.regions``) and tools (numbers that a tool is said to have returned). A kind that the task has no
    evidence for is passed over; without any the scorer abstains. What is said of one subject is one claim, refuted if
    it ever is. Recited options are no claims. With a ``judge`` the trace's free claims are found and judged too, save
    those that are found without one; a judge that gives no verdict makes the score fail.

    ``share``: supported claims over all, but over at least ``min_claims`` (or what there is to claim, if less), so that
    saying little does not score 1. ``recall``: expected items covered. ``f1``: both. ``crimson``: findings weighted by
    urgency, .5 where nothing is said. ``saliency``: claims weighted by how much the answer rests on them, 1 where
    nothing is said: for use with ``penalty``. As a gate it closes above ``max_refuted`` refuted claims.
    """

    claims: tuple[ClaimKindName, ...] = get_args(ClaimKindName)
    form: ClaimForm = "share"
    min_claims: int = 3
    max_refuted: int | None = None
    max_rounding: float = 0.1
    require_unit: bool = False
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    entities: Path | None = None
    closed_world: bool = False
    min_quote_words: int = 4
    box_coordinates: Coordinates = "pixel"
    min_iou: float = 0.5
    judge: Judge | None = None

    isolated: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    turns: ClassVar[Turns] = "each"
    counted_metrics: ClassVar[tuple[str, ...]] = ("claims", *get_args(Verdict))
    libraries: ClassVar[tuple[str, ...]] = ("ahocorasick_rs", "Pint")
    depends_on: ClassVar[tuple[str, ...]] = (
        "entities",
        "rewards.assertion",
        "rewards.case_reference",
        "rewards.claims.cited_value",
        "rewards.claims.forms",
        "rewards.claims.claim",
        "rewards.clinical_text",
        "rewards.cue_lexicon",
        "rewards.claims.findings",
        "rewards.claims.free",
        *JUDGED_BY,
        "rewards.claims.measurements",
        "rewards.quantity",
        "rewards.claims.quotes",
        "rewards.claims.regions",
        "rewards.claims.tools",
        "rewards.trace",
        "rewards.turns",
    )

    def __post_init__(self) -> None:
        if self.judge:  # keeps its own verdicts, for as long as its config says
            object.__setattr__(self, "deterministic", False)
        if self.min_claims < 1:
            raise ConfigError(f"min_claims must be >= 1, or saying nothing would score 1; got {self.min_claims}")
        if self.max_rounding < 0:
            raise ConfigError(f"max_rounding must be >= 0; got {self.max_rounding}")
        if not 0 < self.min_iou <= 1:
            raise ConfigError(f"min_iou must be in (0, 1]; got {self.min_iou}")
        if self.min_quote_words < 1:
            raise ConfigError(f"min_quote_words must be >= 1; got {self.min_quote_words}")
        if self.form == "crimson" and "findings" not in self.claims:
            raise ConfigError("form: crimson weighs findings; add `findings` to claims, or take another form")

    def check_use(self, *, gate: bool) -> None:
        if gate and self.max_refuted is None:
            raise ConfigError("a gate of the scorer `hallucination` needs max_refuted: above it the gate closes")
        self.prepare()

    def prepare(self) -> None:
        super().prepare()
        if self.entities is not None:
            EntityTree.load(self.entities)

    async def score(self, trajectory: Trajectory) -> Score:
        expected = {name: kind.expected(trajectory) for name, kind in self.kinds().items()}
        applying = {name: items for name, items in expected.items() if items is not None}
        if not (applying or self.judge) or (self.form == "crimson" and "findings" not in applying):
            raise Abstain("the task has nothing that these claims could be held against")
        if len(trajectory.text) > MAX_TEXT_CHARS:
            return Score(0.0, reason=f"a completion of {len(trajectory.text)} characters is not read")
        try:
            found = [claim for name in applying for claim in self.kinds()[name].find(trajectory)]
            if self.judge:
                found += await free_claims(trajectory, self.judge, known=found)
        except TooManyClaims as error:
            return Score(0.0, reason=str(error))
        found = without_other_lines(without_recited_options(found, trajectory))
        found = sorted(found, key=lambda claim: claim.span.start)
        return self._score(trajectory, found, applying)

    def kinds(self) -> dict[ClaimKindName, ClaimKind]:
        """What is looked for, by the name that ``claims`` takes."""
        kinds: dict[ClaimKindName, ClaimKind] = {
            "measurements": MeasurementClaims(
                synonyms=self.synonyms, max_rounding=self.max_rounding, require_unit=self.require_unit
            ),
            "findings": FindingClaims(entities=self.entities, closed_world=self.closed_world),
            "quotes": QuoteClaims(min_words=self.min_quote_words),
            "regions": RegionClaims(coordinates=self.box_coordinates, min_iou=self.min_iou),
            "tools": ToolClaims(),
        }
        return {name: kind for name, kind in kinds.items() if name in self.claims}

    def _score(
        self, trajectory: Trajectory, found: Sequence[Claim], expected: Mapping[ClaimKindName, Mapping[str, float]]
    ) -> Score:
        items = {item: weight for of_kind in expected.values() for item, weight in of_kind.items()}
        judged = one_per_subject(found)
        verdicts = Counter(claim.verdict for claim in judged)
        counts = count_claims(judged, items)
        bounded = not set(expected) <= _UNBOUNDED
        silent = not judged and not bounded
        weighed = crimson([claim for claim in judged if claim.kind == "finding"], expected.get("findings", {}))
        values = {
            "share": 0.0 if silent else self._share(counts, bounded=bounded),
            "recall": 0.0 if silent else counts.recall,
            "f1": 0.0 if silent else counts.f1,
            "crimson": unit_interval(weighed),
            "saliency": saliency_share(judged, _answer_sentences(trajectory)) if self.form == "saliency" else 0.0,
        }
        metrics = {
            "claims": float(len(judged)),
            **{verdict: float(verdicts[verdict]) for verdict in get_args(Verdict)},
            "recall": counts.recall,
            "claim_words": statistics.fmean(len(claim.span.text.split()) for claim in judged) if judged else 0.0,
        }
        return Score(
            values[self.form],
            reason=_reason(judged, counts),
            evidence=tuple(claim.evidence() for claim in found[:MAX_EVIDENCE]),
            gate_open=self.max_refuted is None or verdicts["refuted"] <= self.max_refuted,
            metrics=metrics | ({"crimson": weighed} if "findings" in expected else {}),
        )

    def _share(self, counts: ClaimCounts, *, bounded: bool) -> float:
        floor = min(self.min_claims, counts.expected) if bounded else self.min_claims
        return counts.supported / max(counts.claims, floor) if counts.claims or floor else 1.0


def _answer_sentences(trajectory: Trajectory) -> list[str]:
    """What follows the reasoning: the answer, and whatever is written around it."""
    outside = claim_text(trajectory).outside
    return [_TAG.sub(" ", sentence.text) for sentence in sentences(outside)[:MAX_ANSWER_SENTENCES]]


def _reason(claims: Sequence[Claim], counts: ClaimCounts) -> str:
    if not claims:
        return "claims nothing that the evidence could be held against"
    wrong = [
        f"{claim.verdict}: {claim.span.text[:80]!r} ({claim.note})" for claim in claims if claim.verdict != "supported"
    ]
    return "; ".join([f"{counts.supported} of {counts.claims} claims supported", *wrong[:5]])
