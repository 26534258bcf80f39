"""A benchmark's overlap with training tasks: runs of words, and images pixel by pixel."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from rl.benchmarks.decontaminate import contaminated
from rl.types import EncodedImage, Task
from tests.samples import a_task

STEM = "A 64 year old man presents to the emergency room with a headache and nausea today"


def an_image(*, shade: int, compress_level: int = 6) -> EncodedImage:
    content = BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(content, "PNG", compress_level=compress_level)
    return EncodedImage(content=content.getvalue(), width=4, height=3)


def asked(id: str, question: str, *images: EncodedImage) -> Task:
    return a_task(id, question=question, images=images)


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    words = STEM.split()
    training = [asked("t", "Before. " + " ".join(words[:13]).upper() + ", and so on")]
    assert contaminated([asked("b", STEM)], training) == {"b": "words of training task t"}
    assert not contaminated([asked("b", STEM)], [asked("t", " ".join(words[:12]) + " other words")])


def test_a_shorter_question_must_stand_there_as_a_whole() -> None:
    question = "Which nerve is compressed in carpal tunnel syndrome?"  # eight words
    assert contaminated([asked("b", question)], [asked("t", f"Tell me: {question} Thanks")])
    assert not contaminated(
        [asked("b", question)], [asked("t", "Which nerve is compressed in tarsal tunnel syndrome?")]
    )


def test_a_very_short_question_says_nothing() -> None:
    assert not contaminated([asked("b", "Is there a fracture?")], [asked("t", "Is there a fracture?")])


def test_the_same_pixels_in_another_encoding_are_the_same_image() -> None:
    one, other = an_image(shade=9, compress_level=0), an_image(shade=9, compress_level=9)
    assert one.content != other.content
    found = contaminated([asked("b", "Is it?", one)], [asked("t", "Was it?", other)])
    assert found == {"b": "image of training task t"}
    assert not contaminated([asked("b", "Is it?", one)], [asked("t", "Was it?", an_image(shade=10))])
