"""The parts of a completion: reasoning, answer blocks, sections and findings, each with its place in the text.

Every function takes time linear in the text, whatever a policy wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rl.types import Trajectory

MAX_TEXT_CHARS = 250_000
"""Longer completions are refused by the scorers that read them, with this bound as the reason."""

_CALL, _END_OF_CALL = "<tool_call>", "</tool_call>"
_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_HEADING = re.compile(
    r"^(?:<think>)?[ \t]{0,8}(?:#{1,6}[ \t]{0,8})?"
    r"(?:\*\*)?(?P<name>[A-Za-z][A-Za-z \t]{0,40})(?:\*\*)?:(?:\*\*)?(?P<rest>.*)$",
    re.MULTILINE,
)
_BULLET = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+")

SECTION_NAMES = frozenset(
    {"analysis", "answer", "assessment", "conclusion", "diagnosis", "evidence", "findings", "impression"}
    | {"knowledge recall", "observations", "plan", "reasoning", "recommendation", "summary", "understanding"}
    | {"visual observation"}
)
"""Headings that open a section even where text follows them on their line; any other does if it stands alone."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text and where it stands in it: ``text == whole[start:end]``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, in lower case, and what follows it up to the next heading."""

    name: str
    body: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A completion taken apart. ``answers`` holds the answer blocks outside the reasoning, in order.

    ``open_answer`` is an answer block that the text ends in without closing it: an answer where the policy stopped
    there, half an answer where it was cut off.
    """

    text: str
    reasoning: Span
    answers: tuple[Span, ...]
    open_answer: Span | None
    outside: Span
    """What stands after the reasoning."""
    before_answer: Span
    """Everything up to the first answer block: where claims are made. Calls of tools are blanked in it."""


def last_word(trajectory: Trajectory) -> int:
    """Where in a turn the policy begins to write what the user is left with: after the last that a tool told it. 0 in a
    text of several turns, which is read at once."""
    if any(told.message.role == "user" for told in trajectory.observations):
        return 0
    return trajectory.turn_spans[-1][0]


def call_spans(trajectory: Trajectory) -> tuple[tuple[int, int], ...]:
    """Where in the text the calls of tools stand that were made. What is only thought of is no call."""
    calling = {call.turn for call in trajectory.tool_calls}
    calling |= {turn for turn, told in enumerate(trajectory.observations) if told.message.role == "tool"}
    spans = (span for turn, span in enumerate(trajectory.turn_spans) if turn in calling)
    return tuple(call for start, end in spans for call in _calls(trajectory.text, start, end))


def _calls(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    closed = text.rfind("</think>", start, end)
    opened = text.find("<think>", start, end)
    start, end = max(start, closed), end if closed >= 0 or opened < 0 else opened
    while (at := text.find(_CALL, start, end)) >= 0 and (close := text.find(_END_OF_CALL, at, end)) >= 0:
        start = close + len(_END_OF_CALL)
        yield at, start


def blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with spaces in these places, so that all others stay."""
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], " " * (end - start)]
        at = end
    return "".join([*pieces, text[at:]])


def trace_of(trajectory: Trajectory) -> Trace:
    """What the policy wrote, taken apart. Reasoning and answers are those that follow the last result of a tool; what
    is asked of a tool is no claim."""
    return parse_trace(trajectory.text, last_word(trajectory), call_spans(trajectory))


def parse_trace(text: str, start: int = 0, calls: Sequence[tuple[int, int]] = ()) -> Trace:
    """Take a completion apart by its tags, from ``start`` on; ``calls`` are spans in which nothing is claimed.

    The reasoning is the first ``<think>`` block; an unclosed one ends at the first answer block or at the end of the
    text, and a closing tag alone (the prompt had opened it) ends what began with the text. Answer blocks inside a
    closed reasoning are drafts, not answers.
    """
    tags = [(match[2].lower(), bool(match[1]), match.start(), match.end()) for match in _TAG.finditer(text, start)]
    opened = next((end for name, closing, _, end in tags if name == "think" and not closing), None)
    closed = next(((place, end) for name, closing, place, end in tags if name == "think" and closing), None)
    first_answer = next((place for name, closing, place, _ in tags if name == "answer" and not closing), len(text))
    if closed is not None and (opened is None or opened <= closed[0]):
        reasoning = cut(text, start if opened is None else opened, closed[0])
        outside = cut(text, closed[1], len(text))
    else:
        reasoning = cut(text, min(start if opened is None else opened, first_answer), first_answer)
        outside = cut(text, start if opened is None else first_answer, len(text))
    answer_tags = [tag for tag in tags if tag[0] == "answer" and tag[2] >= outside.start]
    answers, open_answer = _answer_blocks(text, answer_tags)
    answer_start = next((place for _, closing, place, _ in answer_tags if not closing), len(text))
    return Trace(
        text=text,
        reasoning=reasoning,
        answers=answers,
        open_answer=open_answer,
        outside=outside,
        before_answer=cut(blanked(text, calls), 0, answer_start),
    )


def cut(text: str, start: int, end: int) -> Span:
    """The piece of the text between two offsets, without the white space at its ends."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    piece = piece.strip()
    return Span(start, start + len(piece), piece)


def sections(span: Span) -> list[Section]:
    """The sections that headings (``Findings:``, ``## Findings:``, ``**Findings:**``) divide a text into."""
    headings = [match for match in _HEADING.finditer(span.text) if _opens_section(match)]
    ends = [*(match.start() for match in headings[1:]), len(span.text)]
    return [
        Section(" ".join(match["name"].lower().split()), _shifted(cut(span.text, match.start("rest"), end), span.start))
        for match, end in zip(headings, ends, strict=False)
    ]


def section(span: Span, name: str) -> Span | None:
    """The body of the last section of that name, or None."""
    return next((part.body for part in reversed(sections(span)) if part.name == name), None)


def bullets(span: Span) -> list[Span]:
    """The non-empty lines of a text without their bullets; a tag alone is no line."""
    found = []
    start = 0
    for line in span.text.splitlines(keepends=True):
        marker = _BULLET.match(line)
        piece = cut(span.text, start + (marker.end() if marker else 0), start + len(line))
        start += len(line)
        if piece.text and not _TAG.fullmatch(piece.text):
            found.append(_shifted(piece, span.start))
    return found


def _answer_blocks(text: str, tags: list[tuple[str, bool, int, int]]) -> tuple[tuple[Span, ...], Span | None]:
    """Pair each closing tag with the nearest opening tag before it."""
    blocks: list[Span] = []
    opened: int | None = None
    for _, closing, start, end in tags:
        if not closing:
            opened = end
        elif opened is not None:
            blocks.append(cut(text, opened, start))
            opened = None
    return tuple(blocks), None if opened is None else cut(text, opened, len(text))


def _opens_section(match: re.Match[str]) -> bool:
    name = " ".join(match["name"].lower().split())
    return name in SECTION_NAMES or not match["rest"].strip()


def _shifted(span: Span, offset: int) -> Span:
    return Span(span.start + offset, span.end + offset, span.text)
