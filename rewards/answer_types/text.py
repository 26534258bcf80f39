"""A short free text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rewards.answer_types.meaning import MAX_WORDS, Meaning, meaning_of
from rewards.answer_types.reading import Check, key_texts, key_value, normalised
from rewards.scorer import InvalidInput
from rl.types import Task

if TYPE_CHECKING:
    from entities.tree import EntityTree

MATCHES = ("exact", "meaning", "overlap")
_LEAD = re.compile(
    r"^(?:(?:it|this|that|there|they|these|those)\s(?:is|are|shows?)|(?:this|image|scan)\s(?:is|shows?)|in|on|at)\s+"
)
_TWICE = re.compile(r"([^()]{1,200})\(([^()]{1,200})\)")


def check(given: str, task: Task, *, tree: EntityTree | None = None) -> Check:
    """Key: ``{"value": text, "synonyms"?: [text, …], "match"?: "exact" | "meaning" | "overlap"}``.

    ``exact``: equal to the value or a synonym once case, punctuation, articles and an introduction (``It is``) are
    dropped, or another name of the same entity of the ``tree``. ``meaning``: the same things said in any order and
    wording of the ``tree``. ``overlap``: the F1 of the shared words. For both of these polarity, side, numbers, doses
    and units must agree, or the value is 0: a text that shares nearly all words with the truth may say its opposite.
    """
    references = [key_value(task, str), *key_texts(task, "synonyms")]
    forms = [reference_form(text) for text in references]
    if not forms[0]:
        raise InvalidInput(f"answer.value of task {task.id!r} has no words: {task.answer.get('value')!r}")
    match = task.answer.get("match", "exact")
    if match not in MATCHES:
        raise InvalidInput(f"answer.match of task {task.id!r} must be one of {', '.join(MATCHES)}; got {match!r}")
    read = reference_form(given)
    if read in forms or _same_twice(given, forms) or (tree and read and any(tree.same(read, form) for form in forms)):
        return Check(1.0, f"read {read!r}, as expected", read=read)
    value, why = (0.0, "") if match == "exact" else _by_meaning(given, references, tree, match=match)
    return Check(value, f"read {read[:200]!r}, expected {forms[0]!r}{why}", read=read)


def _same_twice(given: str, forms: list[str]) -> bool:
    """Whether a text gives two of the expected forms, one of them in parentheses (``pulmonary embolism (PE)``)."""
    match = _TWICE.fullmatch(given.strip())
    return match is not None and all(reference_form(each) in forms for each in match.groups())


def reference_form(text: str) -> str:
    return _LEAD.sub("", normalised(text), count=1)


def _by_meaning(given: str, references: list[str], tree: EntityTree | None, *, match: str) -> tuple[float, str]:
    """The value of the reference that is nearest, and what keeps it from being right."""
    said = meaning_of(given, tree)
    if said is None:
        return 0.0, f": more than {MAX_WORDS} words are not compared"
    return max(_compared(said, meaning_of(reference, tree), match=match) for reference in references)


def _compared(said: Meaning, expected: Meaning | None, *, match: str) -> tuple[float, str]:
    if expected is None:
        return 0.0, f": a key of more than {MAX_WORDS} words cannot be compared"
    if contradiction := said.contradicts(expected):
        return 0.0, f": {contradiction}"
    if match == "overlap":
        return said.overlap(expected), ""
    return float(said.things() == expected.things()), ""
