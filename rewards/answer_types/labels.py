"""A set of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewards.answer_types.reading import Check, key_texts, normalised
from rewards.scorer import InvalidInput
from rl.types import Task

if TYPE_CHECKING:
    from entities.tree import EntityTree

_SEPARATOR = re.compile(r"[,;\n|•]|\s(?:and|as well as|&|\+|/)\s|(?:^|(?<=\s))(?:[-*]|\(?\d{1,3}[.)])\s+", re.MULTILINE)
_LEAD = re.compile(
    r"^(?:(?:the|my)\s)?[\"']?(?:labels?|findings?|diagnos[ie]s|abnormalit(?:y|ies)|answers?|conditions?|impression)"
    r"[\"']?\s?(?::|is\b|are\b|includes?\b)\s?"
    r"|^(?:(?:the|this)\s)?(?:image|scan|study|radiograph|x-ray|ct|mri)\s(?:shows?|demonstrates?|reveals?)\s"
    r"|^there\s(?:is|are)\s",
    re.IGNORECASE,
)
_NOTHING = frozenset(
    {"", "none", "no findings", "no finding", "nothing", "no labels", "n/a", "normal", "no abnormality", "无"}
)
_METRICS = ("f1", "precision", "recall", "exact")
MAX_LABELS = 256
_SIDE = re.compile(r"(?:\b[io]n )?\b(left|right|both|bilateral(?:ly)?)\b(?: side[ds]?\b)?")


def check(given: str, task: Task, *, tree: EntityTree | None = None) -> Check:
    """Key: ``{"value": [label, …], "synonyms"?: {label: [text, …]}, "options"?: [label, …], "metric"?: "f1"}``.

    The metric (``f1``, ``precision``, ``recall`` or ``exact``) of two sets, so that saying a label twice changes
    nothing, and what is denied (``no effusion``) is no label. Names of one entity of the ``tree`` are one label. A side
    (left, right, both) must agree where the key has one; where it has none, the answer may name one. An empty value is
    met by ``none``. Listing all options, where they are not all right, scores 0.
    """
    expected, canonical = _key(task)
    metric = task.answer.get("metric", "f1")
    if metric not in _METRICS:
        raise InvalidInput(f"answer.metric of task {task.id!r} must be one of {', '.join(_METRICS)}; got {metric!r}")
    labels = _read(given, _Canonical(canonical, tree))
    if len(labels) > MAX_LABELS:
        return Check(0.0, f"lists {len(labels)} labels", read="too many")
    read = ", ".join(sorted(labels)) or "none"
    options = {canonical.get(normalised(option), normalised(option)) for option in key_texts(task, "options")}
    if options and options <= labels and labels != expected:
        return Check(0.0, "lists every option", read=read)
    metrics = _set_metrics(labels, expected)
    missed, extra = sorted(expected - labels), sorted(labels - expected)
    reason = f"{len(labels & expected)} of {len(expected)} right, missed {missed or 'none'}, extra {extra or 'none'}"
    value = metrics[metric] if metric in metrics else float(labels == expected)
    return Check(value, reason, read=read, metrics=metrics)


def _set_metrics(labels: set[str], expected: set[str]) -> dict[str, float]:
    right = len(labels & expected)
    return {
        "precision": right / len(labels) if labels else float(not expected),
        "recall": right / len(expected) if expected else float(not labels),
        "f1": 2 * right / (len(labels) + len(expected)) if labels or expected else 1.0,
    }


class _Canonical:
    """From a normalised spelling to its label: by the key's own table, else by what both name, on the same side."""

    def __init__(self, table: Mapping[str, str], tree: EntityTree | None) -> None:
        self.table, self._tree = table, tree
        self._by_name: dict[tuple[str, str], str] = {}
        for spelling, label in table.items():
            bare, side = _sided(spelling)
            for name in self._names(spelling):
                self._by_name.setdefault((name, ""), label)
            for name in self._names(bare):
                self._by_name.setdefault((name, side), label)

    def label(self, spelling: str) -> str:
        if spelling in self.table:
            return self.table[spelling]
        bare, side = _sided(spelling)
        keys = [*((name, "") for name in self._names(spelling))]
        keys += [(name, each) for each in dict.fromkeys((side, "")) for name in self._names(bare)]
        return next((self._by_name[key] for key in keys if key in self._by_name), spelling)

    def _names(self, spelling: str) -> tuple[str, ...]:
        """The spelling itself, and the entities that it stands for."""
        return (spelling, *(self._tree.named(spelling) if self._tree else ()))

    def denies(self, spelling: str) -> bool:
        """Whether this says that something is not there, and is no label of its own."""
        return spelling.startswith(("no ", "not ", "without ")) and self.label(spelling) == spelling not in self.table


def _sided(spelling: str) -> tuple[str, str]:
    """A normalised spelling without its side, and the side: ``left``, ``right``, ``both`` or nothing."""
    sides = set(_SIDE.findall(spelling))
    bare = " ".join(_SIDE.sub(" ", spelling).split())
    return (bare, sides.pop() if len(sides) == 1 and sides <= {"left", "right"} else "both" if sides else "")


def _key(task: Task) -> tuple[set[str], dict[str, str]]:
    """The expected labels and a table from every normalised spelling to its label."""
    value = task.answer.get("value")
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(label, str) for label in value):
        raise InvalidInput(f"answer.value of task {task.id!r} must be a list of labels; got {value!r}")
    synonyms = task.answer.get("synonyms") or {}
    if not isinstance(synonyms, Mapping):
        raise InvalidInput(f"answer.synonyms of task {task.id!r} must map labels to lists of texts; got {synonyms!r}")
    canonical = {normalised(text): normalised(label) for label, texts in synonyms.items() for text in texts}
    canonical |= {normalised(label): normalised(label) for label in (*value, *key_texts(task, "options"))}
    return {normalised(label) for label in value}, canonical


def _read(given: str, canonical: _Canonical) -> set[str]:
    """Labels that a list names. A known one that holds a separator (``cough and fever``) is found before splitting."""
    text = _LEAD.sub("", given.strip().strip("[]{}()"), count=1)
    labels = set()
    for known in sorted(
        (spelling for spelling in canonical.table if " and " in f" {spelling} "), key=len, reverse=True
    ):
        if f" {known} " in f" {normalised(text)} ":
            labels.add(canonical.table[known])
            text = re.sub(r"[\W_]{1,4}".join(map(re.escape, known.split())), ";", text, flags=re.IGNORECASE)
    pieces = {normalised(piece.strip().strip("\"'`*[]")) for piece in _SEPARATOR.split(text)}
    if pieces <= _NOTHING:
        return labels | {canonical.table[piece] for piece in pieces if piece in canonical.table}
    return labels | {canonical.label(piece) for piece in pieces if piece and not canonical.denies(piece)}
