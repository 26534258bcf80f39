"""Quotes: words that a trace puts between quotation marks, looked for in the texts that it could have them from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.case_reference import case_reference
from rewards.claims.claim import Claim, around, bounded, claim_text, sentences
from rewards.scorer import Trajectory
from rewards.trace import Span
from rewards.turns import asked
from rl.types import Verdict

MAX_QUOTE_CHARS = 2_000

_QUOTED = re.compile(
    rf'(?<!\w)"(?P<plain>[^"\n]{{1,{MAX_QUOTE_CHARS}}})"(?!\w)|“(?P<curly>[^“”]{{1,{MAX_QUOTE_CHARS}}})”'
    rf"|«(?P<angled>[^«»]{{1,{MAX_QUOTE_CHARS}}})»"
)
_ELLIPSIS = re.compile(r"\[\s?(?:…|\.\.\.)\s?\]|…|\.\.\.")
_TOKEN = re.compile(r"[-+<>≤≥=\u2212]{0,2}\d+(?:[.,]\d+)*\s?%?|[^\W\d_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteClaims:
    """Quotes of at least ``min_words`` words; shorter ones are taken for emphasis.

    A quote is supported by the source text or tool result in which its words stand in this order (case, punctuation and
    white space apart, parts divided by an ellipsis one after the other), and refuted where none has it, or where its
    sentence names a source that does not. The words of the user are nobody's evidence.
    """

    min_words: int = 4

    def expected(self, trajectory: Trajectory) -> dict[str, float] | None:
        return {} if case_reference(trajectory.task).sources or trajectory.tool_calls else None

    def find(self, trajectory: Trajectory) -> list[Claim]:
        texts = QuotableTexts(trajectory)
        claims = []
        for quote, near in bounded(_quotes(claim_text(trajectory).before_answer)):
            if len(tokens(quote.text).split()) >= self.min_words and not texts.in_question(quote.text):
                claims.append(_claim(texts, quote, near))
        return claims


class QuotableTexts:
    """Everything that a trace may quote, by name: ``reference.sources.NAME``, and ``tool_calls.NUMBER`` if answered."""

    def __init__(self, trajectory: Trajectory) -> None:
        sources = case_reference(trajectory.task).sources
        self._names = {f"reference.sources.{name}": tokens(name) for name in sources}
        self._texts = {f"reference.sources.{name}": tokens(text) for name, text in sources.items()}
        # What refuses a call may repeat the policy's own words.
        answered = ((index, call.result) for index, call in enumerate(trajectory.tool_calls) if call.ok)
        self._texts |= {f"tool_calls.{index}": tokens(result) for index, result in answered}
        self._question = tokens(asked(trajectory))

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def holding(self, quote: str) -> list[str]:
        """The names of the texts in which the quote stands."""
        parts = [part for piece in _ELLIPSIS.split(quote) if (part := tokens(piece))]
        return [name for name, text in self._texts.items() if _stand_in(text, parts)]

    def named_in(self, near: str) -> list[str]:
        """The source texts that the words near a quote name."""
        words = f" {tokens(near)} "
        return [place for place, name in self._names.items() if name and f" {name} " in words]

    def in_question(self, quote: str) -> bool:
        return f" {tokens(quote)} " in f" {self._question} "


def tokens(text: str) -> str:
    """Words and numbers in lower case, a sign or comparison kept with its number, single spaces between them."""
    return " ".join(match[0].lower().replace("\u2212", "-").replace(" ", "") for match in _TOKEN.finditer(text))


def _stand_in(text: str, parts: list[str]) -> bool:
    text, position = f" {text} ", 0
    for part in parts:
        position = text.find(f" {part} ", position)
        if position < 0:
            return False
        position += len(part) + 1
    return bool(parts)


def _quotes(text: Span) -> Iterator[tuple[Span, str]]:
    """Each quote with the words near it in its sentence or line; what is quoted divides no sentence."""
    blanked = _QUOTED.sub(lambda match: "_" * len(match[0]), text.text)
    every = sentences(Span(text.start, text.end, blanked))
    at = 0
    for match in _QUOTED.finditer(text.text):
        while at + 1 < len(every) and every[at + 1].start <= match.start() + text.start:
            at += 1
        inner = match.lastgroup or 0
        start, end = match.start(inner) + text.start, match.end(inner) + text.start
        yield Span(start, end, match[inner]), around(every[at].text, start - every[at].start, end - every[at].start)


def _claim(texts: QuotableTexts, quote: Span, near: str) -> Claim:
    holding, named = texts.holding(quote.text), texts.named_in(near)
    verdict: Verdict = "supported" if holding else "refuted"
    note = "stands there" if holding else f"stands in none of {len(list(texts))} texts"
    source = holding[0] if holding else named[0] if named else "reference.sources"
    if holding and named and not set(holding) & set(named):
        verdict, source, note = "refuted", named[0], f"does not stand there but in {holding[0]}"
    elif named:
        source = next((name for name in holding if name in named), source)
    return Claim(kind="quote", subject=tokens(quote.text), span=quote, verdict=verdict, source=source, note=note)
