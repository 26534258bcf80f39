"""Which samples stand in one sequence, what they share there, and which rank runs it in which pass; no torch needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rl.errors import LearnerError
from rl.types import EncodedImage, TrainSample


@dataclass(frozen=True, slots=True)
class Row:
    """Samples that have their first ``shared_tokens`` and ``shared_images`` in common: ``[shared | rest of sample 1 |
    … | rest of sample G]``, its images in the same order."""

    samples: tuple[TrainSample, ...]
    indices: tuple[int, ...]
    """Where each sample stands in the batch; empty for a row that is run for company alone."""
    shared_tokens: int
    shared_images: int

    @property
    def rests(self) -> tuple[int, ...]:
        """Tokens that each sample has beyond the shared ones."""
        return tuple(len(sample.token_ids) - self.shared_tokens for sample in self.samples)

    @property
    def length(self) -> int:
        return self.shared_tokens + sum(self.rests)

    @property
    def loss_tokens(self) -> int:
        return sum(int(sample.loss_mask.sum()) for sample in self.samples)

    @property
    def token_ids(self) -> np.ndarray:
        """Int64 [token]."""
        rests = [sample.token_ids[self.shared_tokens :] for sample in self.samples]
        return np.concatenate([self.samples[0].token_ids[: self.shared_tokens], *rests]).astype(np.int64)

    @property
    def images(self) -> list[EncodedImage]:
        rests = [image for sample in self.samples for image in sample.images[self.shared_images :]]
        return [*self.samples[0].images[: self.shared_images], *rests]

    def images_of(self, number: int) -> list[int]:
        """Where the images of the sample of that number stand among `images`, in its own order."""
        own = [len(sample.images) - self.shared_images for sample in self.samples]
        start = self.shared_images + sum(own[:number])
        return [*range(self.shared_images), *range(start, start + own[number])]


def group_rows(
    samples: Sequence[TrainSample], *, image_token_id: int, image_tokens: Callable[[EncodedImage], int]
) -> list[Row]:
    """One row per group; ``image_tokens`` counts the tokens of that id that stand for an image.

    Raises LearnerError for a group whose samples do not begin with the same prompt.
    """
    groups: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(index)
    rows = []
    for indices in groups.values():
        members = tuple(samples[index] for index in indices)
        shared = _shared(members, image_token_id, image_tokens)
        if shared[0] < max(sample.prompt_length for sample in members):
            raise LearnerError(
                f"the trajectories {members[0].trajectory_id!r} … {members[-1].trajectory_id!r} are one group, but "
                f"part at token {shared[0]} of their prompt of {members[0].prompt_length}"
            )
        rows.append(Row(members, tuple(indices), *shared))
    return rows


def single_rows(samples: Sequence[TrainSample]) -> list[Row]:
    """One row per sample."""
    return [
        Row((sample,), (index,), shared_tokens=len(sample.token_ids), shared_images=len(sample.images))
        for index, sample in enumerate(samples)
    ]


def has_images(rows: Sequence[Row]) -> bool:
    return any(row.images for row in rows)


def untrained_row(rows: Sequence[Row]) -> Row:
    """The shortest sample with images, as a row that stands for none of the batch and of which nothing is trained."""
    samples = [sample for row in rows for sample in row.samples if sample.images]
    sample = min(samples, key=lambda sample: len(sample.token_ids))
    (row,) = single_rows([replace(sample, loss_mask=np.zeros(len(sample.token_ids), dtype=bool))])
    return replace(row, indices=())


def _shared(
    samples: Sequence[TrainSample], image_token_id: int, image_tokens: Callable[[EncodedImage], int]
) -> tuple[int, int]:
    """Leading tokens and images that all samples have in common: up to where they part, and never half an image."""
    first = samples[0]
    tokens = min(len(sample.token_ids) for sample in samples)
    for sample in samples[1:]:
        parted = first.token_ids[:tokens] != sample.token_ids[:tokens]
        tokens = int(parted.argmax()) if parted.any() else tokens
    places = np.flatnonzero(first.token_ids[:tokens] == image_token_id)
    same_images = all(_same(first.images, sample.images) for sample in samples)
    if same_images and all(np.count_nonzero(s.token_ids == image_token_id) == len(places) for s in samples):
        return tokens, len(first.images)  # the usual case: all images stand in the prompt
    images = covered = 0
    for number, image in enumerate(first.images):
        common = all(_same(first.images[number : number + 1], sample.images[number : number + 1]) for sample in samples)
        if not common or covered + image_tokens(image) > len(places):
            break
        images, covered = images + 1, covered + image_tokens(image)
    # Alike as tokens, an image that is not shared as a whole ends the shared part before its first token.
    return (int(places[covered]) if covered < len(places) else tokens), images


def _same(images: Sequence[EncodedImage], others: Sequence[EncodedImage]) -> bool:
    return [image.content for image in images] == [image.content for image in others]


def plan_passes(lengths: Sequence[int], *, ranks: int, budget_tokens: int, padded: bool) -> list[list[tuple[int, ...]]]:
    """Which rows each rank runs in which pass: ``plan[rank][pass]`` is a tuple of row indices.

    The longest rows first, each goes to the rank with the least tokens so far, and there into the first pass that
    has room: no pass is larger than ``budget_tokens``, counted with padding to its longest row where it is
    ``padded`` (a row that is longer stands alone). Every rank gets the same number of passes, since ZeRO's collectives
    run in every pass, and an empty tuple stands for a pass without work. Deterministic.
    """

    def size(rows: Sequence[int]) -> int:
        return len(rows) * lengths[rows[0]] if padded else sum(lengths[row] for row in rows)

    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        rank = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[rank] += lengths[row]
        roomy = next((rows for rows in plan[rank] if size([*rows, row]) <= budget_tokens), None)
        if roomy is None:
            plan[rank].append([row])
        else:
            roomy.append(row)
    deepest = max(len(passes) for passes in plan)
    return [[tuple(rows) for rows in passes] + [()] * (deepest - len(passes)) for passes in plan]
