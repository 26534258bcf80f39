"""A completion as a reader sees it: its claims marked by verdict, each with what the verdict rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest

from rl.report.markup import Markup, element, join
from rl.types import Evidence, Trajectory, Verdict

MOST_CHARACTERS = 12_000
_MOST_CLAIMS = 300

SYMBOLS: dict[Verdict, str] = {"refuted": "✗", "unsupported": "?", "uncertain": "~", "supported": "✓"}
"""By severity: where verdicts overlap, the first one colours the text. Told apart without colour, too."""

_TAG = re.compile(r"(</?(?:think|answer)>)")
_ANSWER = re.compile(r"(?<=<answer>)[^<]*")


@dataclass(frozen=True, slots=True)
class ScorerEvidence:
    """A piece of evidence and the scorer that gave it."""

    scorer: str
    evidence: Evidence


def marked_trace(trajectory: Trajectory, verdicts: Sequence[ScorerEvidence], *, told: Sequence[Markup]) -> Markup:
    """Each turn with the spans that evidence is about marked; hovering or focusing one shows source and note.

    ``told`` are the elements that stand behind each turn, such as what the policy was told. Offsets beyond the text are
    cut to it. At most `MOST_CHARACTERS` are shown, and it is said how many are not.
    """
    text = trajectory.text[:MOST_CHARACTERS]
    spans = [one for one in verdicts if 0 <= one.evidence.start < min(one.evidence.end, len(text))][:_MOST_CLAIMS]
    places = [(start, min(end, len(text))) for start, end in trajectory.turn_spans if start <= len(text)]
    turns = [[*_marked(text, start, end, spans)] for start, end in places]
    if left := len(trajectory.text) - len(text):
        turns[-1].append(element("i", f" … {left:,} more characters in the trajectory log", class_="cut"))
    traces = [element("div", *pieces, class_="trace") for pieces in turns]
    behind = told if not left else told[: len(traces) - 1]
    return join(*chain.from_iterable(zip_longest(traces, behind, fillvalue=Markup())))


def _marked(text: str, start: int, end: int, spans: Sequence[ScorerEvidence]) -> Iterator[Markup]:
    """The turn from ``start`` to ``end``, its answer set off."""
    answer = next(iter([*_ANSWER.finditer(text, start, end)][::-1]), None)
    cuts = {start, end, *(answer.span() if answer else ())}
    cuts |= {min(max(cut, start), end) for one in spans for cut in (one.evidence.start, one.evidence.end)}
    for first, last in pairwise(sorted(cuts)):
        over = [one for one in spans if one.evidence.start <= first and one.evidence.end >= last]
        piece = _plain(text[first:last])
        if answer and answer.start() <= first and last <= answer.end():
            piece = element("b", piece, class_="answer")
        yield _claim(piece, over) if over else piece


def _plain(text: str) -> Markup:
    return join(*(element("span", part, class_="tag") if _TAG.fullmatch(part) else part for part in _TAG.split(text)))


def _claim(text: Markup, over: Sequence[ScorerEvidence]) -> Markup:
    ranked = sorted(over, key=lambda one: list(SYMBOLS).index(one.evidence.verdict))
    tip = element("span", *(_tip_line(one) for one in ranked), class_="tip", role="note")
    return element("mark", text, tip, class_=f"claim {ranked[0].evidence.verdict}", tabindex="0")


def _tip_line(one: ScorerEvidence) -> Markup:
    evidence = one.evidence
    basis = " · ".join(part for part in (evidence.source, evidence.note) if part)
    return element("span", verdict_badge(evidence.verdict), element("span", basis), element("i", one.scorer))


def verdict_badge(verdict: Verdict, *, count: int | None = None) -> Markup:
    number = "" if count is None else f"{count:,} "
    return element("span", f"{SYMBOLS[verdict]} {number}{verdict}", class_=f"badge {verdict}")


def evidence_list(evidence: Sequence[Evidence]) -> Markup:
    """All that a scorer rests on: what speaks against the trajectory in full view, what it supports folded away."""
    supported = [one for one in evidence if one.verdict == "supported"]
    against = sorted(
        (one for one in evidence if one.verdict != "supported"), key=lambda one: list(SYMBOLS).index(one.verdict)
    )
    open_list = element("ul", *map(_evidence_line, against), class_="evidence") if against else Markup()
    if not supported:
        return open_list
    folded = element(
        "details",
        element("summary", f"{SYMBOLS['supported']} {len(supported)} supported"),
        element("ul", *map(_evidence_line, supported), class_="evidence"),
        class_="folded",
    )
    return join(open_list, folded)


def _evidence_line(evidence: Evidence) -> Markup:
    basis = " · ".join(part for part in (evidence.source, evidence.note) if part)
    claim = evidence.claim if len(evidence.claim) <= 300 else evidence.claim[:300] + " …"
    return element(
        "li", verdict_badge(evidence.verdict), " ", element("q", claim), element("span", basis, class_="basis")
    )
