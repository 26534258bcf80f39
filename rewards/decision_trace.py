"""The decision trace of a completion, as JSON (``trace.schema.json``) or as headings and lines with references in them.

    Findings:
    - The radius is high. [record: radius]
    - An opacity at the left base [box: 10, 60, 80, 120] that the report calls new [quote: "new opacity" in report]
    - No interaction is known. [tool: search drug]
    Conclusion: …

A step is a section, a claim one of its lines; ``[tool: 2]`` is the second call, ``[image 2: …]`` a box in the second
image. Both forms give the same `DecisionTrace`, in time linear in the text.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.trace import Section, Span, bullets, cut, parse_trace, sections

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

MAX_JSON_CHARS = 50_000
MAX_REFERENCES = 300
CONCLUSIONS = frozenset({"conclusion", "impression", "diagnosis", "assessment", "summary"})

_FENCE = re.compile(r"```(?:json)?\s{0,8}(?=\{)")
_REFERENCE = re.compile(
    r"\[(?P<kind>record|tool|quote|box|image)(?:[ ](?P<number>\d{1,3}))?(?:\s?:\s?(?P<body>[^\[\]\n]{1,2000}))?\]",
    re.IGNORECASE,
)
_QUOTED_IN = re.compile(r"[\"“](?P<quote>[^\"“”]+)[\"”](?:\s{1,3}(?:in|from)\s{1,3}(?P<source>.+))?")
_NUMBER = re.compile(r"-?\d{1,6}(?:\.\d{1,9})?")


@dataclass(frozen=True, slots=True)
class EvidenceReference:
    """What a claim says that it rests on: ``fields`` as the schema has them, and where it stands in the text.

    ``fields`` is empty for a reference of the text form that names nothing.
    """

    fields: Mapping[str, Any]
    span: Span


@dataclass(frozen=True, slots=True)
class TraceClaim:
    span: Span
    evidence: tuple[EvidenceReference, ...]


@dataclass(frozen=True, slots=True)
class TraceStep:
    name: str
    claims: tuple[TraceClaim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTrace:
    """``problem`` says why the text is no decision trace by the schema; empty where it is one."""

    steps: tuple[TraceStep, ...] = ()
    conclusion: str = ""
    problem: str = ""

    @property
    def references(self) -> list[EvidenceReference]:
        return [reference for step in self.steps for claim in step.claims for reference in claim.evidence]

    def document(self) -> dict[str, Any]:
        """The trace in its JSON form."""
        steps = [
            {
                "name": step.name,
                "claims": [
                    {"text": claim.span.text, "evidence": [dict(each.fields) for each in claim.evidence]}
                    for claim in step.claims
                ],
            }
            for step in self.steps
        ]
        return {"steps": steps, "conclusion": self.conclusion}


def parse_decision_trace(text: str, start: int = 0) -> DecisionTrace:
    """The decision trace in the reasoning of a completion, from ``start`` on, in whichever form it is written."""
    reasoning = parse_trace(text, start).reasoning
    fence = _FENCE.search(reasoning.text)
    if not fence and not reasoning.text.startswith("{"):
        return _from_lines(reasoning)
    start = fence.end() if fence else 0
    end = reasoning.text.find("```", start) if fence else -1
    return _from_json(cut(text, reasoning.start + start, reasoning.start + end if end >= 0 else reasoning.end))


def _from_json(written: Span) -> DecisionTrace:
    if len(written.text) > MAX_JSON_CHARS:
        return DecisionTrace(problem=f"JSON of {len(written.text)} characters is not read")
    try:
        document = json.loads(written.text)
    except (ValueError, RecursionError) as error:
        return DecisionTrace(problem=f"not valid JSON: {error!s:.200}")
    if broken := next(_validator().iter_errors(document), None):
        return DecisionTrace(problem=f"{'.'.join(map(str, broken.absolute_path)) or 'trace'}: {broken.message:.200}")
    finder = _Finder(written)
    steps = tuple(
        TraceStep(step.get("name", ""), tuple(finder.claim(claim) for claim in step["claims"]))
        for step in document["steps"]
    )
    return _checked(DecisionTrace(steps=steps, conclusion=document["conclusion"]))


class _Finder:
    """Finds where the texts of a JSON document stand, going on from one to the next."""

    def __init__(self, written: Span) -> None:
        self._written = written
        self._position = 0

    def claim(self, claim: Mapping[str, Any]) -> TraceClaim:
        span = self._span_of(claim["text"])
        return TraceClaim(span, tuple(EvidenceReference(fields, span) for fields in claim.get("evidence", ())))

    def _span_of(self, text: str) -> Span:
        for spelled in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
            at = self._written.text.find(spelled, self._position)
            if at >= 0:
                self._position = at + len(spelled)
                return Span(self._written.start + at, self._written.start + self._position, text)
        return Span(self._written.start, self._written.end, text)


def _from_lines(text: Span) -> DecisionTrace:
    parts = sections(text)
    steps = tuple(TraceStep(part.name, tuple(_claims(part))) for part in parts if part.name not in CONCLUSIONS)
    conclusion = next((part.body.text for part in reversed(parts) if part.name in CONCLUSIONS), "")
    if not steps:
        return DecisionTrace(conclusion=conclusion, problem="no section with claims, such as `Findings:`")
    if not conclusion:
        return DecisionTrace(steps=steps, problem="no conclusion, a section such as `Conclusion:`")
    return _checked(DecisionTrace(steps=steps, conclusion=conclusion))


def _checked(trace: DecisionTrace) -> DecisionTrace:
    if len(trace.references) > MAX_REFERENCES:
        return DecisionTrace(problem=f"more than {MAX_REFERENCES} references are not read")
    return trace


def _claims(part: Section) -> Iterator[TraceClaim]:
    for line in bullets(part.body):
        yield TraceClaim(line, tuple(_references(line)))


def _references(line: Span) -> Iterator[EvidenceReference]:
    for match in _REFERENCE.finditer(line.text):
        span = Span(match.start() + line.start, match.end() + line.start, match[0])
        yield EvidenceReference(_fields(match["kind"].lower(), match["number"], (match["body"] or "").strip()), span)


def _fields(kind: str, number: str | None, body: str) -> dict[str, Any]:
    """The reference as the schema has it; empty where the brackets hold nothing of that kind."""
    match kind:
        case "record":
            return {"record": body} if body else {}
        case "tool":
            called = number or body
            return {"tool_call": int(called) if called.isdecimal() and len(called) < 4 else called} if called else {}
        case "quote":
            quoted = _QUOTED_IN.fullmatch(body)
            words = quoted["quote"] if quoted else body
            source = {"source": quoted["source"].strip()} if quoted and quoted["source"] else {}
            return {"quote": words} | source if words.strip() else {}
        case _:
            box = [float(found) for found in _NUMBER.findall(body)]
            image = {"image": int(number)} if kind == "image" and number else {}
            return {"box": box} | image if len(box) == 4 else {}


@functools.cache
def _validator() -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    schema = importlib.resources.files(__package__).joinpath("trace.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(schema))
