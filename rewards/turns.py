"""Several turns before scorers that know of one: what of a conversation a scorer reads, and one score out of several.

A turn ends here where the user speaks. What tools answered lies within it, so that `Trajectory.turns` may have it in
several pieces.

A turn that is read by itself is a trajectory of one turn, whose task asks and shows all that had been said and shown
until then. What the policy wrote in other turns is not in it, since its own words are no evidence; what tools told it
then is, and has the same number.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewards.isolation.attempt import Attempt
from rewards.scorer import Score, Trajectory, Turns
from rl.types import TURN_BREAK, Outcome

_BROKEN: tuple[Outcome, ...] = ("failed", "invalid_input")


@dataclass(frozen=True, slots=True)
class Part:
    """What is read at once, and where its text begins in that of the whole trajectory."""

    trajectory: Trajectory
    start: int = 0


def parts_of(trajectory: Trajectory, turns: Turns) -> tuple[Part, ...]:
    """The parts that a scorer of ``turns`` reads, in order; a trajectory of one turn is read as it is."""
    spoken = [number for number, told in enumerate(trajectory.observations) if told.message.role == "user"]
    if turns == "all" or not spoken:
        return (Part(trajectory),)
    spans = list(zip([0, *(number + 1 for number in spoken)], [*spoken, len(trajectory.observations)], strict=True))
    return tuple(_turn(trajectory, first, last) for first, last in (spans[-1:] if turns == "last" else spans))


def asked(trajectory: Trajectory) -> str:
    """All that the user has said: the question, and what the policy was told between its turns, but by no tool."""
    told = (each.message.text for each in trajectory.observations if each.message.role == "user")
    return TURN_BREAK.join(filter(None, (trajectory.task.question, *told)))


def transcript(trajectory: Trajectory) -> str:
    """What the policy wrote with what it was told in between, a blank line apart: the completion as other frameworks
    give it to their functions, which decode all that follows the prompt."""
    told = [observation.message.text for observation in trajectory.observations]
    pieces = [piece for pair in zip(trajectory.turns, [*told, ""], strict=True) for piece in pair]
    return TURN_BREAK.join(pieces[:-1])


def joined(parts: Sequence[Part], attempts: Sequence[Attempt], *, counted_metrics: Collection[str] = ()) -> Attempt:
    """What came of all parts. One that failed, or that could not be read, is what came of the whole; those that
    abstained are left out, unless all did. The value is the mean, a gate is open where each leaves it open, and metrics
    are means too but for the ``counted_metrics``, which add up."""
    if len(attempts) == 1:
        return _placed(attempts[0], parts[0].start)
    told = [replace(attempt, reason=f"turn {number}: {attempt.reason}") for number, attempt in enumerate(attempts, 1)]
    for outcome in _BROKEN:
        if broken := next((attempt for attempt in told if attempt.outcome == outcome), None):
            return broken
    placed = [_placed(attempt, part.start).score for part, attempt in zip(parts, attempts, strict=True)]
    scores = [score for score in placed if score]
    if not scores:
        return told[0]
    score = Score(
        statistics.mean(score.value for score in scores),
        reason="; ".join(_said(attempt, number) for number, attempt in enumerate(attempts, 1)),
        evidence=tuple(each for score in scores for each in score.evidence),
        gate_open=all(score.gate_open for score in scores),
        metrics=_metrics(scores, counted=counted_metrics),
    )
    return Attempt(outcome="scored", score=score)


def _turn(trajectory: Trajectory, first: int, last: int) -> Part:
    """The pieces from ``first`` to ``last`` of what the policy wrote, with what it was told between them."""
    before = replace(trajectory, observations=trajectory.observations[:first])
    within = trajectory.observations[first:last]
    pieces, tokens = trajectory.turn_spans[first : last + 1], _token_spans(trajectory)[first : last + 1]
    (start, _), (_, end) = pieces[0], pieces[-1]
    written = slice(tokens[0][0], tokens[-1][1])
    turn = replace(
        trajectory,
        task=replace(trajectory.task, question=asked(before), images=before.images, follow_ups=()),
        prompt_token_ids=np.concatenate(
            [trajectory.prompt_token_ids, trajectory.completion_token_ids[: written.start]]
        ),
        completion_token_ids=trajectory.completion_token_ids[written],
        completion_mask=trajectory.completion_mask[written],
        rollout_logprobs=trajectory.rollout_logprobs[written],
        text=trajectory.text[start:end],
        finish_reason=trajectory.finish_reason if last == len(trajectory.observations) else "stop",
        later_versions=(),
        tool_calls=tuple(replace(c, turn=max(c.turn - first, -1)) for c in trajectory.tool_calls if c.turn <= last),
        observations=tuple(replace(each, place=each.place - start) for each in within),
    )
    return Part(turn, start)


def _token_spans(trajectory: Trajectory) -> list[tuple[int, int]]:
    """Where the tokens of each piece begin and end: the runs of the mask. Where they are not one for a piece (a log
    without tokens, a tool within a piece) nobody can tell, and no piece has any."""
    edges = np.flatnonzero(np.diff(trajectory.completion_mask.astype(np.int8), prepend=0, append=0)).tolist()
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    pieces = len(trajectory.observations) + 1
    return runs if len(runs) == pieces else [(0, 0)] * pieces


def _placed(attempt: Attempt, start: int) -> Attempt:
    """The same with the places of its evidence in the whole text."""
    if attempt.score is None or start == 0:
        return attempt
    evidence = tuple(
        each if each.start < 0 else replace(each, start=each.start + start, end=each.end + start)
        for each in attempt.score.evidence
    )
    return replace(attempt, score=replace(attempt.score, evidence=evidence))


def _metrics(scores: Sequence[Score], *, counted: Collection[str]) -> dict[str, float]:
    values = defaultdict[str, list[float]](list)
    for score in scores:
        for name, value in score.metrics.items():
            values[name].append(value)
    return {name: sum(each) if name in counted else statistics.mean(each) for name, each in values.items()}


def _said(attempt: Attempt, number: int) -> str:
    if attempt.score is None:
        return f"turn {number} {attempt.outcome}: {attempt.reason}"
    return f"turn {number} ({attempt.score.value:.3g}): {attempt.score.reason}"
