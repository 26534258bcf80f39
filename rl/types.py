"""What flows through medrl, one frozen type per stage. Read this file first.

    Task ──rollouts──▶ Trajectory ──rewards──▶ ScoredTrajectory | Unscored ──rl──▶ Group ──▶ TrainBatch
      ▲                                                                                        │
      └───────────────── WeightsVersion ◀──────────────── policies (learner) ◀─────────────────┘

A new type at every stage, so that ``None`` never means "not yet". Token ids and logprobs are those that the
engine returned; masks travel explicitly and are never inferred from a token id. Arrays are numpy, one-dimensional
over tokens; this module needs nothing but the standard library and numpy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

FinishReason = Literal["stop", "length", "abort", "unknown"]
Verdict = Literal["supported", "refuted", "uncertain", "unsupported"]
Outcome = Literal["scored", "abstained", "failed", "invalid_input"]

TURN_BREAK = "\n\n"
"""What stands between two turns in `Trajectory.text`."""

_THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """One image, still encoded (PNG or JPEG), so that it costs little to keep and to send.

    ``width`` and ``height`` are in pixels; ``source`` says where it came from, for error messages and the report.
    """

    content: bytes
    width: int
    height: int
    source: str = ""

    @property
    def sha256(self) -> str:
        """The content hash, the name under which the trajectory store keeps the image once."""
        return hashlib.sha256(self.content).hexdigest()

    def decode(self) -> PIL.Image.Image:
        """The pixels, as 8-bit RGB: the same for the engine, the learner and the report.

        A picture of at most 28 pixels a side, such as MedMNIST's, is enlarged by a whole factor to at most 56: a model
        that merges patches of 14 pixels two by two would get one token of it, and transformers' Mistral3 fails on one.
        """
        from PIL import Image

        with Image.open(BytesIO(self.content), formats=("PNG", "JPEG")) as picture:
            pixels = picture.convert("RGB")
        factor = 56 // max(pixels.size)
        return pixels.resize((pixels.width * factor, pixels.height * factor)) if factor > 1 else pixels

    def __repr__(self) -> str:
        return f"EncodedImage({self.width}x{self.height}, {len(self.content)} bytes, {self.source!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One field of a record that a trace may cite: its value, unit and what the value is to be read as."""

    value: float
    unit: str = ""
    reading: str = ""
    """How a reader should call this value, in a word of the source (``high``, ``low`` …); may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What the policy is told: images, then text. ``role`` is who says it: the user, or the tools that it called."""

    text: str
    images: tuple[EncodedImage, ...] = ()
    role: Literal["user", "tool"] = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question about one patient, with all that is needed to ask it and to check what comes back.

    ``follow_ups`` are what the user says after each of the policy's turns, whatever that turn was: a doubt, a further
    image, the next question. A task without them has one turn.

    ``answer`` is ``{"type": "yes_no" | "choice" | "number" | "text" | …, "value": …, …}``; ``rubric`` holds the
    dynamic criteria (HealthBench form) that belong to this task alone; ``reference`` is what is known of the case
    besides, for claims to be held against: ``findings``, ``sources`` (name to text) and ``regions``, by
    ``entities/reference.schema.json``; ``stratum`` is what a balanced sampler draws evenly over; ``extra`` holds
    further columns of the source, unread by the trainer but open to scorers.
    """

    id: str
    question: str
    answer: Mapping[str, Any]
    images: tuple[EncodedImage, ...] = ()
    follow_ups: tuple[Message, ...] = ()
    system: str = ""
    record: Mapping[str, Measurement] = field(default_factory=dict)
    rubric: tuple[Mapping[str, Any], ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)
    stratum: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_images(self) -> tuple[EncodedImage, ...]:
        """Its own, and those that come with its follow-ups."""
        return (*self.images, *(image for message in self.follow_ups for image in message.images))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep the whole vocabulary.

    ``max_tokens`` bounds what the policy writes in all of a trajectory's turns together; ``stop`` ends a turn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call inside a trajectory and what the tool returned.

    It is not ``ok`` where the tool refused or failed, and where what the policy wrote was no call, which has no name.
    ``turn`` counts from 0 which of `Trajectory.turns` made it; -1 where none of them did, or nobody can tell.
    """

    name: str
    arguments: Mapping[str, Any]
    result: str
    ok: bool = True
    turn: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the policy was told after a turn, and where: ``place`` counts the characters of `Trajectory.text` before it.

    Its tokens are a run of its own on which `Trajectory.completion_mask` is false.
    """

    message: Message
    place: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """What the policy wrote for one task, in one turn or several.

    ``text`` is what the policy wrote, its turns a blank line apart; what it was told in between is in ``observations``.

    Shapes: ``prompt_token_ids`` int32 [prompt] with every image token expanded, as the engine saw it;
    ``completion_token_ids`` int32 [completion]; ``completion_mask`` bool [completion], true where the policy wrote
    the token (false on what tools and the environment wrote); ``rollout_logprobs`` float32 [completion], natural
    logarithms under the sampling policy at its temperature, NaN where the mask is false.

    ``policy_version`` counts the training steps behind the weights that began it. Where weights were loaded while it
    was being written, ``later_versions`` has the first token and the version of each span that others wrote.

    ``source`` names the system that wrote an imported trajectory. What such a log does not say is not made up: its
    token arrays are empty, its ``policy_version`` and ``seed`` are -1, and its ``sampling`` means nothing.
    """

    id: str
    task: Task
    sample_index: int
    prompt_token_ids: np.ndarray
    completion_token_ids: np.ndarray
    completion_mask: np.ndarray
    rollout_logprobs: np.ndarray
    text: str
    finish_reason: FinishReason
    policy_version: int
    seed: int
    sampling: SamplingParams
    tool_calls: tuple[ToolCall, ...] = ()
    duration_s: float = 0.0
    source: str = ""
    later_versions: tuple[tuple[int, int], ...] = ()
    observations: tuple[Observation, ...] = ()

    @property
    def length_tokens(self) -> int:
        """How many tokens the policy wrote."""
        return int(np.count_nonzero(self.completion_mask))

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """All that the policy was shown, in the order of their tokens."""
        return (*self.task.images, *(image for each in self.observations for image in each.message.images))

    @property
    def turn_spans(self) -> tuple[tuple[int, int], ...]:
        """Where each of the policy's turns begins and ends in ``text``."""
        places = [observation.place for observation in self.observations]
        starts = [0, *(place + len(TURN_BREAK) for place in places)]
        return tuple(zip(starts, [*places, len(self.text)], strict=True))

    @property
    def turns(self) -> tuple[str, ...]:
        """What the policy wrote in each of its turns."""
        return tuple(self.text[start:end] for start, end in self.turn_spans)

    @property
    def token_versions(self) -> np.ndarray:
        """Int64 [completion]: the policy version that wrote each token, or read it where the policy was told it."""
        versions = np.full(len(self.completion_token_ids), self.policy_version, dtype=np.int64)
        for start, version in self.later_versions:
            versions[start:] = version
        return versions

    @property
    def reasoning(self) -> str:
        """The text of the last turn's first ``<think>`` block, to the end of the turn where it was never closed; else
        what stands before its first ``<answer>``."""
        text = self.turns[-1]
        match = _THINK.search(text)
        return match.group(1).strip() if match else text.split("<answer>", 1)[0].strip()

    @property
    def answer_text(self) -> str | None:
        """The text of the last complete ``<answer>`` block of the last turn, or None where there is none."""
        text = self.turns[-1]
        end = text.rfind("</answer>")
        start = text.rfind("<answer>", 0, max(end, 0))
        return text[start + len("<answer>") : end].strip() if start >= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a verdict rests on, and the place in the completion that it is about.

    ``start`` and ``end`` are character offsets into ``Trajectory.text`` (-1, -1 where the verdict is about the
    whole text); ``source`` names a record field, an image region, a tool call or a span of a source text.
    """

    claim: str
    verdict: Verdict
    start: int = -1
    end: int = -1
    source: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer says of one trajectory: ``value`` in [0, 1], why, and on what evidence.

    ``gate_open`` is read only where the scorer is used as a gate: false makes the whole reward zero.
    ``metrics`` are further numbers worth a curve (claim counts, precision …). Raises ValueError for a value that
    is not a finite number in [0, 1].
    """

    value: float
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()
    gate_open: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.value, str) or not 0.0 <= self.value <= 1.0:  # also catches NaN
            raise ValueError(f"a score's value must be a finite number in [0, 1]; got {self.value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRecord:
    """One scorer's outcome for one trajectory, with its provenance.

    ``score`` is set exactly where ``outcome`` is ``scored``; otherwise ``reason`` says what happened. ``version``
    is a hash of the scorer's code and config, ``inputs`` one of what it was given to read (empty in logs from before
    it was kept). A scorer that ``abstained`` has nothing to say about this task and leaves the weighted sum; one that
    ``failed`` makes the trajectory `Unscored`.
    """

    scorer: str
    version: str
    outcome: Outcome
    score: Score | None = None
    reason: str = ""
    duration_s: float = 0.0
    inputs: str = ""

    def __post_init__(self) -> None:
        if (self.score is not None) != (self.outcome == "scored"):
            raise ValueError(f"outcome {self.outcome!r} of scorer {self.scorer!r} with score {self.score!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredTrajectory:
    """A trajectory with its reward, the combined number that advantages are made of, and every score behind it."""

    trajectory: Trajectory
    reward: float
    scores: Mapping[str, ScoreRecord]
    correct: bool | None = None
    """Whether the answer was right, where a scorer of verifiable answers said so; None where none did."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unscored:
    """A trajectory that a broken scorer left without a reward. It is counted and shown, and stays out of its
    group's baseline: a failure of the judge is never a zero for the policy."""

    trajectory: Trajectory
    scores: Mapping[str, ScoreRecord]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """All trajectories of one task in one step; what group-relative advantages are centred over."""

    task: Task
    scored: tuple[ScoredTrajectory, ...]
    unscored: tuple[Unscored, ...] = ()

    @property
    def items(self) -> tuple[ScoredTrajectory | Unscored, ...]:
        """The scored before the unscored."""
        return (*self.scored, *self.unscored)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainSample:
    """One trajectory as the learner sees it.

    Shapes: ``token_ids`` int32 [token], prompt then completion; ``loss_mask`` bool [token], true on the tokens that
    the policy wrote and that are trained on; ``rollout_logprobs`` float32 [token], NaN off the mask; ``advantage``
    is the same for all tokens of a trajectory. ``group`` numbers the group within the batch: samples of one group
    share ``prompt_length`` leading tokens and the images in them; others follow in the order of their tokens.
    """

    trajectory_id: str
    group: int
    token_ids: np.ndarray
    prompt_length: int
    loss_mask: np.ndarray
    rollout_logprobs: np.ndarray
    advantage: float
    images: tuple[EncodedImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainBatch:
    """All samples of one training step and the global number of tokens that the loss is averaged over."""

    samples: tuple[TrainSample, ...]
    loss_tokens: int
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsVersion:
    """The weights that the engines hold after a publication. ``number`` counts training steps; ``size_bytes`` is that
    of the weights that were sent; ``sha256`` is a digest over all weights by name, the same however many ranks hold
    them and whichever way they were sent."""

    number: int
    size_bytes: int
    publish_s: float
    sha256: str


def fields_of(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass by name. `dataclasses.asdict` copies deeply, which takes longer than most scores do."""
    return {each.name: getattr(instance, each.name) for each in fields(instance)}
