"""Criteria read from a file (YAML, or HealthBench's JSON) or from a task, with the file and line of what is wrong."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rewards.places import line_of, read_yaml
from rewards.rubrics.rules import MAX_RULE_DEPTH, PLACED_RULES, RULE_NAMES
from rl.errors import ConfigError
from rl.json_schema import schema_fault
from rl.plugins import suggestion
from rl.regex import compile_regex

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

_TOP_KEYS = frozenset({"name", "description", "criteria"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """What is wanted or unwanted, what it is worth, and how it is checked: by a rule, or without one by a judge, who
    looks at the part of the completion that ``place`` names. ``source`` says where it stands."""

    criterion: str
    points: float
    tags: tuple[str, ...] = ()
    critical: bool = False
    check: Mapping[str, Any] | None = None
    place: Literal["text", "reasoning", "answer"] = "text"
    source: str = ""


def load_rubric(path: Path) -> tuple[Criterion, ...]:
    """The criteria of a file. Raises ConfigError with ``file:line``, what is wrong, what is allowed and a close name.

    A list of criteria, a mapping ``{name?, description?, criteria}``, or a HealthBench example with its ``rubrics``.
    """
    content, root = read_yaml(path, loader=_Loader)
    at: list[str | int] = []
    if isinstance(content, dict) and "rubrics" in content:
        content, at = content["rubrics"], ["rubrics"]
    elif isinstance(content, dict):
        for key in content.keys() - _TOP_KEYS:
            raise _error(path, root, [key], f"unknown key {key!r}; allowed: {_listed(_TOP_KEYS)}", key, _TOP_KEYS)
        content, at = content.get("criteria"), ["criteria"]
    if not isinstance(content, list) or not content:
        raise _error(path, root, at, "a rubric is a list of criteria, or has one under `criteria` or `rubrics`")
    for index, fault in _faults(content):
        raise _error(path, root, [*at, index, *fault.path], fault.message)
    return tuple(
        _criterion(each, source=f"{path.name}:{line_of(root, [*at, index])}") for index, each in enumerate(content)
    )


def parse_criteria(criteria: Sequence[Mapping[str, Any]], *, source: str) -> tuple[Criterion, ...]:
    """Criteria that a task brings. Raises ValueError that names the criterion and what is wrong with it."""
    for index, fault in _faults(criteria):
        place = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in fault.path)
        raise ValueError(f"{source}[{index}]{place}: {fault.message}")
    return tuple(_criterion(each, source=f"{source}[{index}]") for index, each in enumerate(criteria))


@dataclass(frozen=True, slots=True)
class _Fault:
    path: tuple[str | int, ...]
    message: str


def _criterion(fields: Mapping[str, Any], *, source: str) -> Criterion:
    return Criterion(
        criterion=fields["criterion"],
        points=float(fields["points"]),
        tags=tuple(fields.get("tags", ())),
        critical=fields.get("critical", False),
        check=fields.get("check"),
        place=fields.get("in", "text"),
        source=source,
    )


def _faults(criteria: Sequence[Any]) -> Iterator[tuple[int, _Fault]]:
    """What is wrong with each criterion: first its shape, then what a schema cannot say."""
    for index, criterion in enumerate(criteria):
        errors = sorted(_validator().iter_errors(criterion), key=lambda error: [str(part) for part in error.path])
        if errors:
            yield index, _shape_fault(errors[0])
        elif "check" in criterion and "in" in criterion:
            yield index, _Fault(("in",), "`in` stands within `check`, or beside the criterion where a judge decides")
        elif "check" in criterion:
            yield from ((index, fault) for fault in _rule_faults(criterion["check"], ("check",)))


def _shape_fault(error: ValidationError) -> _Fault:
    path, message = tuple(error.absolute_path), error.message
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        allowed = list(error.schema["properties"])  # type: ignore[index]  # a schema of ours, never a boolean
        unknown = next(key for key in error.instance if key not in allowed)
        message = f"unknown key {unknown!r}; allowed: {', '.join(allowed)}." + suggestion(str(unknown), allowed)
        return _Fault((*path, unknown), message)
    if error.validator == "enum":
        allowed = [str(value) for value in error.schema["enum"]]  # type: ignore[index]
        message = f"{error.instance!r} is not one of {', '.join(allowed)}." + suggestion(str(error.instance), allowed)
    if error.validator == "not":
        message = "points must not be 0: the criterion would change nothing"
    if error.validator == "anyOf":
        form = "an RE2 expression, or {pattern, min, max}" if path[-1:] == ("regex",) else "a text or a list of texts"
        message = f"must be {form}; got {error.instance!r}"
    return _Fault(path, f"{path[-1]}: {message}" if path and error.validator in ("type", "minLength") else message)


def _rule_faults(rule: Mapping[str, Any], path: tuple[str | int, ...]) -> Iterator[_Fault]:
    names = [name for name in rule if name != "in"]
    if len(names) != 1:
        got = ", ".join(names) or "none"
        yield _Fault(
            path, f"a check has exactly one of {', '.join(RULE_NAMES)}; got {got} (combine with all, any, not)"
        )
        return
    (name,) = names
    if "in" in rule and name not in PLACED_RULES:
        yield _Fault((*path, "in"), f"`in` goes with {_listed(PLACED_RULES)}, not with {name}")
    bounds = rule[name]
    if (
        isinstance(bounds, Mapping)
        and name != "json_schema"
        and bounds.get("min", 0) > bounds.get("max", bounds.get("min", 0))
    ):
        yield _Fault((*path, name), f"min is above max: {dict(bounds)}")
    if name == "regex":
        pattern = bounds["pattern"] if isinstance(bounds, Mapping) else bounds
        yield from _regex_faults(pattern, (*path, "regex"))
    if name == "json_schema" and (fault := schema_fault(bounds)):
        yield _Fault((*path, "json_schema"), fault)
    if len(path) > 2 * MAX_RULE_DEPTH:
        yield _Fault(path, f"checks are nested more than {MAX_RULE_DEPTH} deep")
    elif name == "not":
        yield from _rule_faults(rule["not"], (*path, "not"))
    elif name in ("all", "any"):
        for index, inner in enumerate(rule[name]):
            yield from _rule_faults(inner, (*path, name, index))


def _regex_faults(pattern: str, path: tuple[str | int, ...]) -> Iterator[_Fault]:
    import re2

    try:
        compile_regex(pattern)
    except re2.error as error:
        said = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        message = f"the regular expression {pattern!r} does not compile: {said} (RE2 syntax: no look-around, no \\1)"
        yield _Fault(path, message)


@functools.cache
def _validator() -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # .15 s: only where a rubric is read

    return Draft202012Validator(rubric_schema())


def rubric_schema() -> dict[str, Any]:
    """The JSON Schema of a criterion."""
    text = importlib.resources.files(__package__).joinpath("rubric.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


class _Loader(yaml.SafeLoader):
    """YAML 1.2's truth values: ``yes`` and ``no`` are text, as answers mostly are."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|false)$"), ["t", "f"])


def _error(
    path: Path, root: yaml.Node | None, at: Sequence[str | int], message: str, word: str = "", allowed: Any = ()
) -> ConfigError:
    return ConfigError(f"{path}:{line_of(root, at)}: {message}" + (suggestion(word, allowed) if word else ""))


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
