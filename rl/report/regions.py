"""The boxes that a case, an answer or a claim refers to, drawn over its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from entities.reference import Box, Coordinates
from rewards.answer_types.box import boxes_in_shares
from rewards.case_reference import case_reference
from rewards.claims.claim import claim_text
from rewards.claims.regions import cited_boxes, shares_of_image
from rewards.scorer import InvalidInput
from rewards.turns import parts_of
from rl.report.markup import Markup, element
from rl.report.trace import SYMBOLS
from rl.report.trajectory import all_evidence
from rl.types import EncodedImage, ScoredTrajectory, Task, Unscored

_MOST_BOXES = 60
_REFERENCE, _ANSWER, _CITED = "reference", "answer", "cited"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBox:
    """A box (left, top, right, bottom) in shares of an image's width and height. ``tone`` is ``reference``, ``answer``,
    ``cited``, or the verdict on the claim that cites it; ``when`` is ``before`` or ``after`` where only one of two
    trajectories has it."""

    image: int
    box: Box
    tone: str
    label: str
    when: str = ""


def drawn_boxes(item: ScoredTrajectory | Unscored, *, coordinates: Coordinates = "pixel") -> list[DrawnBox]:
    """The regions of the reference, the box that is the answer, and what the trace cites with its verdict.

    ``coordinates`` are those that the policy writes boxes in. What no box can be read from is not drawn.
    """
    found = chain(_reference_boxes(item.trajectory.task), _answer_boxes(item), _cited_boxes(item, coordinates))
    return list(islice(found, _MOST_BOXES))


def both_boxes(
    before: ScoredTrajectory | Unscored, after: ScoredTrajectory | Unscored, *, coordinates: Coordinates = "pixel"
) -> list[DrawnBox]:
    """The boxes of two trajectories of a case: what both have once, and what one has said to be its own."""
    earlier, later = (drawn_boxes(item, coordinates=coordinates) for item in (before, after))
    return [
        *(replace(each, when="" if each in later else "before") for each in earlier),
        *(replace(each, when="after") for each in later if each not in earlier),
    ]


def _reference_boxes(task: Task) -> Iterator[DrawnBox]:
    try:
        regions = case_reference(task).regions
    except InvalidInput:  # what it is scored by has said so
        return
    for region in regions:
        shares = shares_of_image(region.box, region.coordinates, region.image, task.all_images)
        yield DrawnBox(image=region.image, box=shares, tone=_REFERENCE, label=region.label or "reference")


def _answer_boxes(item: ScoredTrajectory | Unscored) -> Iterator[DrawnBox]:
    task = item.trajectory.task
    if task.answer.get("type") != "box":
        return
    try:
        answered, expected = boxes_in_shares(item.trajectory.answer_text or "", task)
    except InvalidInput:
        return
    for boxes, tone, label in ((expected, _REFERENCE, "expected"), (answered, _ANSWER, "answer")):
        for left, top, right, bottom in boxes.tolist():
            yield DrawnBox(image=0, box=(left, top, right, bottom), tone=tone, label=label)


def _cited_boxes(item: ScoredTrajectory | Unscored, coordinates: Coordinates) -> Iterator[DrawnBox]:
    images = item.trajectory.images
    if not images:
        return
    said = [one.evidence for one in all_evidence(item)]
    for turn in parts_of(item.trajectory, "each"):
        for cited in cited_boxes(claim_text(turn.trajectory).before_answer):
            start, end = turn.start + cited.span.start, turn.start + cited.span.end
            about = [each.verdict for each in said if each.start < end and start < each.end]
            tone = min(about, key=list(SYMBOLS).index, default=_CITED)  # the gravest, as the trace colours it
            shares = shares_of_image(cited.box, coordinates, cited.image, images)
            yield DrawnBox(image=cited.image, box=shares, tone=tone, label=f"cited {cited.span.text}")


def picture(image: EncodedImage, source: str, alt: str, boxes: Sequence[DrawnBox]) -> Markup:
    """The image at the address ``source`` with boxes over it, and a key to them."""
    drawn = element(
        "svg", *(_rectangle(each, image) for each in boxes), class_="boxes", viewBox=f"0 0 {image.width} {image.height}"
    )
    shown = element("img", src=source, alt=alt, width=image.width, height=image.height)
    kinds = dict.fromkeys((_class(each), _told(each)) for each in boxes)
    key = [element("li", element("i", class_=name), told) for name, told in kinds]
    return element(
        "figure",
        element("div", shown, drawn if boxes else "", class_="picture"),
        element("ul", *key, class_="key") if key else "",
    )


def _told(box: DrawnBox) -> str:
    told = {_REFERENCE: box.label, _ANSWER: "answer", _CITED: "cited"}.get(box.tone, f"cited, {box.tone}")
    return f"{told}, {box.when}" if box.when else told


def _class(box: DrawnBox) -> str:
    return f"box-{box.tone} {box.when}".rstrip()


def _rectangle(drawn: DrawnBox, image: EncodedImage) -> Markup:
    left, top, right, bottom = (min(max(share, 0.0), 1.0) for share in drawn.box)
    title = element("title", f"{drawn.label} ({', '.join(filter(None, (drawn.tone, drawn.when)))})")
    return element(
        "rect",
        title,
        x=left * image.width,
        y=top * image.height,
        width=max(right - left, 0.0) * image.width,
        height=max(bottom - top, 0.0) * image.height,
        class_=_class(drawn),
    )
