"""Which tasks of a benchmark a model may have been trained on: shared runs of words, and the same images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from rl.types import EncodedImage, Task

NGRAM_WORDS = 13
"""Length of a run of words that two texts hardly share by chance (GPT-3, arXiv:2005.14165, appendix C)."""
MIN_WORDS = 8
"""Shorter questions ("Is there a fracture?") are asked of many images and say nothing."""
_WORD = re.compile(r"\w+")


def contaminated(
    benchmark: Sequence[Task], training: Iterable[Task], *, ngram_words: int = NGRAM_WORDS
) -> dict[str, str]:
    """Task id → how it overlaps, for every task of the benchmark that shares a run of ``ngram_words`` words, its whole
    question where that is shorter, or an image, pixel by pixel, with a training task.

    Texts are compared by their words without case and punctuation. Memory grows with the benchmark alone, time with
    the words of both.
    """
    by_run: dict[int, set[str]] = {}
    by_image: dict[str, set[str]] = {}
    for task in benchmark:
        for run in _runs(task, ngram_words):
            by_run.setdefault(run, set()).add(task.id)
        for image in task.images:
            by_image.setdefault(pixel_hash(image), set()).add(task.id)
    lengths = {length for task in benchmark if (length := _length(task, ngram_words))}
    found: dict[str, str] = {}
    hashes: dict[bytes, str] = {}  # many tasks ask about one image
    for task in training:
        words = _words(task.question)
        for length in lengths:
            for run in _hashes(words, length):
                found |= {id: f"words of training task {task.id}" for id in by_run.get(run, ()) if id not in found}
        for image in task.images if by_image else ():
            if image.content not in hashes:
                hashes[image.content] = pixel_hash(image)
            same = by_image.get(hashes[image.content], ())
            found |= {id: f"image of training task {task.id}" for id in same if id not in found}
    return found


def pixel_hash(image: EncodedImage) -> str:
    """A hash of size and RGB pixels: the same for one picture in two lossless encodings."""
    picture = image.decode()
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def _runs(task: Task, ngram_words: int) -> Iterator[int]:
    length = _length(task, ngram_words)
    return _hashes(_words(task.question), length) if length else iter(())


def _length(task: Task, ngram_words: int) -> int:
    """How many words must be shared; 0 where a question is too short to tell."""
    words = len(_words(task.question))
    return min(words, ngram_words) if words >= MIN_WORDS else 0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _hashes(words: Sequence[str], length: int) -> Iterator[int]:
    return (hash(tuple(words[start : start + length])) for start in range(len(words) - length + 1))
