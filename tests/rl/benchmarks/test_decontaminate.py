"""A benchmark's overlap with training tasks: runs of words, and images pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from rl.benchmarks.decontaminate import contaminated
from rl.types import EncodedImage, Message, Task
from tests.samples import a_task

STEM = "A 64 year old man presents to the emergency room with a headache and nausea today"


def an_image(*, shade: int, compress_level: int = 6) -> EncodedImage:
    content = BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(content, "PNG", compress_level=compress_level)
    return EncodedImage(content=content.getvalue(), width=4, height=3)


def asked(id: str, question: str, *images: EncodedImage, then: Sequence[str | EncodedImage] = ()) -> Task:
    """``then`` is what is said, or shown, after the answers."""
    follow_ups = [Message(text=each) if isinstance(each, str) else Message(text="", images=(each,)) for each in then]
    return a_task(id, question=question, images=images, follow_ups=tuple(follow_ups))


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


def test_what_is_asked_or_shown_later_counts_on_both_sides() -> None:
    image = an_image(shade=9)
    for training in (asked("t", STEM), asked("t", "Is it?", then=["And now?", STEM])):
        for benchmark in (asked("b", STEM), asked("b", "Is it?", then=[STEM])):
            assert contaminated([benchmark], [training]) == {"b": "words of training task t"}
    for training in (asked("t", "Was it?", image), asked("t", "Was it?", then=[image])):
        assert contaminated([asked("b", "Is it?", then=[image])], [training]) == {"b": "image of training task t"}


def test_a_doubt_that_every_task_of_a_benchmark_ends_with_says_nothing() -> None:
    doubt = "Are you really sure about that, or would you rather look again?"  # twelve words
    benchmark = [asked("a", "Is it?", then=[doubt]), asked("b", "Is it?", then=[doubt]), asked("c", doubt)]
    training = [asked("t", "Was it?", then=[doubt])]
    assert contaminated(benchmark, training) == {"c": "words of training task t"}  # where it is the question itself
    assert contaminated(benchmark[:1], training) == {"a": "words of training task t"}
