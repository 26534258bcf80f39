"""One of several options, named by its letter, its text, or both."""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections.abc import Mapping

from rewards.answer_types.reading import Check, folded, key_value
from rewards.scorer import InvalidInput
from rl.types import Task

_LETTER = re.compile(
    r"(?P<said>\b(?:option|answer|choice)\s{1,2})?(?P<open>[(\[]\s?)?(?<![A-Za-z0-9'’])(?P<letter>[A-Za-z])(?![A-Za-z0-9'’])"
    r"(?P<close>\s?[)\]]|[.:])?",
    re.IGNORECASE,
)
_LIST = r"\)?(?:\s?[,/]\s?(?:(?:and|or|nor)\s)?|\s(?:and|or|nor)\s)\(?"  # between the letters of a list
_REJECTED = re.compile(
    r"\b(?:no|not|without|rather than|instead of|rules? out|ruled out|excludes?|unlike|except|anything but)"
    r"\s{1,2}\W{0,2}"
    r"(?:(?:choose|pick|select|recommend|go\swith|be|likely|have|need|require|give|use|show|suggest|due\sto|consistent\swith)"
    r"\s{1,2}\W{0,2})?"
    r"(?:(?:an?|the|option|answer|choice)\s{1,2}\W{0,2}){0,2}"
    rf"(?:[A-Z]\b{_LIST}){{0,9}}$",
    re.IGNORECASE,
)
_REJECTED_AFTER = re.compile(
    rf"(?:{_LIST}[A-Z]\b){{0,9}}\)?\s"
    r"(?:is|are|was|were|seems?|looks?)\s(?:not|never|wrong|incorrect|false|(?:very\s|highly\s)?unlikely|less\slikely|"
    r"excluded|ruled\sout|out|implausible)\b",
    re.IGNORECASE,
)
_BEFORE, _AFTER = 40, 60  # characters in which a rejection must stand
_JOINS = frozenset({"and", "or"})


def check(given: str, task: Task) -> Check:
    """Key: ``{"value": letter or option text, "options": {letter: text} | [text, …]}``.

    Letter and text must agree where both are given; whatever names several options is no answer, unless all but one
    are rejected in so many words (``B, not A``; ``B: A and C are wrong``).
    """
    given = unicodedata.normalize("NFKC", given)
    options = _options(task)
    expected = _expected(task, options)
    named = _named(given, options)
    if len(named) > 1:
        return Check(0.0, f"names several options: {', '.join(sorted(named))}", read="/".join(sorted(named)))
    if not named:
        return Check(0.0, f"names none of the options {', '.join(options)}")
    (read,) = named
    return Check(float(read == expected), f"read {read}, expected {expected}", read=read)


def _options(task: Task) -> dict[str, str]:
    """Letter → text; a key without options has letters alone."""
    options = task.answer.get("options") or {}
    if isinstance(options, list | tuple):
        options = dict(zip(string.ascii_uppercase, options, strict=False))
    if not isinstance(options, Mapping) or not all(isinstance(text, str) for text in options.values()):
        raise InvalidInput(f"answer.options of task {task.id!r} must be {{letter: text}} or a list; got {options!r}")
    letters = {str(letter).strip().upper(): text for letter, text in options.items()}
    if any(len(letter) != 1 for letter in letters):
        raise InvalidInput(f"answer.options of task {task.id!r} must be named by single letters; got {list(letters)}")
    return letters or dict.fromkeys(string.ascii_uppercase, "")


def _expected(task: Task, options: Mapping[str, str]) -> str:
    value = key_value(task, str).strip()
    if value.upper() in options:
        return value.upper()
    same = [letter for letter, text in options.items() if text and folded(text) == folded(value)]
    if len(same) != 1:
        raise InvalidInput(f"answer.value of task {task.id!r} is none of its options {dict(options)}; got {value!r}")
    return same[0]


def _named(given: str, options: Mapping[str, str]) -> set[str]:
    """The letters of the options that a text names."""
    text = folded(given)
    exact = {letter for letter, option in options.items() if option and folded(option) == text}
    if exact:
        return exact if len(exact) == 1 else set()
    by_text, rest = _named_by_text(given, options)
    return by_text | _named_by_letter(rest, options, lone_word=not by_text and len(text.split()) == 1)


def _named_by_text(given: str, options: Mapping[str, str]) -> tuple[set[str], str]:
    """Options whose text stands in the given one, of overlapping ones the longest, and what is left without them.

    A text that is rejected there (``not pneumonia``) is taken out and names nothing.
    """
    named = set()
    for letter, option in sorted(options.items(), key=lambda item: -len(item[1])):
        phrase = _phrase(unicodedata.normalize("NFKC", option))
        if not phrase:
            continue
        for match in re.finditer(rf"(?<!\w)(?<!\d[.,]){phrase}(?!\w)(?![.,]\d)", given, re.IGNORECASE):
            if not _rejected(given, match.start(), match.end()):
                named.add(letter)
            given = f"{given[: match.start()]}{';' * len(match[0])}{given[match.end() :]}"
    return named, given


def _phrase(option: str) -> str:
    """A pattern of the option's words, between which any punctuation may stand, and none at a number (``15mg``)."""
    words = re.findall(r"\d+|[^\W\d_]+", option)
    phrase = "".join(words[:1])
    for word, following in itertools.pairwise(words):
        fewest = 0 if word.isdigit() != following.isdigit() else 1
        phrase += rf"[\W_]{{{fewest},4}}{following}"
    return phrase


def _named_by_letter(given: str, options: Mapping[str, str], *, lone_word: bool) -> set[str]:
    """Letters that are marked as an option (``(B)``, ``B.``, ``option B``), that stand alone, or that form a list."""
    words = re.findall(r"[^\W\d_]+", given)
    if len(words) > 1 and all(len(word) == 1 or word.casefold() in _JOINS for word in words):
        return {word.upper() for word in words} & set(options)
    named = set()
    for match in _LETTER.finditer(given):
        letter = match["letter"].upper()
        upper = match["letter"].isupper()
        marked = match["said"] or (match["open"] and match["close"]) or (upper and match["close"])
        alone = upper and (letter not in "AI" or _ends_clause(given, match.end()))
        counts = marked or alone or lone_word
        if counts and letter in options and not _rejected(given, match.start(), match.end()):
            named.add(letter)
    return named


def _rejected(given: str, start: int, end: int) -> bool:
    before = _REJECTED.search(given[max(0, start - _BEFORE) : start])
    return (before or _REJECTED_AFTER.match(given[end : end + _AFTER])) is not None


def _ends_clause(given: str, position: int) -> bool:
    """Whether a letter is followed by nothing, punctuation or a joining word: an article has its noun there."""
    rest = given[position:].lstrip(" ")
    return not rest[:1].isalnum() or re.match(r"(?:and|or|because|since|as|is)\b", rest, re.IGNORECASE) is not None
