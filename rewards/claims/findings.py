"""Claims about findings: entities that a trace affirms or denies, held against the findings of the reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from entities.match import fold
from entities.reference import Finding
from entities.tree import Entity, EntityTree, Mention
from rewards.assertion import Polarity, classify
from rewards.case_reference import case_reference
from rewards.claims.claim import Claim, bounded, claim_text
from rewards.scorer import Trajectory
from rewards.trace import Span
from rl.types import Verdict

URGENCY_WEIGHTS: Mapping[str, float] = {"urgent": 1.0, "actionable": 0.5, "other": 0.25, "benign": 0.0}
"""CRIMSON's weights; a finding that the reference does not have counts as ``other``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingClaims:
    """Claims about findings. ``entities`` is the file of an entity tree, for names that the reference does not have.

    Affirming is supported by the finding itself or a kind of it (``opacity`` by ``consolidation``) and refuted where
    the reference denies it or what it is a kind of; denying is the other way round. To affirm what the reference does
    not mention is unsupported, or refuted in a ``closed_world``, where the reference lists all that there is; to deny
    it is no claim, or true denials without end would be worth something. What is left open is uncertain, unless the
    reference leaves it open too; what is past, hypothetical or of somebody else says nothing of the case.
    """

    entities: Path | None = None
    closed_world: bool = False

    def expected(self, trajectory: Trajectory) -> dict[str, float] | None:
        task = trajectory.task
        if "findings" not in task.reference:
            return None
        return {
            _source(each): URGENCY_WEIGHTS[each.urgency] if each.polarity == "affirmed" else 0.0
            for each in case_reference(task).findings
        }

    def find(self, trajectory: Trajectory) -> list[Claim]:
        text = claim_text(trajectory).before_answer
        known = _known_findings(case_reference(trajectory.task).findings, self.entities)
        claims = (self._claim(known, mention, text) for mention in bounded(known.find(text.text)))
        return [claim for claim in claims if claim is not None]

    def _claim(self, known: _KnownFindings, mention: Mention, text: Span) -> Claim | None:
        assertion = classify(text.text, mention.start, mention.end)
        if assertion.temporality != "recent" or assertion.experiencer != "patient":
            return None
        verdict, finding = known.judge(mention.entity_id, assertion.polarity)
        if finding is None and assertion.polarity == "negated":
            return None
        if finding is None and assertion.polarity == "affirmed" and self.closed_world:
            verdict = "refuted"
        where = f"{finding.polarity} in the reference as {finding.name!r}" if finding else "not in the reference"
        return Claim(
            kind="finding",
            subject=_source(finding) if finding else mention.entity_id,  # a kind of a finding is no second claim
            span=Span(mention.start + text.start, mention.end + text.start, text.text[mention.start : mention.end]),
            verdict=verdict,
            source=_source(finding) if finding else "reference.findings",
            note=f"{assertion.polarity} here, {where}",
            covers=known.named_by(mention.entity_id),
            weight=URGENCY_WEIGHTS[finding.urgency if finding else "other"],
        )


class _KnownFindings:
    """The findings of a reference among the entities of a tree, which may know them by further names or not at all."""

    def __init__(self, tree: EntityTree, findings: Sequence[Finding]) -> None:
        self._tree = tree
        self._by_entity = {self._entity_of(finding): finding for finding in findings}
        self._own = EntityTree(
            Entity(id=entity, name=finding.name, synonyms=finding.synonyms)
            for entity, finding in self._by_entity.items()
        )
        self._shown = {
            entity: finding
            for id, finding in reversed(self._by_entity.items())
            if finding.polarity == "affirmed"
            for entity in (id, *self._above(id))
        }

    def find(self, text: str) -> list[Mention]:
        """The findings and the entities of the tree that a text names, of overlapping ones the first and longest."""
        found = sorted((*self._own.find(text), *self._tree.find(text)), key=lambda each: (each.start, -each.end))
        mentions: list[Mention] = []
        for mention in found:
            if not mentions or mention.start >= mentions[-1].end:
                mentions.append(mention)
        return mentions

    def judge(self, entity: str, said: Polarity) -> tuple[Verdict, Finding | None]:
        """The verdict and the finding of the reference that it rests on."""
        own = self._by_entity.get(entity)
        if own is not None and "uncertain" in (said, own.polarity):
            return "supported" if said == own.polarity else "uncertain", own
        shown = self._shown.get(entity)
        above = (self._by_entity[id] for id in (entity, *self._above(entity)) if id in self._by_entity)
        denied = next((finding for finding in above if finding.polarity == "negated"), None)
        if said == "uncertain" or not (shown or denied):
            return "uncertain" if said == "uncertain" else "unsupported", shown or denied
        return "supported" if bool(shown) == (said == "affirmed") else "refuted", shown or denied

    def named_by(self, entity: str) -> frozenset[str]:
        """The expected item that the entity is the very name of."""
        return frozenset({_source(self._by_entity[entity])} if entity in self._by_entity else ())

    def _entity_of(self, finding: Finding) -> str:
        known = (id for name in (finding.name, *finding.synonyms) for id in self._tree.named(name))
        return next(known, f"reference:{fold(finding.name)}")

    def _above(self, entity: str) -> tuple[str, ...]:
        return self._tree.ancestors(entity) if entity in self._tree.entities else ()


def _source(finding: Finding) -> str:
    return f"reference.findings.{finding.name}"


@functools.lru_cache(maxsize=64)
def _known_findings(findings: tuple[Finding, ...], entities: Path | None) -> _KnownFindings:
    return _KnownFindings(EntityTree.load(entities) if entities else EntityTree(()), findings)
