"""Which side of a split a case is on, decided by a hash: the same on every machine, whatever the order of the rows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rl.errors import ConfigError
from rl.types import Task


def is_held_out(key: bytes, *, fraction: float) -> bool:
    """Whether the case that ``key`` names evaluates, as about ``fraction`` of all cases do."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < fraction * 2**64


def held_out_images(cases: Iterable[Sequence[bytes]], *, fraction: float) -> set[bytes]:
    """The images that evaluate, out of the images' contents case by case.

    Images that one case asks about together stay together, and so do all that hang together by such cases: no image is
    on both sides. A cluster is named by the smallest hash of its images.
    """
    parents: dict[bytes, bytes] = {}

    def root(image: bytes) -> bytes:
        while (parent := parents.setdefault(image, image)) != image:
            parents[image] = parents[parent]  # halves the path
            image = parent
        return image

    for first, *others in cases:
        for other in others:
            parents[root(other)] = root(first)
        root(first)
    clusters: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for image in list(parents):
        clusters[root(image)].append(image)
    return {
        image
        for cluster in clusters.values()
        if is_held_out(min(hashlib.sha256(member).digest() for member in cluster), fraction=fraction)
        for image in cluster
    }


def tuning_split(tasks: Sequence[Task], *, share: float) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Training tasks and about ``share`` of them apart, on which settings are chosen; no image is on both sides.

    Raises ConfigError where one side would be empty.
    """
    held_out = held_out_images(
        ([image.content for image in task.all_images] for task in tasks if task.all_images), fraction=share
    )

    def tunes(task: Task) -> bool:
        if task.all_images:
            return task.all_images[0].content in held_out
        return is_held_out(task.id.encode(), fraction=share)

    training, tuning = (tuple(task for task in tasks if tunes(task) == side) for side in (False, True))
    if not training or not tuning:
        raise ConfigError(
            f"tasks.tuning_share {share:g} of {len(tasks)} training tasks leaves {len(training)} to train and "
            f"{len(tuning)} to tune on; both need some"
        )
    return training, tuning
