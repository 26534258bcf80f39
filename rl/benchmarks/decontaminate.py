"""Which tasks of a benchmark a model may have been trained on: shared runs of words, and the same images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

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

    Texts are compared by their words without case and punctuation. Follow-ups count like the question, but for what
    several tasks of the benchmark say alike, such as a doubt. Memory grows with the benchmark alone, time with the
    words of both.
    """
    by_run = _tasks_by_run(benchmark, ngram_words)
    by_image: dict[str, set[str]] = {}
    for task in benchmark:
        for image in task.all_images:
            by_image.setdefault(pixel_hash(image), set()).add(task.id)
    lengths = {length for task in benchmark for text in _texts(task) if (length := _length(text, ngram_words))}
    found: dict[str, str] = {}
    hashes: dict[bytes, str] = {}  # many tasks ask about one image
    for task in training:
        for words, length in product(map(_words, _texts(task)), lengths):
            for run in _hashes(words, length):
                found |= {id: f"words of training task {task.id}" for id in by_run.get(run, ()) if id not in found}
        for image in task.all_images if by_image else ():
            if image.content not in hashes:
                hashes[image.content] = pixel_hash(image)
            same = by_image.get(hashes[image.content], ())
            found |= {id: f"image of training task {task.id}" for id in same if id not in found}
    return found


def _tasks_by_run(benchmark: Sequence[Task], ngram_words: int) -> dict[int, set[str]]:
    asked: dict[int, set[str]] = {}
    said: dict[int, set[str]] = {}
    for task in benchmark:
        for number, text in enumerate(_texts(task)):
            for run in _runs(text, ngram_words):
                (said if number else asked).setdefault(run, set()).add(task.id)
    for run, ids in said.items():
        if len(ids) == 1:
            asked.setdefault(run, set()).update(ids)
    return asked


def _texts(task: Task) -> list[str]:
    return [task.question, *(message.text for message in task.follow_ups)]


def pixel_hash(image: EncodedImage) -> str:
    """A hash of size and RGB pixels: the same for one picture in two lossless encodings."""
    picture = image.decode()
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def _runs(text: str, ngram_words: int) -> Iterator[int]:
    length = _length(text, ngram_words)
    return _hashes(_words(text), length) if length else iter(())


def _length(text: str, ngram_words: int) -> int:
    """How many words must be shared; 0 where a text is too short to tell."""
    words = len(_words(text))
    return min(words, ngram_words) if words >= MIN_WORDS else 0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _hashes(words: Sequence[str], length: int) -> Iterator[int]:
    return (hash(tuple(words[start : start + length])) for start in range(len(words) - length + 1))
