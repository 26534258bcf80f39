"""The rules that check a criterion without a judge. ``rubric.schema.json`` describes them.

Each takes time linear in the completion: phrases are literal, and regular expressions are RE2's, which has no
backtracking (and no look-around or back-references either).
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.answer_types.reading import normalised, unwrapped
from rewards.assertion import classify
from rewards.claims.claim import TooManyClaims, one_per_subject
from rewards.claims.measurements import MeasurementClaims
from rewards.rubrics.json_schema import json_fault
from rewards.scorer import InvalidInput, Trajectory
from rewards.trace import Span, Trace, section, sections, trace_of
from rl.regex import compile_regex

if TYPE_CHECKING:
    from entities.tree import EntityTree

MAX_RULE_DEPTH = 8
MAX_MENTIONS = 128
"""That one rule reads, of all its phrases together."""
_NOWHERE = Span(0, 0, "")


@dataclass(frozen=True, slots=True)
class Hit:
    """Whether a criterion holds, the piece of the completion that shows it (where there is one), and a word of why.

    ``share`` is that of a judge's votes which say that it holds; None where a rule decided.
    """

    holds: bool
    span: Span = _NOWHERE
    note: str = ""
    share: float | None = None


class RuleReader:
    """One completion as the rules see it; what several rules need is worked out once."""

    def __init__(self, trajectory: Trajectory, *, tree: EntityTree | None = None) -> None:
        self._trajectory = trajectory
        self._tree = tree
        self._trace: Trace = trace_of(trajectory)

    def check(self, rule: Mapping[str, Any]) -> Hit:
        """Whether a rule (one that the schema has passed) holds."""
        (name,) = rule.keys() - {"in"}
        return _RULES[name](self, rule[name], rule.get("in", "text"))

    def scope(self, place: str) -> Span:
        """The part of the completion of that name (see ``in`` in the schema); empty where there is none."""
        trace = self._trace
        match place:
            case "text":
                return Span(0, len(trace.text), trace.text)
            case "reasoning":
                return trace.reasoning
            case "outside":
                return trace.outside
            case "answer":
                finished = self._trajectory.finish_reason == "stop"
                return (trace.answers or (trace.open_answer if finished and trace.open_answer else _NOWHERE,))[-1]
            case _:
                return section(trace.before_answer, place) or _NOWHERE

    def _contains(self, phrases: str | Sequence[str], place: str) -> Hit:
        scope = self.scope(place)
        match = phrase_pattern(_several(phrases)).search(scope.text)
        return Hit(True, _part(scope, match)) if match else Hit(False)

    def _states(self, phrases: str | Sequence[str], place: str) -> Hit:
        scope = self.scope(place)
        for match in itertools.islice(phrase_pattern(_several(phrases)).finditer(scope.text), MAX_MENTIONS):
            if classify(scope.text, match.start(), match.end()).polarity == "affirmed":
                return Hit(True, _part(scope, match))
        return Hit(False)

    def _equals(self, texts: str | Sequence[str], place: str) -> Hit:
        scope = self.scope(place)
        wanted = {normalised(text) for text in _several(texts)}
        holds = bool(scope.text) and len(scope.text) <= 10_000 and normalised(unwrapped(scope.text)) in wanted
        return Hit(holds, scope if holds else _NOWHERE)

    def _regex(self, rule: str | Mapping[str, Any], place: str) -> Hit:
        scope = self.scope(place)
        bounds: Mapping[str, Any] = {"pattern": rule, "min": 1} if isinstance(rule, str) else rule
        most = bounds.get("max", bounds.get("min", 1) - 1) + 1  # further matches would change nothing
        matches = list(itertools.islice(compile_regex(bounds["pattern"]).finditer(scope.text), most))
        note = "" if isinstance(rule, str) else f"{len(matches)} matches"
        return Hit(_within(len(matches), bounds), _part(scope, matches[0]) if matches else _NOWHERE, note)

    def _json_schema(self, schema: Mapping[str, Any], place: str) -> Hit:
        scope = self.scope(place)
        fault = json_fault(scope.text, json.dumps(schema))
        return Hit(not fault, _NOWHERE if fault else scope, fault)

    def _names(self, rule: Mapping[str, Any], place: str) -> Hit:
        scope = self.scope(place)
        named: dict[str, Span] = {}
        for start, end, member in itertools.islice(self._mentions(rule["of"], scope.text), MAX_MENTIONS):
            if member not in named and classify(scope.text, start, end).polarity != "negated":
                named[member] = Span(scope.start + start, scope.start + end, scope.text[start:end])
        bounds = rule if rule.keys() & {"min", "max"} else {"min": 1}
        first = min(named.values(), key=lambda span: span.start, default=_NOWHERE)
        return Hit(_within(len(named), bounds), first, f"names {', '.join(named) or 'none'}")

    def _mentions(self, members: Sequence[str], text: str) -> Iterator[tuple[int, int, str]]:
        """Where a text names a member: its own words or, in the entity tree, a synonym or a kind of it; in order."""
        in_tree = _in_tree(members, text, self._tree) if self._tree else iter(())
        return heapq.merge(in_tree, *(_by_name(member, text) for member in members))

    def _length(self, bounds: Mapping[str, Any], place: str) -> Hit:
        text = self.scope(place).text
        counts = {
            "chars": len,
            "words": lambda text: len(text.split()),
            "tokens": lambda _: self._tokens(),
        }
        count = counts[bounds["unit"]](text)
        return Hit(_within(count, bounds), note=f"{count} {bounds['unit']}")

    def _tokens(self) -> int:
        if self._trajectory.text and not self._trajectory.length_tokens:
            raise InvalidInput("a rule counts tokens, and the completion came without a token count")
        return self._trajectory.length_tokens

    def _sections(self, names: Sequence[str], place: str) -> Hit:
        found = iter([part.name for part in sections(self._trace.before_answer)])
        missing = [name for name in names if " ".join(name.lower().split()) not in found]  # each search goes on behind
        return Hit(not missing, note=f"missing or out of order: {', '.join(missing)}" if missing else "")

    def _cites_evidence(self, bounds: Mapping[str, int], place: str) -> Hit:
        try:
            claims = MeasurementClaims(synonyms={}).find(self._trajectory)
        except TooManyClaims as error:
            return Hit(False, note=str(error))
        count = sum(claim.verdict == "supported" for claim in one_per_subject(claims))
        return Hit(_within(count, bounds), note=f"cites {count} measurements rightly")

    def _answer_blocks(self, bounds: Mapping[str, int], place: str) -> Hit:
        finished = self._trajectory.finish_reason == "stop"
        count = len(self._trace.answers) + bool(self._trace.open_answer and finished)
        return Hit(_within(count, bounds), note=f"{count} answer blocks")

    def _tool_calls(self, rule: Mapping[str, Any], place: str) -> Hit:
        names = [call.name for call in self._trajectory.tool_calls if call.ok]
        count = names.count(rule["name"]) if "name" in rule else len(names)
        return Hit(_within(count, rule), note=f"{count} calls answered")

    def _all(self, rules: Sequence[Mapping[str, Any]], place: str) -> Hit:
        hits = [self.check(rule) for rule in rules]
        failed = next((hit for hit in hits if not hit.holds), None)
        return failed or Hit(True, next((hit.span for hit in hits if hit.span.text), _NOWHERE))

    def _any(self, rules: Sequence[Mapping[str, Any]], place: str) -> Hit:
        return next((hit for hit in map(self.check, rules) if hit.holds), Hit(False))

    def _not(self, rule: Mapping[str, Any], place: str) -> Hit:
        hit = self.check(rule)
        return Hit(not hit.holds, hit.span, hit.note)


_RULES: Mapping[str, Callable[[RuleReader, Any, str], Hit]] = {
    "contains": RuleReader._contains,
    "states": RuleReader._states,
    "equals": RuleReader._equals,
    "regex": RuleReader._regex,
    "json_schema": RuleReader._json_schema,
    "names": RuleReader._names,
    "length": RuleReader._length,
    "sections": RuleReader._sections,
    "cites_evidence": RuleReader._cites_evidence,
    "answer_blocks": RuleReader._answer_blocks,
    "tool_calls": RuleReader._tool_calls,
    "all": RuleReader._all,
    "any": RuleReader._any,
    "not": RuleReader._not,
}
RULE_NAMES = tuple(_RULES)
PLACED_RULES = frozenset({"contains", "states", "equals", "regex", "json_schema", "names", "length"})
"""Rules that look in one place, which ``in`` names."""


@functools.lru_cache(maxsize=1024)
def phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the phrases at word boundaries, whatever their case and the white space between their words."""
    spelled = [r"\s{1,8}".join(map(re.escape, phrase.split())) for phrase in sorted(phrases, key=len, reverse=True)]
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelled)})(?!\w)", re.IGNORECASE)


def _in_tree(members: Sequence[str], text: str, tree: EntityTree) -> Iterator[tuple[int, int, str]]:
    member_of = {entity: member for member in members for entity in tree.named(member)}
    for mention in tree.find(text):
        for entity in (mention.entity_id, *tree.ancestors(mention.entity_id)):
            if entity in member_of:
                yield mention.start, mention.end, member_of[entity]


def _by_name(member: str, text: str) -> Iterator[tuple[int, int, str]]:
    for match in phrase_pattern((member,)).finditer(text):
        yield match.start(), match.end(), member


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _part(scope: Span, match: Any) -> Span:
    return Span(scope.start + match.start(), scope.start + match.end(), match.group(0))


def _within(count: int, bounds: Mapping[str, Any]) -> bool:
    return bool(bounds.get("min", 0) <= count <= bounds.get("max", count))
