"""Formulas that must be reasoned about rather than computed: sympy compares them, math-verify reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from rewards.answer import AnswerScorer
from rewards.answer_types.reading import Check, key_value
from rewards.scorer import Abstain, InvalidInput
from rl.types import Task

_OPENERS = ("$", "\\(", "\\[", "\\boxed")


@dataclass(frozen=True, kw_only=True)
class SymbolicScorer(AnswerScorer):
    """1 where sympy finds the answer and a ``formula`` key equal, else 0; abstains from other types of answer.

    For LaTeX that the scorer `answer` does not read: integrals, sums, limits, matrices, unions of sets. Nothing is
    evaluated as Python, but neither reading nor simplifying is bounded in itself: both happen in a process of its own,
    and what runs into the scorer's deadline (``timeout_s``) leaves its trajectory unscored.
    """

    isolated: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = (*AnswerScorer.libraries, "latex2sympy2_extended", "math-verify", "sympy")
    depends_on: ClassVar[tuple[str, ...]] = (*AnswerScorer.depends_on, "rewards.answer")

    def checker(self, task: Task) -> Callable[[str], Check]:
        if task.answer.get("type") != "formula":
            raise Abstain("the answer is not a formula")
        return partial(_check, task=task)

    def prepare(self) -> None:
        import math_verify  # noqa: F401 - takes seconds, which are no scorer's


def _check(given: str, *, task: Task) -> Check:
    from math_verify import verify

    key = str(key_value(task, str, int, float))
    expected = _parsed(key)
    if not expected:
        raise InvalidInput(f"answer.value of task {task.id!r} must be a formula in LaTeX; got {key!r}")
    found = _parsed(given) if given else []
    if not found:
        return Check(0.0, f"no formula that could be read: {given[:200]!r}")
    right = verify(expected, found, timeout_seconds=None)
    return Check(float(right), f"read {found[0]!s:.200}, expected {expected[0]!s:.200}", read=f"{found[0]!s:.200}")


def _parsed(text: str) -> list[Any]:
    """sympy's form of the last formula in a text, by the LaTeX grammar alone: the plain one ends in ``eval``."""
    from math_verify import LatexExtractionConfig, parse

    in_dollars = text if any(opener in text for opener in _OPENERS) else f"${text}$"
    return list(parse(in_dollars, [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None))
