"""Yes, no or maybe."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rewards.answer_types.reading import Check, contains_words, key_value, normalised
from rewards.scorer import InvalidInput
from rl.types import Task

_POLARITIES = ("yes", "no", "maybe")
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "yes": ("y", "yeah", "yep", "true", "affirmative", "是", "是的", "有"),
    "no": ("n", "nope", "false", "否", "不是", "没有", "无"),
    "maybe": (
        *("uncertain", "unclear", "possibly", "perhaps", "indeterminate", "equivocal", "undetermined", "inconclusive"),
        *("可能", "不确定"),
    ),
}
_OPPOSITES = {"yes": "no", "no": "yes"}
_WORD = re.compile(r"[^\W_]+")
_JOINS = frozenset({"and", "or", "but", "nor", *_POLARITIES})
_BE = frozenset({"is", "are", "was", "were", "s"})
_CERTAINTY = frozenset({"doubt", "question"})


def check(given: str, task: Task) -> Check:
    """Key: ``{"value": "yes" | "no" | "maybe" | true | false, "synonyms"?: {"yes": ["malignant"], …}}``.

    A polarity that stands alone counts (``Yes: malignant``, ``… so yes``), and a *no* that opens the text (``No mass``,
    ``There is no mass``); one inside it that belongs to a noun (``Yes, no effusion``) does not. Synonyms are looked for
    where no polarity is said. Several polarities at once (``yes and no``) are no answer.
    """
    expected = _expected(task)
    said = _said(given) or _said_by_synonym(given, _synonyms(task))
    if len(said) > 1:
        return Check(0.0, f"says {' and '.join(sorted(said))} at once", read="/".join(sorted(said)))
    if not said:
        return Check(0.0, "says neither yes nor no")
    (read,) = said
    return Check(float(read == expected), f"read {read!r}, expected {expected!r}", read=read)


def _expected(task: Task) -> str:
    value = key_value(task, str, bool)
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value.strip().casefold()
    if text not in _POLARITIES:
        raise InvalidInput(f"answer.value of task {task.id!r} must be yes, no or maybe; got {value!r}")
    return text


def _synonyms(task: Task) -> dict[str, tuple[str, ...]]:
    own = task.answer.get("synonyms") or {}
    if not isinstance(own, Mapping) or not set(own) <= set(_POLARITIES):
        raise InvalidInput(f"answer.synonyms of task {task.id!r} must map yes, no or maybe to words; got {own!r}")
    return {polarity: (*_SYNONYMS[polarity], *map(normalised, own.get(polarity, ()))) for polarity in _POLARITIES}


def _said(given: str) -> set[str]:
    """The polarities that a text says outright."""
    words = [(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(given)]
    said = set()
    for index, (word, _, end) in enumerate(words):
        if word not in _POLARITIES:
            continue
        follower, follower_start, _ = words[index + 1] if index + 1 < len(words) else ("", len(given), 0)
        opens = index == 0 or (index == 2 and words[0][0] == "there" and words[1][0] in _BE)
        belongs_to_noun = (
            word == "no"
            and (not opens or follower in _CERTAINTY)
            and follower not in ("", *_JOINS)
            and not given[end:follower_start].strip()
        )
        negated = index > 0 and words[index - 1][0] == "not"
        if not belongs_to_noun:
            said.add(_OPPOSITES.get(word, word) if negated else word)
    return said


def _said_by_synonym(given: str, synonyms: Mapping[str, tuple[str, ...]]) -> set[str]:
    text = normalised(given)
    said = set()
    for polarity, words in synonyms.items():
        for word in words:
            if contains_words(text, f"not {word}"):
                said.add(_OPPOSITES.get(polarity, polarity))
            elif contains_words(text, word):
                said.add(polarity)
    return said
