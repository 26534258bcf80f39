"""What exists: scorers, answer types and rules with their parameters, read off the code itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.answer import CHECKERS
from rewards.config import BUILT_IN, ENTRY_POINTS, USE_KEYS, resolve_scorer
from rewards.hallucination import HallucinationScorer
from rewards.rubrics.file import rubric_schema
from rewards.rubrics.rules import RULE_NAMES
from rewards.tools.terminal import Paint, wrapped
from rl.errors import ConfigError

_MODULE = re.compile(r"\b(?:[a-z_]+\.)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that a config or a task may name, what it is, and what goes with it."""

    name: str
    summary: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """All things of one kind, and where their names go."""

    kind: str
    title: str
    entries: tuple[Entry, ...]


def catalog() -> tuple[Chapter, ...]:
    """All chapters. A scorer of an entry point that cannot be imported is listed with the reason."""
    keys = ", ".join(sorted(USE_KEYS - {"use"}))
    return (
        Chapter(
            kind="scorers", title=f"Scorers, `use:` in rewards.scorers; each also takes {keys}", entries=_scorers()
        ),
        Chapter(kind="answers", title="Answer types, `answer.type` of a task", entries=_answer_types()),
        Chapter(kind="rules", title="Rules, `check:` of a criterion; `in:` names the place", entries=_rules()),
        Chapter(kind="claims", title="Claims, `claims:` of the scorer hallucination", entries=_claims()),
    )


def listing(chapters: tuple[Chapter, ...], *, paint: Paint) -> Iterator[str]:
    """Lines of at most 80 columns."""
    for number, chapter in enumerate(chapters):
        yield from [""] * bool(number)
        yield from (paint(line, "bold") for line in wrapped(chapter.title, hanging="  "))
        width = max(len(entry.name) for entry in chapter.entries) + 4
        for entry in chapter.entries:
            yield from wrapped(entry.summary, indent=f"  {entry.name}".ljust(width), hanging=" " * width)
            for detail in entry.details:
                yield from (paint(line, "dim") for line in wrapped(detail, indent=" " * (width + 2)))


def _scorers() -> tuple[Entry, ...]:
    points = {point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    return tuple(_scorer(name) for name in [*BUILT_IN, *sorted(points - BUILT_IN.keys())])


def _scorer(name: str) -> Entry:
    try:
        cls = resolve_scorer(name)
    except ConfigError as error:
        return Entry(name=name, summary=f"cannot be used: {error}")
    kinds = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    parameters = [_parameter(field, kinds[field.name]) for field in fields]
    return Entry(name=name, summary=_summary(cls), details=(*parameters, f"turns = {cls.turns!r}"))


def _parameter(field: dataclasses.Field[Any], kind: Any) -> str:
    named = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    named = f"{field.name}: {_MODULE.sub('', named)}"
    if field.default is not dataclasses.MISSING:
        return f"{named} = {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f"{named} = {field.default_factory()!r}"
    return f"{named} (required)"


def _answer_types() -> tuple[Entry, ...]:
    return tuple(
        Entry(name=name, summary=_summary(inspect.getmodule(check)), details=(_summary(check),))
        for name, check in CHECKERS.items()
    )


def _rules() -> tuple[Entry, ...]:
    schema = rubric_schema()
    rules = schema["$defs"]["rule"]["properties"]
    return tuple(
        Entry(name=name, summary=_described(rules[name], schema), details=(f"{name}: {_shape(rules[name], schema)}",))
        for name in RULE_NAMES
    )


def _claims() -> tuple[Entry, ...]:
    return tuple(Entry(name=name, summary=_summary(type(kind))) for name, kind in HallucinationScorer().kinds().items())


def _described(rule: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    return str(rule.get("description") or _resolved(rule, schema).get("description", ""))


def _shape(rule: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a rule takes, as one writes it: ``{min?: integer, max?: integer}``."""
    if rule.get("$ref") == "#/$defs/rule":
        return "{a rule}"
    rule = _resolved(rule, schema)
    if "enum" in rule:
        return " | ".join(rule["enum"])
    if "anyOf" in rule:
        return " or ".join(_shape(option, schema) for option in rule["anyOf"])
    if rule["type"] == "array":
        return f"[{_shape(rule['items'], schema)}, …]"
    if rule["type"] == "object" and "properties" in rule:
        required = rule.get("required", ())
        fields = (
            f"{name}{'' if name in required else '?'}: {_shape(inner, schema)}"
            for name, inner in rule["properties"].items()
        )
        return f"{{{', '.join(fields)}}}"
    return {"string": "text"}.get(rule["type"], rule["type"])


def _resolved(rule: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    resolved: Mapping[str, Any] = schema["$defs"][rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
    return resolved


def _summary(documented: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
