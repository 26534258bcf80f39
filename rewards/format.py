"""Whether a completion keeps the form that was asked for: reasoning, then one answer, and nothing around them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from rewards.scorer import Score, Scorer, Trajectory, Turns
from rewards.trace import MAX_TEXT_CHARS

_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_FORMS = {
    True: (["think", "/think", "answer", "/answer"], ["/think", "answer", "/answer"]),  # a prompt may open the thinking
    False: (["answer", "/answer"],),
}


@dataclass(frozen=True, kw_only=True)
class FormatScorer(Scorer):
    """The share of three demands that hold: the tags in order, something in each block, and nothing outside of them.

    The form is ``<think>…</think><answer>…</answer>``, or the answer block alone where ``reasoning`` is false; an
    answer block that the policy stopped in counts as closed. Meant for shaping: ``{use: format, shaping: 0.05}``.
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
        tags = [f"{match[1]}{match[2].lower()}" for match in _TAG.finditer(text)]
        pieces = [piece.strip() for piece in _TAG.split(text)[::3]]
        if tags and tags[-1] == "answer" and trajectory.finish_reason == "stop":
            tags, pieces = [*tags, "/answer"], [*pieces, ""]
        in_order = tags in _FORMS[self.reasoning]
        inside = [piece for piece, tag in zip(pieces, tags, strict=False) if tag.startswith("/")]
        outside = [piece for piece, tag in zip(pieces, [*tags, ""], strict=False) if not tag.startswith("/")]
        faults = {
            f"the tags are {' '.join(tags[:8]) or 'none'}": not in_order,
            "a block is empty": not inside or not all(inside),
            "something stands outside of the blocks": any(outside) or not tags,
        }
        found = [fault for fault, holds in faults.items() if holds]
        return Score(1 - len(found) / len(faults), reason="; ".join(found) or "the form is kept")
