"""What a trace says that a tool returned, held against what the tool returned."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.claims.cited_value import CitedValue, cited_values
from rewards.claims.claim import Claim, bounded, claim_text, sentences
from rewards.claims.quotes import tokens
from rewards.quantity import convert
from rewards.scorer import Trajectory
from rewards.trace import Span
from rl.types import ToolCall, Verdict

MAX_RESULT_CHARS = 20_000

_REPORTS = re.compile(
    r"\b(?:return(?:s|ed)?|report(?:s|ed)?|show(?:s|ed|n)?|g[ai]ves?|g[ai]ven?|f[io]u?nds?|sa(?:ys|id)|measure[sd]|reads?|"
    r"output|result|according to|look-?up|yield(?:s|ed)?|confirm(?:s|ed)?|indicat(?:es|ed))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolClaims:
    """Numbers in sentences that name a tool which was called and say what it returned (``measure reports 12 mm``).

    Each must stand in a result of that tool, rounding and units apart; a call that failed supports nothing. Words in
    quotation marks are quotes (see `rewards.claims.quotes`).
    """

    def expected(self, trajectory: Trajectory) -> dict[str, float] | None:
        return {} if trajectory.tool_calls else None

    def find(self, trajectory: Trajectory) -> list[Claim]:
        results = _Results(trajectory.tool_calls)
        text = claim_text(trajectory).before_answer
        return bounded(claim for sentence in sentences(text) for claim in results.claims_in(sentence))


@dataclass(frozen=True, slots=True)
class _Returned:
    """The numbers that one call returned; none where it failed."""

    index: int
    call: ToolCall
    values: list[CitedValue]


class _Results:
    """The numbers that each tool returned, and where a text names the tool."""

    def __init__(self, calls: tuple[ToolCall, ...]) -> None:
        self._calls: dict[str, list[_Returned]] = {}
        for index, call in enumerate(calls):
            values = cited_values(call.result[:MAX_RESULT_CHARS]) if call.ok else []
            self._calls.setdefault(tokens(call.name), []).append(_Returned(index, call, values))
        names = sorted((r"[\s_./-]{0,2}".join(map(re.escape, name.split())) for name in self._calls), reverse=True)
        self._name = re.compile(rf"(?<![^\W_])(?:{'|'.join(filter(None, names)) or '(?!)'})(?![^\W_])", re.IGNORECASE)

    def claims_in(self, sentence: Span) -> Iterator[Claim]:
        named = list(self._name.finditer(sentence.text))
        if not named or not _REPORTS.search(sentence.text):
            return
        names = dict.fromkeys(tokens(match[0]) for match in named)
        calls = [call for name in names for call in self._calls.get(name, ())]
        text = self._name.sub(lambda match: "_" * len(match[0]), sentence.text)  # a name may hold a number
        for value in cited_values(text) if calls else ():
            yield _claim(sentence, value, calls)


def _claim(sentence: Span, value: CitedValue, calls: list[_Returned]) -> Claim:
    agreeing = next((each for each in calls if any(_agree(value, number) for number in each.values)), None)
    resting_on = agreeing or calls[-1]
    verdict: Verdict = "supported" if agreeing else "refuted"
    note = "returned it" if agreeing else "returned no such number" if any(each.call.ok for each in calls) else "failed"
    said = sentence.text[value.start : value.end]
    return Claim(
        kind="tool",
        subject=f"{resting_on.call.name} {said}",
        span=Span(sentence.start + value.start, sentence.start + value.end, said),
        verdict=verdict,
        source=f"tool_calls.{resting_on.index}",
        note=f"{resting_on.call.name} {note}",
    )


def _agree(said: CitedValue, returned: CitedValue) -> bool:
    """Whether a value that was said is one that was returned, rounded to the digits that it is said in."""
    for stated, known in ((said.low, returned.low), (said.high, returned.high)):
        converted = convert(known, returned.unit, said.unit) if said.unit and returned.unit else known
        if converted is None:
            return False
        slack = said.resolution / 2 + 1e-9 * (abs(stated) if math.isfinite(stated) else 0.0)
        if stated != converted and not abs(stated - converted) <= slack:
            return False
    return True
