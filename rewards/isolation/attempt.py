"""What came of asking one scorer for one score, in a form that crosses process borders as JSON."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass, replace
from typing import Any, get_args

from rl.types import Evidence, Outcome, Score, fields_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """``score`` is set exactly where the outcome is ``scored``; otherwise ``reason`` says what happened."""

    outcome: Outcome
    score: Score | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome) or (self.score is not None) != (self.outcome == "scored"):
            raise ValueError(f"outcome {self.outcome!r} with score {self.score!r}")

    def to_json(self) -> bytes:
        fields: dict[str, Any] = {"outcome": self.outcome, "reason": self.reason, "score": None}
        if self.score is not None:
            evidence = [fields_of(each) for each in self.score.evidence]
            fields["score"] = {**fields_of(self.score), "evidence": evidence, "metrics": dict(self.score.metrics)}
        return json.dumps(fields, default=str).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Attempt:
        """Read what a scorer's process wrote: nothing in it is trusted, and whatever does not fit is a failure."""
        try:
            fields = json.loads(content)
            score = fields["score"]
            if score is not None:
                evidence = tuple(checked_evidence(Evidence(**each)) for each in score.pop("evidence"))
                score = Score(**score, evidence=evidence)
            return cls(outcome=fields["outcome"], reason=str(fields["reason"]), score=score)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return cls(outcome="failed", reason=f"the scorer's process sent a malformed reply: {error}")


def checked_evidence(evidence: Any) -> Evidence:
    """The evidence with its place in plain integers. Raises TypeError for another type, or another kind of place."""
    if not isinstance(evidence, Evidence):
        raise TypeError(f"a score's evidence must be Evidence; got {evidence!r:.100}")
    try:
        return replace(evidence, start=operator.index(evidence.start), end=operator.index(evidence.end))
    except TypeError:
        got = f"start {evidence.start!r:.40} and end {evidence.end!r:.40}"
        raise TypeError(f"the start and end of evidence are integers, offsets into the text; got {got}") from None


def failed(reason: str) -> Attempt:
    return Attempt(outcome="failed", reason=reason)
