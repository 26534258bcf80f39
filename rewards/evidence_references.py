"""Whether what a claim refers to is there: the tool call, the quote, the box, the field of the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entities.match import fold
from entities.reference import Coordinates
from rewards.claims.quotes import QuotableTexts, tokens
from rewards.claims.regions import problem_with, shares_of_image
from rewards.decision_trace import EvidenceReference
from rewards.scorer import Trajectory

MIN_QUOTE_WORDS = 2


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where a reference leads (``source``), or why it leads nowhere (``problem``)."""

    source: str
    problem: str = ""


class ReferenceResolver:
    """Resolves references of one trajectory. ``coordinates`` are those that the policy writes boxes in."""

    def __init__(self, trajectory: Trajectory, *, coordinates: Coordinates = "pixel") -> None:
        self._trajectory = trajectory
        self._coordinates = coordinates
        self._texts = QuotableTexts(trajectory)
        self._fields = {fold(name): name for name in trajectory.task.record}

    def resolve(self, reference: EvidenceReference) -> Resolution:
        fields = reference.fields
        if "record" in fields:
            return self._field(fields["record"])
        if "tool_call" in fields:
            return self._tool_call(fields["tool_call"])
        if "quote" in fields:
            return self._quote(fields["quote"], fields.get("source"))
        return self._box(fields) if "box" in fields else Resolution("", "refers to nothing")

    def _field(self, name: str) -> Resolution:
        found = self._fields.get(fold(name))
        return Resolution(f"record.{found}") if found else Resolution("record", f"the record has no field {name!r:.80}")

    def _tool_call(self, called: int | str) -> Resolution:
        calls = self._trajectory.tool_calls
        same_name = (
            number for number, call in enumerate(calls, start=1) if tokens(call.name) == tokens(str(called)) and call.ok
        )
        number = called if isinstance(called, int) else next(same_name, 0)
        if not 1 <= number <= len(calls):
            return Resolution("tool_calls", f"there was no such call among {len(calls)} that succeeded")
        problem = "" if calls[number - 1].ok else "the call failed"
        return Resolution(f"tool_calls.{number - 1}", problem)

    def _quote(self, quote: str, source: str | None) -> Resolution:
        if len(tokens(quote).split()) < MIN_QUOTE_WORDS:
            return Resolution("", f"a quote needs {MIN_QUOTE_WORDS} words to be found")
        holding = self._texts.holding(quote)
        if source is not None:
            named = self._texts.named_in(source)
            holding = [place for place in holding if place in named]
        if holding:
            return Resolution(holding[0])
        return Resolution("reference.sources", f"stands in no text{f' {source!r:.80}' if source else ''}")

    def _box(self, fields: Mapping[str, Any]) -> Resolution:
        images, image = self._trajectory.images, fields.get("image", 1) - 1
        left, top, right, bottom = map(float, fields["box"])
        if not images:
            return Resolution("images", "the task has no image")
        shares = shares_of_image((left, top, right, bottom), self._coordinates, image, images)
        return Resolution(f"images.{image}", problem_with(shares, image, images))
