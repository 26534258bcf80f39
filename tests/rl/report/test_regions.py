"""The boxes that a case and a trajectory name, drawn over the images of a report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rl.report.regions import both_boxes, drawn_boxes
from rl.report.run import write_report
from rl.types import Evidence, Group, Message, Score, ScoredTrajectory, ScoreRecord
from rollouts.log import LoggedStep, write_step
from tests.rewards.conftest import a_conversation
from tests.rl.report.test_run import ATTACK, Page
from tests.rl.view.conftest import a_box, a_case, scored

RECT = re.compile(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" class="box-([\w ]+)">')


def item(*, answer: str, cited: str = "[16, 8, 32, 16]", label: str = "mass") -> ScoredTrajectory:
    """One about an image of 64x32 pixels, whose key is the left half; the claim that cites a box is refuted."""
    task = replace(
        a_case("box"),
        answer={"type": "box", "value": [0, 0, 32, 32]},
        reference={"regions": [{"box": [16, 8, 48, 24], "label": label}]},
    )
    return scored(task, 0, 0.0, text=f"<think>A mass at {cited}.</think><answer>{answer}</answer>", refuted=1)


def step(item: ScoredTrajectory, number: int = 1, **fields: str) -> LoggedStep:
    return LoggedStep(step=number, groups=[Group(task=item.trajectory.task, scored=(item,))], **fields)  # type: ignore[arg-type]


def written(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_boxes_of_reference_answer_and_claims_are_drawn_over_a_case(tmp_path: Path, kind: str) -> None:
    write_step(tmp_path, replace(a_box(), kind=kind))
    text = written(tmp_path)
    assert RECT.findall(text) == [
        ("16", "8", "32", "16", "reference"),
        ("0", "0", "32", "32", "reference"),
        ("32", "0", "32", "32", "answer"),
        ("16", "8", "16", "8", "refuted"),
    ]
    page = Page(text)
    assert page.all("svg", "boxes")[0]["viewbox"] == "0 0 64 32"  # over the image, whatever its size on the screen
    assert [name for name in ("mass", "expected", "answer", "cited, refuted") if name not in page.text("ul")] == []


def test_before_and_after_training_each_keep_their_own_boxes_and_share_the_others(tmp_path: Path) -> None:
    write_step(tmp_path, step(item(answer="[32, 0, 64, 32]"), 0, kind="eval"))
    write_step(tmp_path, step(item(answer="[0, 0, 32, 16]"), 4, kind="eval"))
    text = written(tmp_path)
    assert RECT.findall(text) == [
        ("16", "8", "32", "16", "reference"),
        ("0", "0", "32", "32", "reference"),
        ("32", "0", "32", "32", "answer before"),
        ("16", "8", "16", "8", "refuted"),
        ("0", "0", "32", "16", "answer after"),
    ]
    assert all(f"answer, {when}" in Page(text).text("ul") for when in ("before", "after"))


def test_two_that_say_the_same_have_every_box_once() -> None:
    same = item(answer="[32, 0, 64, 32]")
    assert [box.when for box in both_boxes(same, same)] == [""] * 4


def test_boxes_of_later_turns_are_drawn_over_the_images_of_follow_ups() -> None:
    """The follow-up's image has 64x32 pixels too: [16, 8, 32, 16] is a quarter to a half of it, each way."""
    first = item(answer="none", cited="[0, 0, 16, 8]")
    told = Message(text="And here?", images=first.trajectory.task.images)
    made = a_conversation(first.trajectory, (told, "<think>Image 2 has it at [16, 8, 32, 16].</think>"))
    task = replace(made.task, reference={"regions": [{"box": [16, 8, 32, 16], "image": 1}]})
    there = Evidence(claim="x", verdict="supported", start=made.text.index("[16"), end=len(made.text))
    record = ScoreRecord(scorer="s", version="v", outcome="scored", score=Score(1.0, evidence=(there,)))
    drawn = drawn_boxes(replace(first, trajectory=replace(made, task=task), scores={"s": record}))
    assert [(box.image, box.box, box.tone) for box in drawn if box.tone != "answer"] == [
        (1, (0.25, 0.25, 0.5, 0.5), "reference"),
        (0, (0.0, 0.0, 0.5, 1.0), "reference"),  # the key
        (0, (0.0, 0.0, 0.25, 0.25), "cited"),
        (1, (0.25, 0.25, 0.5, 0.5), "supported"),
    ]


@pytest.mark.parametrize("made", ["run", "replay"])
def test_cited_boxes_are_read_in_the_coordinates_that_the_config_names(tmp_path: Path, made: str) -> None:
    run = tmp_path / "run"
    cited = item(answer="none", cited="[500, 500, 1000, 1000]")
    write_step(run, step(cited))
    (run / "config.yaml").write_text("rewards: {scorers: {facts: {use: hallucination, box_coordinates: per_mille}}}")
    if made == "replay":
        write_step(tmp_path / "replay", step(replace(cited, reward=0.5)))
        (tmp_path / "replay" / "replay.json").write_text(f'{{"source": "{run}", "scorers": {{}}}}')
    # per mille of 64x32 pixels: from (32, 16) to (64, 32)
    assert ("32", "16", "32", "16", "refuted") in RECT.findall(written(tmp_path / made))


def test_what_a_box_is_called_is_text_and_nothing_else(tmp_path: Path) -> None:
    write_step(tmp_path, step(item(answer="[32, 0, 64, 32]", label=ATTACK)))
    page = Page(written(tmp_path))
    assert len(page.all("script")) == 1 and not [image for image in page.all("img") if "onerror" in image]
    assert ATTACK in page.text("ul") and ATTACK in page.text("title")
