"""The trajectories whose reward moved most between two scorings, with all that was said of them in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rewards.tools.terminal import printable, shortened
from rl.replay.compare import Comparison, Example
from rl.report.cards import Shown
from rl.types import ScoredTrajectory, ScoreRecord
from rollouts.log import LoggedStep, read_step

_REASON_CHARS = 100
_TEXT_CHARS = 160

Pair = tuple[Shown, Shown]


def read_examples(found: Comparison, before: Path, after: Path) -> list[Pair]:
    """The examples of a comparison, those that moved most first, as both stores hold them."""
    places = dict.fromkeys((example.kind, example.step) for example in found.examples)
    shown: dict[Example, Pair] = {}
    for kind, number in places:
        here = [example for example in found.examples if (example.kind, example.step) == (kind, number)]
        groups = {example.group_index for example in here}
        one, other = (read_step(run, number, kind=kind, groups=groups) for run in (before, after))
        shown |= {example: (_find(one, example), _find(other, example)) for example in here}
    return [shown[example] for example in found.examples]


def _find(step: LoggedStep, example: Example) -> Shown:
    items = ((group, item) for group in step.groups for item in group.items)
    group, item = next(each for each in items if each[1].trajectory.id == example.trajectory_id)
    return Shown(step=step.step, group=group, item=item, advantage=step.advantages.get(item.trajectory.id))


def example_lines(pairs: Sequence[Pair], *, count: int = 3) -> Iterator[str]:
    """The first examples for the terminal: rewards, scores and reasons side by side, and the end of the last turn."""
    if not pairs:
        return
    yield f"moved most ({min(count, len(pairs))} of {len(pairs)} examples):"
    for before, after in pairs[:count]:
        trajectory = before.item.trajectory
        yield f"  {printable(trajectory.id)} of step {before.step}: reward {_reward(before)} → {_reward(after)}"
        for name in {**before.item.scores, **after.item.scores}:
            was, now = before.item.scores.get(name), after.item.scores.get(name)
            if _value(was) != _value(now):
                reason = shortened(_reason(now) or _reason(was), _REASON_CHARS)
                yield f"    {printable(name)}: {_value(was)} → {_value(now)}" + (f"  {reason}" if reason else "")
        *others, last = trajectory.turns
        turn = f"turn {len(others) + 1}: " if others else ""
        yield f"    {turn}… {shortened(last[-_TEXT_CHARS:], _TEXT_CHARS)}"


def _reward(shown: Shown) -> str:
    return f"{shown.item.reward:.3f}" if isinstance(shown.item, ScoredTrajectory) else "unscored"


def _value(record: ScoreRecord | None) -> str:
    if record is None:
        return "not asked"
    if record.score is None:
        return record.outcome
    return f"{record.score.value:.3f}" + ("" if record.score.gate_open else " gate closed")


def _reason(record: ScoreRecord | None) -> str:
    return "" if record is None else record.score.reason if record.score else record.reason
