"""What can be said of a rule without a trace: whether it always or never holds, implies or excludes another.

All answers are on the safe side: ``depends``, or false, where it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rewards.answer_types.reading import normalised
from rewards.rows import row_trajectory
from rewards.rubrics.rules import RuleReader
from rl.types import Trajectory

Certainty = Literal["always", "never", "depends"]
Rule = Mapping[str, Any]
_COUNTED = ("length", "cites_evidence", "answer_blocks", "tool_calls")
_REGEX_PROBES = ("", "x", "0\n1", "<think>a b.</think>\n<answer>yes</answer>", "Ω – 5 %")
_OPPOSITE: Mapping[Certainty, Certainty] = {"always": "never", "never": "always", "depends": "depends"}


def certainty(rule: Rule) -> Certainty:
    """Whether a rule holds for every trace, for none, or depends on it."""
    name, value = _parts(rule)
    match name:
        case "not":
            return _OPPOSITE[certainty(value)]
        case "all":
            return _all([certainty(each) for each in value], clash=_any_pair(value, excludes))
        case "any":
            opposites = [{"not": each} for each in value]
            parts = [_OPPOSITE[certainty(each)] for each in value]
            return _OPPOSITE[_all(parts, clash=_any_pair(opposites, excludes))]
        case "equals":
            return "depends" if any(_can_stand_alone(text) for text in _texts(value)) else "never"
        case "sections":
            found = all(_holds({"sections": [heading]}, f"{heading}:\nx") for heading in value)
            return "depends" if found else "never"
        case "regex" if isinstance(
            value, str
        ):  # not one whose matches are counted: what the probes lack others may have
            bare = {"regex": value}
            return "always" if all(_holds(bare, probe) for probe in _REGEX_PROBES) else "depends"
        case _ if name in _COUNTED:
            low, high = _bounds(value)
            return "always" if (low, high) == (0, math.inf) else "depends"
        case _:
            return "depends"


def implies(rule: Rule, other: Rule) -> bool:
    """Whether every trace that meets the first rule meets the second."""
    if rule == other:
        return True
    (name, value), (other_name, other_value) = _parts(rule), _parts(other)
    if name == "all" and any(implies(each, other) for each in value):
        return True
    if other_name == "any" and any(implies(rule, each) for each in other_value):
        return True
    if name == other_name == "not":
        return implies(other_value, value)
    if not _same_place(rule, other):
        return False
    if name == other_name and name in _COUNTED and _unit(value) == _unit(other_value):
        (low, high), (other_low, other_high) = _bounds(value), _bounds(other_value)
        return other_low <= low and high <= other_high
    phrased = (name, other_name) in (("contains", "contains"), ("states", "states"), ("states", "contains"))
    return phrased and _words(value) <= _words(other_value)


def excludes(rule: Rule, other: Rule) -> bool:
    """Whether no trace can meet both rules."""
    (name, value), (other_name, other_value) = _parts(rule), _parts(other)
    if name == "not" and implies(other, value):
        return True
    if other_name == "not" and implies(rule, other_value):
        return True
    if name == "all" and any(excludes(each, other) for each in value):
        return True
    if other_name == "all" and any(excludes(rule, each) for each in other_value):
        return True
    if not _same_place(rule, other) or name != other_name:
        return False
    if name == "equals":
        return _words(value).isdisjoint(_words(other_value))
    if name in _COUNTED and _unit(value) == _unit(other_value):
        (low, high), (other_low, other_high) = _bounds(value), _bounds(other_value)
        return high < other_low or other_high < low
    return False


def holds_for_nothing(rule: Rule) -> bool:
    """Whether the empty completion meets a rule."""
    return _holds(rule, "")


def _parts(rule: Rule) -> tuple[str, Any]:
    (name,) = rule.keys() - {"in"}
    return name, rule[name]


def _all(parts: Sequence[Certainty], *, clash: bool) -> Certainty:
    if clash or "never" in parts:
        return "never"
    return "always" if set(parts) == {"always"} else "depends"


def _any_pair(rules: Sequence[Rule], holds: Callable[[Rule, Rule], bool]) -> bool:
    return any(holds(rule, other) for index, rule in enumerate(rules) for other in rules[:index])


def _can_stand_alone(text: str) -> bool:
    """Whether an answer of this text is read as it: ``The answer is B`` never is, because it is unwrapped to ``B``."""
    return _holds({"equals": text, "in": "answer"}, f"<answer>{text}</answer>")


def _holds(rule: Rule, text: str) -> bool:
    return RuleReader(_trajectory(text)).check(rule).holds


def _trajectory(text: str) -> Trajectory:
    return row_trajectory({"id": "probe", "question": "", "completion": text, "answer": {"type": ""}})


def _same_place(rule: Rule, other: Rule) -> bool:
    return bool(rule.get("in", "text") == other.get("in", "text"))


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _words(value: Any) -> set[str]:
    return {normalised(text) for text in _texts(value)}


def _bounds(value: Mapping[str, Any]) -> tuple[float, float]:
    return value.get("min", 0), value.get("max", math.inf)


def _unit(value: Mapping[str, Any]) -> Any:
    """What is counted."""
    return value.get("unit"), value.get("name")
