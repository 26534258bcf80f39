from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rl.types import TURN_BREAK, Message, Observation, SamplingParams, Task, ToolCall, Trajectory

MakeTrajectory = Callable[..., Trajectory]


@pytest.fixture
def trajectory() -> MakeTrajectory:
    """Makes a trajectory of a text; further keywords are the task's fields."""

    def make(
        text: str,
        *,
        length_tokens: int = 4,
        finish_reason: Any = "stop",
        max_tokens: int = 256,
        id: str = "task-0",
        answer: Any = None,
        tool_calls: tuple[ToolCall, ...] = (),
        question: str = "?",
        **task: Any,
    ) -> Trajectory:
        return Trajectory(
            id=f"{id}/0",
            task=Task(id=id, question=question, answer=answer or {"type": "yes_no", "value": "yes"}, **task),
            sample_index=0,
            prompt_token_ids=np.zeros(3, dtype=np.int32),
            completion_token_ids=np.zeros(length_tokens, dtype=np.int32),
            completion_mask=np.ones(length_tokens, dtype=bool),
            rollout_logprobs=np.zeros(length_tokens, dtype=np.float32),
            text=text,
            finish_reason=finish_reason,
            policy_version=0,
            seed=0,
            sampling=SamplingParams(max_tokens=max_tokens),
            tool_calls=tool_calls,
        )

    return make


def a_conversation(first: Trajectory, *exchanges: tuple[str | Message, str]) -> Trajectory:
    """A trajectory of one turn and what came after it: what the user said, or a tool, three tokens, and what the policy
    wrote in reply, two. Tokens count on from the first turn's, and the logprob of each is its number."""
    text, observations, mask = first.text, [], [True] * first.length_tokens
    for said, written in exchanges:
        message = said if isinstance(said, Message) else Message(text=said)
        observations.append(Observation(message=message, place=len(text)))
        text += TURN_BREAK + written
        mask += [False] * 3 + [True] * 2
    return replace(
        first,
        task=replace(
            first.task, follow_ups=tuple(each.message for each in observations if each.message.role == "user")
        ),
        text=text,
        observations=tuple(observations),
        completion_token_ids=np.arange(len(mask), dtype=np.int32),
        completion_mask=np.array(mask),
        rollout_logprobs=np.where(mask, np.arange(len(mask)), np.nan).astype(np.float32),
    )
