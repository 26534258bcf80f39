"""One trajectory while it is written, turn by turn: every token stays as it was drawn, nothing is tokenized twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rl.types import TURN_BREAK, FinishReason, Message, Observation, ToolCall, Trajectory
from rollouts.tools.tool import Scene

if TYPE_CHECKING:
    from rollouts.engine import GenerationRequest


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image among tokens: ``features`` are what the engine's processor made of it, ``offset`` is where the
    tokens begin that stand for it, and ``placeholder`` says which of them those are."""

    sha256: str
    features: Any
    offset: int
    placeholder: Any


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of what the policy reads: its tokens, those of its images expanded, and the images."""

    token_ids: Sequence[int]
    images: tuple[PlacedImage, ...] = ()

    def placed(self, start: int) -> tuple[PlacedImage, ...]:
        """The images as they stand where the passage begins at token ``start``."""
        return tuple(replace(image, offset=image.offset + start) for image in self.images)


@dataclass(frozen=True, slots=True)
class Telling:
    """What the policy is told after a turn, as a message and as the engine is given it.

    The passage begins with the end of the policy's turn. ``end_of_turn`` is the token that this is where it is one:
    a policy that has written it itself is not given it again.
    """

    message: Message
    passage: Passage
    end_of_turn: int | None


def turn_seed(seed: int, turn: int) -> int:
    """Of a turn, from 0, of a sample: two turns that drew the same random numbers would not be independent."""
    return int(np.random.SeedSequence([seed, turn]).generate_state(1)[0] >> 1) if turn else seed


class Dialogue:
    """Sample ``index`` of a request.

    ``token_ids`` is all that the next turn is written after. Once it is written `add_turn` takes it, and `goes_on`
    says whether there is another: after what the policy's tools answered, or else the task's next follow-up.
    """

    def __init__(
        self,
        request: GenerationRequest,
        index: int,
        *,
        prompt: Passage,
        follow_ups: Sequence[Telling],
        max_model_len: int,
    ) -> None:
        self.request, self.index = request, index
        self.token_ids = list(prompt.token_ids)
        self.images = prompt.images
        self.finish_reason: FinishReason = "abort"
        self.finished = False
        self._prompt_length = len(prompt.token_ids)
        self._follow_ups = deque(follow_ups)
        self._max_model_len = max_model_len
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._text = ""
        self._versions: list[tuple[int, int]] = []
        self._observations: list[Observation] = []
        self._tool_calls: list[ToolCall] = []
        self._began_s = time.perf_counter()
        self._duration_s = 0.0

    @property
    def turn(self) -> int:
        """The number of the turn that is being written, from 0."""
        return len(self._observations)

    @property
    def seed(self) -> int:
        return turn_seed(self.request.seed + self.index, self.turn)

    @property
    def last_turn(self) -> str:
        """What the policy wrote in the turn that was added last."""
        return self._text[self._observations[-1].place + len(TURN_BREAK) if self._observations else 0 :]

    @property
    def scene(self) -> Scene:
        """What a tool may look at."""
        told = (image for each in self._observations for image in each.message.images)
        return Scene(task=self.request.task, images=(*self.request.task.images, *told))

    @property
    def calls(self) -> int:
        """How many tool calls were answered."""
        return len(self._tool_calls)

    @property
    def left_tokens(self) -> int:
        """How many tokens the policy may still write."""
        return self.request.sampling.max_tokens - sum(self._mask)

    def add_turn(self, completion: Any, *, version: int) -> None:
        """Take what the engine wrote; ``version`` is whose it is where the engine does not say."""
        token_ids = list(completion.token_ids)
        spans = [(span.start, int(span.version)) for span in completion.weight_versions] or [(0, version)]
        for start, wrote in spans:
            if not self._versions or self._versions[-1][1] != wrote:
                # The new weights read, too, what the policy was told before its turn.
                self._versions.append((len(self._mask) + start if start else self._turn_start, wrote))
        self.token_ids += token_ids
        self._mask += [True] * len(token_ids)
        self._logprobs += [
            position[token].logprob for position, token in zip(completion.logprobs, token_ids, strict=True)
        ]
        self._text += completion.text
        self.finish_reason = completion.finish_reason

    def add_calls(self, calls: Iterable[ToolCall], *, broken: bool) -> None:
        """Take the calls of the last turn with their results; a ``broken`` tool ends the dialogue in ``abort``."""
        self._tool_calls += (replace(call, turn=self.turn) for call in calls)
        if broken:
            self.finish_reason = "abort"

    def goes_on(self, results: Telling | None = None) -> bool:
        """Tell the policy what comes next, if anything does; a dialogue that has no room for it ends in ``length``."""
        if self.finish_reason == "stop" and (results or self._follow_ups):
            if self._take_in(results or self._follow_ups.popleft()):
                return True
            self.finish_reason = "length"
        self.finished = True
        self._duration_s = time.perf_counter() - self._began_s
        return False

    def _take_in(self, telling: Telling) -> bool:
        """Whether there is room for it, and for a token of the policy's after it."""
        skipped = int(self.token_ids[-1] == telling.end_of_turn)
        token_ids = telling.passage.token_ids[skipped:]
        if self.left_tokens <= 0 or len(self.token_ids) + len(token_ids) >= self._max_model_len:
            return False
        self.images += telling.passage.placed(len(self.token_ids) - skipped)
        self.token_ids += token_ids
        self._mask += [False] * len(token_ids)
        self._logprobs += [np.nan] * len(token_ids)
        self._observations.append(Observation(message=telling.message, place=len(self._text)))
        self._text += TURN_BREAK
        return True

    def trajectory(self) -> Trajectory:
        """All of it, once it is finished."""
        (_, began_by), *later = self._versions
        return Trajectory(
            id=f"{self.request.id}/{self.index}",
            task=self.request.task,
            sample_index=self.index,
            prompt_token_ids=np.asarray(self.token_ids[: self._prompt_length], dtype=np.int32),
            completion_token_ids=np.asarray(self.token_ids[self._prompt_length :], dtype=np.int32),
            completion_mask=np.asarray(self._mask, dtype=bool),
            rollout_logprobs=np.asarray(self._logprobs, dtype=np.float32),
            text=self._text,
            finish_reason=self.finish_reason,
            policy_version=began_by,
            later_versions=tuple(later),
            seed=self.request.seed + self.index,
            sampling=self.request.sampling,
            duration_s=self._duration_s,
            observations=tuple(self._observations),
            tool_calls=tuple(self._tool_calls),
        )

    @property
    def _turn_start(self) -> int:
        """The first token of the completion that belongs to this turn or to what the policy was told before it."""
        written = np.flatnonzero(self._mask)
        return int(written[-1]) + 1 if len(written) else 0
