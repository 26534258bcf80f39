"""Claims about measurements: found in a trace, and compared with the record that they are about."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewards.claims.cited_value import CitedValue, cited_values
from rewards.claims.claim import MAX_CLAIMS, Claim, bounded, claim_text, sentences
from rewards.quantity import convert, own_unit
from rewards.scorer import Trajectory
from rewards.trace import Span, Trace, bullets, cut, sections
from rl.types import Measurement, Verdict

FINDING_SECTIONS = frozenset({"findings", "observations", "visual observation"})
MAX_GAP_CHARS = 80
"""A number further behind its name is about something else."""

_GENERIC_READINGS: Mapping[str, tuple[str, ...]] = {
    "high": ("high", "elevated", "increased", "raised", "above normal", "above average"),
    "low": ("low", "decreased", "reduced", "below normal", "below average"),
    "normal": ("normal", "unremarkable", "within normal limits", "within the normal range", "within normal range"),
}
_COMPARED = {"higher": "high", "greater": "high", "larger": "high", "lower": "low", "less": "low", "smaller": "low"}
_GENERIC_READINGS = {
    reading: words
    + tuple(
        f"{comparative} than {standard}"
        for comparative, meaning in _COMPARED.items()
        if meaning == reading
        for standard in ("normal", "the normal", "average", "the average", "expected", "usual")
    )
    for reading, words in _GENERIC_READINGS.items()
}
_REFERENCE = re.compile(r"\[record\s?:[^\[\]\n]{0,200}\]", re.IGNORECASE)
"""What a claim rests on, as `rewards.decision_trace` has it; it repeats the name and claims nothing."""
_BRACKETS = re.compile(r"\[[^\[\]\n]*\]")
_NEGATED = re.compile(r"\b(?:not|never|neither|nor|no|isn't|without)\s{1,2}(?:\w{1,12}\s{1,2}){0,1}$", re.IGNORECASE)
_ATTRIBUTE_GAP = re.compile(r"\s{1,2}(?:\w{1,12}\s{1,2}){0,1}")
_BEFORE_ATTRIBUTE = re.compile(r"(?:^|[,;:(]|\b(?:an?|the|and|with|but|or|its))\s{0,2}$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementClaims:
    """Claims about the measurements of the task's record (see `RecordReader` for the parameters).

    A line of findings that names no field is one, unsupported, where the record is all that findings could rest on.
    Where the task has a reference, or tools were called, it is one only if it gives a measurement.
    """

    synonyms: Mapping[str, Sequence[str]]
    max_rounding: float = 0.1
    require_unit: bool = False

    def expected(self, trajectory: Trajectory) -> dict[str, float] | None:
        return dict.fromkeys(map(_source, trajectory.task.record), 1.0) or None

    def find(self, trajectory: Trajectory) -> list[Claim]:
        record = trajectory.task.record
        only_record = not (trajectory.task.reference or trajectory.tool_calls)
        synonyms = tuple((field, tuple(self.synonyms.get(field, ()))) for field in record)
        return list(
            _record_claims(
                claim_text(trajectory),
                tuple(record.items()),
                synonyms,
                self.max_rounding,
                self.require_unit,
                only_record,
            )
        )


@functools.lru_cache(maxsize=64)  # several scorers ask the same of one trajectory
def _record_claims(
    trace: Trace,
    record: tuple[tuple[str, Measurement], ...],
    synonyms: tuple[tuple[str, tuple[str, ...]], ...],
    max_rounding: float,
    require_unit: bool,
    only_record: bool,
) -> tuple[Claim, ...]:
    reader = RecordReader(dict(record), synonyms=dict(synonyms), max_rounding=max_rounding, require_unit=require_unit)
    found = (
        claim
        for claim in reader.claims(trace)
        if only_record or claim.source != "record" or reader.gives_measurement(claim.span.text)
    )
    return tuple(bounded(found))


class RecordReader:
    """Finds and judges what a text says of one record.

    ``synonyms`` maps fields to further names. A number is right where the record's value, rounded to the digits that
    are printed, gives it (either neighbour of a tie), once units are converted; a range is where it holds the value, a
    bound (``above 15 um``) where it is met. What is printed so coarsely, or is so wide a range or so far a bound, that
    it strays from the value by more than ``max_rounding`` of it, is neither right nor wrong (``uncertain``), unless it
    is the very value.
    """

    def __init__(
        self,
        record: Mapping[str, Measurement],
        *,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        max_rounding: float = 0.1,
        require_unit: bool = False,
    ) -> None:
        self._record = record
        self._max_rounding = max_rounding
        self._require_unit = require_unit
        self._further_units = frozenset(measurement.unit for measurement in record.values() if measurement.unit)
        names = {name: field for field in record for name in (field, *(synonyms or {}).get(field, ()))}
        self._fields = {_words(name): field for name, field in names.items()}
        self._name = _phrases(tuple(self._fields))
        self._readings = _reading_words(record)
        self._reading = _phrases(tuple(self._readings))

    def claims(self, trace: Trace) -> Iterator[Claim]:
        """The claims up to the first answer, in order, each found when it is asked for.

        A line of findings that names no field is a claim as well.
        """
        text = trace.before_answer
        text = Span(text.start, text.end, _REFERENCE.sub(lambda match: " " * len(match[0]), text.text))
        for segment, is_finding in _segments(text):
            claims = list(self._claims_in(segment, is_finding=is_finding))
            if is_finding and not claims:
                words = " ".join(segment.text.lower().split())
                claims = [_claim("record", words, segment, "unsupported", "names no field of the record")]
            yield from claims

    def gives_measurement(self, text: str) -> bool:
        """Whether there is a value with a unit or a reading, numbers in brackets apart."""
        text = _BRACKETS.sub("", text)
        values = cited_values(text, further_units=self._further_units)
        return any(value.unit for value in values) or bool(values and self._reading.search(text))

    def _claims_in(self, segment: Span, *, is_finding: bool) -> Iterator[Claim]:
        text = segment.text
        mentions = list(itertools.islice(self._name.finditer(text), MAX_CLAIMS + 1))
        if not mentions:
            return
        if len(mentions) > MAX_CLAIMS:  # more than is read anyway
            text = text[: mentions[-1].end()]
        paired = _paired(text, mentions, _outside(mentions, cited_values(text, further_units=self._further_units)))
        readings = self._cited_readings(text, mentions)
        for (mention, quantity), cited in zip(paired, readings, strict=True):
            if not (quantity or cited or is_finding):
                continue  # a name in passing
            field = self._fields[_words(mention[0])]
            said = {reading for reading, _, _ in (cited if is_finding else cited[:1])}
            verdict, note = self._judge(self._record[field], quantity, said)
            starts = [mention.start(), *([quantity.start] if quantity else []), *(start for _, start, _ in cited[:1])]
            ends = [mention.end(), *([quantity.end] if quantity else []), *(end for _, _, end in cited[:1])]
            span = cut(text, min(starts), max(ends))
            span = Span(span.start + segment.start, span.end + segment.start, span.text)
            yield _claim(_source(field), field, span, verdict, note)

    def _cited_readings(self, text: str, mentions: Sequence[re.Match[str]]) -> list[list[tuple[str, int, int]]]:
        """For each name what the text calls its value (``not high`` as ``!high``), and where that stands.

        A reading belongs to the name before it, or to the one behind it where it is an attribute (``a high radius``).
        """
        starts = [mention.start() for mention in mentions]
        cited: list[list[tuple[str, int, int]]] = [[] for _ in mentions]
        for match in self._reading.finditer(text):
            owner = bisect.bisect_right(starts, match.start()) - 1
            if owner >= 0 and match.start() < mentions[owner].end():
                continue  # part of a name
            behind = owner + 1
            if behind < len(mentions) and _ATTRIBUTE_GAP.fullmatch(text, match.end(), starts[behind]):
                before = text[max(0, match.start() - 8) : match.start()]
                owner = behind if owner < 0 or _BEFORE_ATTRIBUTE.search(before) else owner
            if owner >= 0:
                negated = _NEGATED.search(text[max(0, match.start() - 24) : match.start()])
                reading = "!" * bool(negated) + self._readings[_words(match[0])]
                cited[owner].append((reading, match.start(), match.end()))
        return cited

    def _judge(self, of: Measurement, cited: CitedValue | None, readings: set[str]) -> tuple[Verdict, str]:
        truth = " ".join(filter(None, ("the record has", f"{of.value:.12g}", of.unit, of.reading)))
        expected = self._readings.get(_words(of.reading), "")
        contradicted = {r for r in readings if expected and (r == f"!{expected}" or (r[0] != "!" and r != expected))}
        if contradicted:
            return "refuted", f"wrong reading; {truth}"
        if cited is None:
            return "unsupported", "rests on no measurement"
        verdict, note = self._judge_value(of, cited)
        return verdict, f"{note}; {truth}" if note else truth

    def _judge_value(self, of: Measurement, cited: CitedValue) -> tuple[Verdict, str]:
        unit = own_unit(of.unit)
        low, high, rounding = cited.low, cited.high, cited.resolution / 2
        if not cited.unit and unit and self._require_unit:
            return "unsupported", "no unit"
        if cited.unit:
            in_unit = [convert(number, cited.unit, unit) for number in (low, high, rounding, 0.0)]
            if any(number is None for number in in_unit):
                return "refuted", "wrong unit"
            low, high, rounding, origin = (number for number in in_unit if number is not None)
            rounding = abs(rounding - origin)
        slack = 1e-9 * max(1.0, abs(of.value))
        if not low - rounding - slack <= of.value <= high + rounding + slack:
            return "refuted", "wrong value"
        astray = max((abs(end - of.value) for end in (low, high) if math.isfinite(end)), default=0.0)
        coarse = rounding if astray > slack else 0.0
        if max(coarse, astray - rounding) > self._max_rounding * abs(of.value):
            return "uncertain", "printed too coarsely to tell" if cited.is_exact else "says too little to tell"
        return "supported", ""


def _source(field: str) -> str:
    return f"record.{field}"


def _claim(source: str, subject: str, span: Span, verdict: Verdict, note: str) -> Claim:
    known = source != "record"
    return Claim(
        kind="measurement",
        subject=subject if known else f"?{subject}",
        span=span,
        verdict=verdict,
        source=source,
        note=note,
        covers=frozenset({source} if known else ()),
    )


def _segments(text: Span) -> Iterator[tuple[Span, bool]]:
    """Lines of findings, and the sentences of everything else."""
    position = 0
    for part in sections(text):
        if part.name in FINDING_SECTIONS:
            yield from ((sentence, False) for sentence in sentences(text, position, part.body.start - text.start))
            yield from ((line, True) for line in bullets(part.body))
            position = part.body.end - text.start
    yield from ((sentence, False) for sentence in sentences(text, position))


def _paired(
    text: str, mentions: Sequence[re.Match[str]], numbers: Sequence[CitedValue]
) -> list[tuple[re.Match[str], CitedValue | None]]:
    """Each name with its number: the first one behind it, or the last one in front where numbers lead (``a 17.9 um
    radius``), or the one in the same place of a list (``radius and texture are 17.9 and 10.4 respectively``)."""
    if not mentions:
        return []
    if "respectively" in text and len(numbers) == len(mentions):
        return list(zip(mentions, numbers, strict=True))
    starts = [mention.start() for mention in mentions]
    ends = [mention.end() for mention in mentions]
    leading = bool(numbers) and numbers[0].start < starts[0] and numbers[-1].start < ends[-1]
    lows, highs = ([0, *ends], starts) if leading else (ends, [*starts[1:], len(text)])
    positions = [number.start for number in numbers]
    paired: list[tuple[re.Match[str], CitedValue | None]] = []
    for mention, low, high in zip(mentions, lows, highs, strict=False):
        first, last = bisect.bisect_left(positions, low), bisect.bisect_left(positions, high) - 1
        number = numbers[last if leading else first] if first <= last else None
        gap = 0 if number is None else mention.start() - number.end if leading else number.start - mention.end()
        paired.append((mention, number if gap <= MAX_GAP_CHARS else None))
    return paired


def _outside(mentions: Sequence[re.Match[str]], numbers: Sequence[CitedValue]) -> list[CitedValue]:
    """The numbers that are not part of a name."""
    starts = [mention.start() for mention in mentions]
    owners = [bisect.bisect_right(starts, number.start) - 1 for number in numbers]
    return [
        number
        for number, owner in zip(numbers, owners, strict=True)
        if owner < 0 or number.start >= mentions[owner].end()
    ]


def _reading_words(record: Mapping[str, Measurement]) -> dict[str, str]:
    """Every spelling of a reading → the reading: the record's own words, and general ones for high, low and normal."""
    general = {word: reading for reading, words in _GENERIC_READINGS.items() for word in words}
    own = {_words(measurement.reading) for measurement in record.values() if measurement.reading}
    return {**general, **{word: general.get(word, word) for word in own}}


@functools.lru_cache(maxsize=1024)  # all trajectories of a task, and most tasks of a source, have the same
def _phrases(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the phrases, the longest first, whatever white space or hyphen stands between their words."""
    spelled = [
        r"[\s_-]{1,3}".join(map(re.escape, phrase.split()))
        for phrase in sorted(phrases, key=len, reverse=True)
        if phrase
    ]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(spelled) or '(?!)'})(?![\w-])", re.IGNORECASE)


def _words(text: str) -> str:
    return " ".join(re.split(r"[\s_-]+", text.strip().lower()))
