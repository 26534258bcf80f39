"""Whether a completion keeps the form that was asked for: reasoning, then one answer, and nothing around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rewards.scorer import Score, Scorer, Trajectory, Turns
from rewards.trace import MAX_TEXT_CHARS, blanked, call_spans, last_word

_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_ANSWERING = {
    True: (["think", "/think", "answer", "/answer"], ["/think", "answer", "/answer"]),  # a prompt may open the thinking
    False: (["answer", "/answer"],),
}
_CALLING = {True: (["think", "/think"], ["/think"]), False: ([],)}


@dataclass(frozen=True, kw_only=True)
class FormatScorer(Scorer):
    """The share of three demands that hold: the tags in order, something in each block, and nothing outside of them.

    The form is ``<think>…</think><answer>…</answer>``, or the answer block alone where ``reasoning`` is false; an
    answer block that the policy stopped in counts as closed. What it wrote before tools answered has calls in place of
    the answer block. Meant for shaping: ``{use: format, shaping: 0.05}``.
    """

    reasoning: bool = True

    isolated: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    turns: ClassVar[Turns] = "each"
    depends_on: ClassVar[tuple[str, ...]] = ("rewards.trace",)

    async def score(self, trajectory: Trajectory) -> Score:
        text = trajectory.text
        if len(text) > MAX_TEXT_CHARS:
            return Score(0.0, reason=f"a completion of {len(text)} characters is not read")
        last, said = last_word(trajectory), blanked(text, call_spans(trajectory))
        calling = [said[start:end] for start, end in trajectory.turn_spans if end < last]
        pieces = [_faults(piece, _CALLING[self.reasoning]) for piece in calling]
        finished = trajectory.finish_reason == "stop"
        pieces.append(_faults(text[last:], _ANSWERING[self.reasoning], finished=finished))
        demands = [next(filter(None, faults), "") for faults in zip(*pieces, strict=True)]
        found = list(filter(None, demands))
        return Score(1 - len(found) / len(demands), reason="; ".join(found) or "the form is kept")


def _faults(text: str, forms: Sequence[list[str]], *, finished: bool = False) -> list[str]:
    """What is wrong by each demand; empty where it holds."""
    tags = [f"{match[1]}{match[2].lower()}" for match in _TAG.finditer(text)]
    pieces = [piece.strip() for piece in _TAG.split(text)[::3]]
    if tags and tags[-1] == "answer" and finished:
        tags, pieces = [*tags, "/answer"], [*pieces, ""]
    inside = [piece for piece, tag in zip(pieces, tags, strict=False) if tag.startswith("/")]
    outside = [piece for piece, tag in zip(pieces, [*tags, ""], strict=False) if not tag.startswith("/")]
    has_blocks = any(forms)
    faults = {
        f"the tags are {' '.join(tags[:8]) or 'none'}": tags not in forms,
        "a block is empty": (has_blocks and not inside) or not all(inside),
        "something stands outside of the blocks": any(outside) or (has_blocks and not tags),
    }
    return [fault if holds else "" for fault, holds in faults.items()]
