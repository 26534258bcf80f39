"""What the checkers of all answer types share: their result, and how they read text."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.scorer import InvalidInput
from rl.types import Task


@dataclass(frozen=True, slots=True)
class Check:
    """How right an answer is, in [0, 1], why, and what was read, in a form that is equal for equal answers.

    ``read`` is empty where nothing could be read; ``metrics`` are further numbers worth a curve.
    """

    value: float
    reason: str
    read: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


Checker = Callable[..., Check]
"""``check(given, task)``; those of labels and of texts also take a ``tree`` of entities."""

_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = re.compile(r"(?<!\d)[.,](?!\d)|(?<=\d)[.,](?!\d)|(?<=\w)[-–/](?=[^\W\d])|[^\w\s.,+%/-]|(?<!\w)-(?!\d)|_")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")
_BLANK = re.compile(r"\s*")
_BRACE = re.compile(r"[{}]")
_SAID = re.compile(
    r"\b(?:(?:the|my)\s)?(?:(?:final|correct|best|right|most likely)\s)?"
    r"(?:answer|option|choice|diagnosis)[*_]{0,2}\s?(?:is|:|=|would be|should be)(?![a-z])[:\s]?"
    r"|(?:答案|诊断)\s?(?:是|为|:|：)|故(?:应)?选(?:择)?",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^[#*_][#*_ ]{0,8}(?:(?:final|correct|best)\s)?answer[*_ ]{0,4}$", re.IGNORECASE | re.MULTILINE)
_DENIED = re.compile(r"\b(?:not|rather than|instead of)\s(?:(?:on|in|at)\s)?$", re.IGNORECASE)
_WRAPPERS = (("**", "**"), ("*", "*"), ("`", "`"), ("$", "$"), ('"', '"'), ("'", "'"), ("“", "”"), ("\\(", "\\)"))
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]*)\}")
_WIDTHS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0xA0: " ", 0x3001: ", ", 0x3002: ". "}
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF])
MAX_UNWRAPPINGS = 8
MAX_STATEMENTS = 40


def folded(text: str) -> str:
    """Words alone: compatibility forms and case folded, punctuation dropped, white space single.

    A point, comma or hyphen that belongs to a number, and a sign, stay.
    """
    return " ".join(_PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())


def normalised(text: str) -> str:
    """Folded words without the articles."""
    return " ".join(word for word in folded(text).split() if word not in _ARTICLES)


def unwrapped(text: str) -> str:
    """An answer without what models wrap around it: ``\\boxed{}``, emphasis, quotes, ``The answer is``, a full stop.

    Full-width letters and signs become plain ones, and invisible characters vanish.
    """
    text = text.translate(_WIDTHS | _INVISIBLE)
    for _ in range(MAX_UNWRAPPINGS):
        before = text
        text = _TEXT_COMMAND.sub(r"\1", last_boxed(text) or text).strip()
        said = _SAID.match(text) or _HEADING.match(text)
        text = text[said.end() :].strip() if said else text
        for left, right in _WRAPPERS:
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : -len(right)].strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        if text == before:
            break
    return text


def last_boxed(text: str) -> str | None:
    """The content of the last complete ``\\boxed{…}``, braces matched; None where there is none."""
    found = boxed(text)
    return text[slice(*found[-1])] if found else None


def boxed(text: str) -> list[tuple[int, int]]:
    """Where the contents of the first complete, outermost ``\\boxed{…}`` stand, at most ``MAX_STATEMENTS``."""
    opened = {match.end() - 1 for match in _BOXED.finditer(text)}
    found: list[tuple[int, int]] = []
    start, depth = None, 0
    for brace in _BRACE.finditer(text):
        if start is None:
            start, depth = (brace.end(), 1) if brace.start() in opened else (None, 0)
            continue
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            found.append((start, brace.start()))
            start = None
            if len(found) == MAX_STATEMENTS:
                break
    return found


def said(text: str) -> list[tuple[int, int]]:
    """Where what follows each ``the answer is`` stands, up to the end of its line or the next one that says it.

    A heading ``Answer`` counts where nothing else does, since a whole explanation may stand under it. At most
    ``MAX_STATEMENTS`` are looked at.
    """
    stated, headed = (list(itertools.islice(each.finditer(text), MAX_STATEMENTS)) for each in (_SAID, _HEADING))
    matches = stated or headed
    ends = [*(match.start() for match in matches[1:]), len(text)]
    found = []
    for match, end in zip(matches, ends, strict=False):
        start = _BLANK.match(text, match.end()).end()  # type: ignore[union-attr]  # it matches nothing, too
        line_end = text.find("\n", start, end)
        if text[start : (end if line_end < 0 else line_end)].strip():
            found.append((start, end if line_end < 0 else line_end))
    return found


def denied(text: str, start: int) -> bool:
    """Whether what begins at ``start`` is what the text rejects (``5 mm, not 7 mm``)."""
    return _DENIED.search(text[max(0, start - 20) : start]) is not None


def contains_words(text: str, words: str) -> bool:
    """Whether normalised ``words`` stand in normalised ``text``, at word boundaries."""
    return f" {words} " in f" {text} "


def key_value(task: Task, *kinds: type) -> Any:
    """The task's ``answer.value``. Raises InvalidInput where it is missing or of another kind."""
    value = task.answer.get("value")
    if value is None or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidInput(f"answer.value of task {task.id!r} must be {allowed}; got {value!r}")
    return value


def key_number(task: Task, name: str, default: float | None = None) -> float | None:
    """A number >= 0 from the task's answer key."""
    value = task.answer.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InvalidInput(f"answer.{name} of task {task.id!r} must be a number >= 0; got {value!r}")
    return float(value)


def key_texts(task: Task, name: str) -> list[str]:
    """A list of texts (or one text) from the task's answer key; empty where it is left out."""
    value = task.answer.get(name) or []
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable) or not all(isinstance(t, str) for t in texts):
        raise InvalidInput(f"answer.{name} of task {task.id!r} must be a list of texts; got {value!r}")
    return list(texts)
