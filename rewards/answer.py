"""The verifiable answer: what the completion answers, compared with the key that the task holds.

No model, and nothing that a model wrote is evaluated: every reading is a bounded parse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rewards.answer_types import box, choice, date, formula, labels, number, text, yes_no
from rewards.answer_types.reading import Check, Checker, boxed, said, unwrapped
from rewards.scorer import Evidence, InvalidInput, Score, Scorer, Trajectory, Turns
from rewards.trace import MAX_TEXT_CHARS, Span, Trace, parse_trace, trace_of
from rl.errors import ConfigError
from rl.plugins import suggestion
from rl.types import Task, Verdict

if TYPE_CHECKING:
    from entities.tree import EntityTree

CHECKERS: Mapping[str, Checker] = {
    "yes_no": yes_no.check,
    "choice": choice.check,
    "number": number.check,
    "text": text.check,
    "labels": labels.check,
    "box": box.check,
    "date": date.check,
    "formula": formula.check,
}
MAX_ANSWER_CHARS = 10_000
MAX_ANSWERS = 32
MAX_BARE_ANSWER_CHARS = 200
"""An answer in no wrapping at all is looked for only in what is about as short as an answer."""


@dataclass(frozen=True, kw_only=True)
class AnswerScorer(Scorer):
    """How right the answer is: 1 or 0 for most types, a part of it for label sets, boxes and overlapping texts.

    Read from the last ``<answer>`` block after the reasoning, or else from ``\\boxed{}``, ``The answer is …``, or a
    reply that is hardly more than the answer; ``require_block`` insists on the block. Further blocks must say the same:
    contradictory answers are wrong, not lucky. No answer is 0; a key that cannot be read is invalid input.
    """

    require_block: bool = False
    tree: Path | None = None
    """An ontology whose names of one entity are one label, and one meaning of a text (see `entities.ontology`)."""

    isolated: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    decides_correctness: ClassVar[bool] = True
    turns: ClassVar[Turns] = "last"  # one that was put right in a later turn is no contradiction
    libraries: ClassVar[tuple[str, ...]] = ("ahocorasick_rs", "mpmath", "Pint", "scipy")
    depends_on: ClassVar[tuple[str, ...]] = (
        "rewards.answer_types",
        "rewards.assertion",
        "rewards.clinical_text",
        "rewards.cue_lexicon",
        "rewards.quantity",
        "rewards.trace",
        "entities",
    )

    async def score(self, trajectory: Trajectory) -> Score:
        checker = self.checker(trajectory.task)
        checker("")
        if len(trajectory.text) > MAX_TEXT_CHARS:
            return Score(0.0, reason=f"a completion of {len(trajectory.text)} characters is not read")
        trace = trace_of(trajectory)
        answers = self._answers(trace, checker, finished=trajectory.finish_reason == "stop")
        if not answers:
            return Score(0.0, reason="no answer")
        if len(answers) > MAX_ANSWERS:
            return Score(0.0, reason=f"{len(answers)} answer blocks")
        return _score(answers, checker)

    def checker(self, task: Task) -> Callable[[str], Check]:
        """What compares an answer with the task's key; it raises InvalidInput for a key that cannot be read.

        Raises InvalidInput for a type that there is not, Abstain for one that this scorer leaves to others.
        """
        return _checker(task, _loaded(self.tree))

    def check_use(self, *, gate: bool) -> None:
        if gate:
            raise ConfigError("the scorer `answer` never closes a gate; use it with a weight")
        _loaded(self.tree)

    def _answers(self, trace: Trace, checker: Callable[[str], Check], *, finished: bool) -> list[Span]:
        blocks = [*trace.answers, *([trace.open_answer] if trace.open_answer and finished else [])]
        if blocks or trace.open_answer or self.require_block:
            return [statement for block in blocks for statement in _pieces(block, boxed(block.text)) or [block]]
        return _unblocked_answers(trace.outside, checker)


def check_key(task: Task) -> None:
    """Read the task's answer key. Raises InvalidInput where its type is unknown or it lacks something."""
    _checker(task)("")


def read_answer(trajectory: Trajectory) -> str:
    """What the last turn answers, in a form that is equal for equal answers: a vote. Empty where it answers nothing
    that can be read, or several things. Raises InvalidInput as `check_key`."""
    checker = _checker(trajectory.task)
    text = trajectory.turns[-1]
    if len(text) > MAX_TEXT_CHARS:
        return ""
    trace, finished = parse_trace(text), trajectory.finish_reason == "stop"
    answers = AnswerScorer()._answers(trace, checker, finished=finished)
    readings = {_check(answer.text, checker).read for answer in answers[: MAX_ANSWERS + 1]}
    return readings.pop() if len(readings) == 1 else ""


def _loaded(tree: Path | None) -> EntityTree | None:
    if tree is None:
        return None
    from entities.tree import EntityTree

    return EntityTree.load(tree)


def _checker(task: Task, tree: EntityTree | None = None) -> Callable[[str], Check]:
    """The checker of the task's answer type for this task."""
    kind = task.answer.get("type")
    if not isinstance(kind, str) or kind not in CHECKERS:
        raise InvalidInput(
            f"answer.type of task {task.id!r} must be one of {', '.join(CHECKERS)}; got {kind!r}."
            + suggestion(str(kind), CHECKERS)
        )
    if kind in ("labels", "text"):
        return partial(CHECKERS[kind], task=task, tree=tree)
    return partial(CHECKERS[kind], task=task)


def _unblocked_answers(outside: Span, checker: Callable[[str], Check]) -> list[Span]:
    """What stands for an answer in a reply without a block; nothing where the reply is too long to be one.

    A sentence such as ``the diagnosis is hard to make`` is none, where another one can be read.
    """
    if found := _pieces(outside, boxed(outside.text)):
        return found
    if found := _pieces(outside, said(outside.text)):
        return [each for each in found if _check(each.text, checker).read] or found
    return [outside] if 0 < len(outside.text) <= MAX_BARE_ANSWER_CHARS else []


def _pieces(span: Span, places: list[tuple[int, int]]) -> list[Span]:
    return [Span(span.start + start, span.start + end, span.text[start:end]) for start, end in places]


def _score(answers: list[Span], checker: Callable[[str], Check]) -> Score:
    checks = [_check(answer.text, checker) for answer in answers]
    last, answer = checks[-1], answers[-1]
    readings = {check.read for check in checks if check.read}
    if len(readings) > 1 and any(check.value < 1.0 for check in checks):
        last = Check(0.0, f"contradictory answers: {'; '.join(sorted(readings))[:500]}", read="several")
    verdict: Verdict = "supported" if last.value == 1.0 else "refuted" if last.value == 0.0 else "uncertain"
    evidence = Evidence(
        claim=answer.text[:200],
        verdict=verdict,
        start=answer.start,
        end=answer.end,
        source="task.answer",
        note=last.reason,
    )
    return Score(last.value, reason=last.reason, evidence=(evidence,), metrics=last.metrics)


def _check(given: str, checker: Callable[[str], Check]) -> Check:
    if len(given) > MAX_ANSWER_CHARS:
        return Check(0.0, f"an answer of {len(given)} characters; at most {MAX_ANSWER_CHARS} are read", read="too long")
    given = unwrapped(given)
    return checker(given) if given else Check(0.0, "no answer: the block is empty")
