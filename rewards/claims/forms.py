"""From judged claims to a number: precision, recall and F1, CRIMSON's weighted form, Baichuan-M3's saliency. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entities.match import fold
from rewards.claims.claim import Claim

EPSILON = 1e-6
MIN_SALIENCY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCounts:
    """``supported`` of ``claims`` claims, which account for ``covered`` of ``expected`` items."""

    supported: int
    claims: int
    covered: int
    expected: int

    @property
    def precision(self) -> float:
        """The share of the claims that is supported; without claims 1 where nothing was to be said, and 0 elsewhere."""
        return self.supported / self.claims if self.claims else float(not self.expected)

    @property
    def recall(self) -> float:
        """The share of the expected items that is covered; 1 where there are none."""
        return self.covered / self.expected if self.expected else 1.0

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def count_claims(claims: Sequence[Claim], expected: Mapping[str, float]) -> ClaimCounts:
    """Count claims that are one per subject."""
    supported = [claim for claim in claims if claim.verdict == "supported"]
    covered = {item for claim in supported for item in claim.covers} & set(expected)
    return ClaimCounts(supported=len(supported), claims=len(claims), covered=len(covered), expected=len(expected))


def crimson(claims: Sequence[Claim], expected: Mapping[str, float]) -> float:
    """CRIMSON's ``S = (correct − E_false) / N`` over findings weighted by urgency: at most 1, below 0 where what is
    false weighs more than what is right, 0 where nothing is said.

    ``N`` is the weight of all findings that the case shows. Where that is 0, it is 1.
    """
    covered = {item for claim in claims if claim.verdict == "supported" for item in claim.covers}
    correct = sum(weight for item, weight in expected.items() if item in covered)
    false = sum(claim.weight for claim in claims if claim.verdict in ("refuted", "unsupported"))
    total = sum(expected.values())
    return (correct - false) / total if total else 1.0 - false


def unit_interval(crimson_score: float) -> float:
    """CRIMSON's S in [0, 1], order kept: S from 0 to 1 becomes .5 to 1, and below 0 ``.5 / (1 + |S|)``."""
    return 0.5 + crimson_score / 2 if crimson_score >= 0 else 0.5 / (1 - crimson_score)


def saliency_share(claims: Sequence[Claim], answer: Sequence[str]) -> float:
    """``1 + R_fact`` of Baichuan-M3, ``R_fact = −Σ w·I / (Σ w + ε)``: I is 1 for a claim that is not supported, w its
    saliency, the largest similarity to a sentence of the answer. 1 where nothing is claimed.

    A claim weighs at least `MIN_SALIENCY`, or an answer of one word would excuse whatever leads to it.
    """
    weights = [max(MIN_SALIENCY, each) for each in saliencies([claim.span.text for claim in claims], answer)]
    lost = sum(weight for claim, weight in zip(claims, weights, strict=True) if claim.verdict != "supported")
    return 1.0 - lost / (sum(weights) + EPSILON)


def saliencies(texts: Sequence[str], answer: Sequence[str]) -> list[float]:
    """For each text the largest cosine of its words' set to that of a sentence of the answer, in [0, 1]."""
    sentences = [words for sentence in answer if (words := set(fold(sentence).split()))]
    weights = []
    for text in texts:
        words = set(fold(text).split())
        cosines = (len(words & said) / math.sqrt(len(words) * len(said)) for said in sentences if words)
        weights.append(max(cosines, default=0.0))
    return weights
