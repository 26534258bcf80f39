"""Claims: what a trace says that can be held against evidence, whatever kind of evidence that is."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from entities.match import fold
from rewards.scorer import Trajectory
from rewards.trace import Span, Trace, call_spans, cut, last_word, parse_trace
from rl.types import Evidence, Task, Verdict

_Found = TypeVar("_Found")
ClaimKindName = Literal["measurements", "findings", "quotes", "regions", "tools"]

MAX_CLAIMS = 300
"""Of one kind in one trace, repetitions included."""

NEAR_CHARS = 200
MAX_OPTION_MARKS = 500
MAX_OPTION_CHARS = 400

_WORST_FIRST: tuple[Verdict, ...] = ("refuted", "supported", "uncertain", "unsupported")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_OPTION_MARK = re.compile(r"(?<!\w)[(\[]?(?P<letter>[A-Z])[)\].:]\s{1,3}")


class TooManyClaims(Exception):
    """A trace makes more claims of one kind than are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that the trace says. ``subject`` is what it is about: claims of one kind and subject are one claim.

    ``source`` names what the verdict rests on. ``covers`` has the expected items that the claim accounts for where it
    is supported, ``weight`` what it costs where it is false (see `rewards.claims.forms`).
    """

    kind: str
    subject: str
    span: Span
    verdict: Verdict
    source: str
    note: str = ""
    covers: frozenset[str] = frozenset()
    weight: float = 1.0

    def evidence(self) -> Evidence:
        return Evidence(
            claim=self.span.text[:200],
            verdict=self.verdict,
            start=self.span.start,
            end=self.span.end,
            source=self.source,
            note=self.note,
        )


class ClaimKind(Protocol):
    """One way of finding and judging claims."""

    def expected(self, trajectory: Trajectory) -> Mapping[str, float] | None:
        """What a full account of the case would cover, each item with its weight; None where there is nothing that
        claims of this kind could be held against. Raises InvalidInput for a task that cannot be read."""

    def find(self, trajectory: Trajectory) -> list[Claim]:
        """The claims up to the first answer, in order, in time linear in the text. Raises TooManyClaims."""


def claim_text(trajectory: Trajectory) -> Trace:
    """The parsed trace; all kinds of claims of one trajectory read the same."""
    return _parsed(trajectory.text, last_word(trajectory), call_spans(trajectory))


_parsed = functools.lru_cache(maxsize=4)(parse_trace)


def bounded(found: Iterable[_Found]) -> list[_Found]:
    """All that was found. Raises TooManyClaims where that is more than `MAX_CLAIMS`, before it is judged."""
    first = list(itertools.islice(found, MAX_CLAIMS + 1))
    if len(first) > MAX_CLAIMS:
        raise TooManyClaims(f"makes more than {MAX_CLAIMS} claims of one kind, which are not read")
    return first


def around(text: str, start: int, end: int) -> str:
    """A part of a sentence and the words near it: what names a source or a label is not far from what it is about."""
    return text[max(0, start - NEAR_CHARS) : end + NEAR_CHARS]


def sentences(text: Span, start: int = 0, end: int | None = None) -> list[Span]:
    """The sentences and lines of a text, or of a part of it (offsets within the text), with their places."""
    end = len(text.text) if end is None else end
    found, position = [], start
    for boundary in [*_SENTENCE_END.finditer(text.text, start, end), None]:
        piece = cut(text.text, position, boundary.start() if boundary else end)
        position = boundary.end() if boundary else end
        if piece.text:
            found.append(Span(piece.start + text.start, piece.end + text.start, piece.text))
    return found


def one_per_subject(claims: Sequence[Claim]) -> list[Claim]:
    """One claim for each kind and subject: refuted if it ever is, else supported if it ever is."""
    merged: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        key = (claim.kind, claim.subject)
        before = merged.get(key, claim)
        worse = min(before, claim, key=lambda each: _WORST_FIRST.index(each.verdict))
        covers = before.covers | claim.covers if worse.verdict == "supported" else frozenset[str]()
        merged[key] = replace(worse, covers=covers)
    return list(merged.values())


def without_other_lines(claims: Sequence[Claim]) -> list[Claim]:
    """Leave out lines of findings that name no field of the record, where a claim of another kind is made in them."""
    starts = sorted(claim.span.start for claim in claims if claim.source != "record")
    kept = []
    for claim in claims:
        inside = bisect.bisect_left(starts, claim.span.start)
        if claim.source != "record" or inside == len(starts) or starts[inside] >= claim.span.end:
            kept.append(claim)
    return kept


def without_recited_options(claims: Sequence[Claim], trajectory: Trajectory) -> list[Claim]:
    """Leave out what stands in a recited option of a multiple-choice question (``B. pneumonia``): it claims nothing."""
    recited = _recited_options(trajectory.text, trajectory.task)
    starts = [start for start, _ in recited]
    kept = []
    for claim in claims:
        before = bisect.bisect_right(starts, claim.span.start) - 1
        if before < 0 or claim.span.start >= recited[before][1]:
            kept.append(claim)
    return kept


def _recited_options(text: str, task: Task) -> list[tuple[int, int]]:
    options = task.answer.get("options") or {}
    if isinstance(options, list | tuple):
        options = dict(zip(string.ascii_uppercase, options, strict=False))
    by_letter = {str(letter).strip().upper(): str(option)[:MAX_OPTION_CHARS] for letter, option in options.items()}
    spans = []
    for mark in itertools.islice(_OPTION_MARK.finditer(text) if by_letter else (), MAX_OPTION_MARKS):
        option = by_letter.get(mark["letter"], "")
        following = text[mark.end() : mark.end() + len(option) + 8]
        if option and f"{fold(following)} ".startswith(f"{fold(option)} "):
            spans.append((mark.start(), mark.end() + len(option)))
    return spans
