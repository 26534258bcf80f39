"""Boxes in the trace: inside the image, and where the reference has a region."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from entities.match import fold
from entities.reference import Box, Coordinates, Region
from rewards.case_reference import case_reference
from rewards.claims.claim import Claim, around, bounded, claim_text, sentences
from rewards.scorer import Trajectory
from rewards.trace import Span
from rl.types import EncodedImage

_NUMBER = r"-?\d{1,6}(?:\.\d{1,9})?"
_GAP = r"\s{0,3}[,;]\s{0,3}"
_BOX = re.compile(
    rf"[\[(]\s{{0,3}}(?:(?:box|image[ ]\d{{1,3}})\s?:\s?)?({_NUMBER}){_GAP}({_NUMBER})"
    rf"(?:{_GAP}|\s?[)\]]{_GAP}[(\[]\s?)({_NUMBER}){_GAP}({_NUMBER})\s{{0,3}}[\])]",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"\bimage\s{1,2}(?P<number>\d{1,3})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CitedBox:
    """A box [left, top, right, bottom] as written, the image that its sentence names, and the words near it."""

    box: Box
    span: Span
    image: int
    near: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionClaims:
    """Boxes ``[left, top, right, bottom]`` that a trace points at; ``coordinates`` are those that the policy writes in.

    A box that leaves its image, or is inside out, is refuted. Where the task has regions, one that overlaps a region by
    ``min_iou`` (intersection over union) is supported, one that touches none is refuted, one between is uncertain; a
    sentence that names the label of a region is held against regions of that label alone. A box in an image that a tool
    showed is uncertain.
    """

    coordinates: Coordinates = "pixel"
    min_iou: float = 0.5

    def expected(self, trajectory: Trajectory) -> dict[str, float] | None:
        task = trajectory.task
        if "regions" not in task.reference:
            return None
        return {f"reference.regions.{number}": 1.0 for number in range(len(case_reference(task).regions))}

    def find(self, trajectory: Trajectory) -> list[Claim]:
        regions, images = case_reference(trajectory.task).regions, trajectory.images
        boxes = bounded(cited_boxes(claim_text(trajectory).before_answer))
        by_tools = _shown_by_tools(trajectory)
        return [self._claim(cited, regions, images, by_tools=by_tools) for cited in boxes]

    def _claim(
        self, cited: CitedBox, regions: Sequence[Region], images: Sequence[EncodedImage], *, by_tools: Collection[int]
    ) -> Claim:
        shares = shares_of_image(cited.box, self.coordinates, cited.image, images)
        if problem := problem_with(shares, cited.image, images):
            where = f"image {cited.image}"
            return Claim(
                kind="region", subject=repr(cited.box), span=cited.span, verdict="refuted", source=where, note=problem
            )
        if cited.image in by_tools:
            return Claim(
                kind="region",
                subject=f"image {cited.image} {cited.box!r}",
                span=cited.span,
                verdict="uncertain",
                source=f"image {cited.image}",
                note="an image that a tool showed: the reference has no region of it",
            )
        overlaps = [
            (iou(shares, shares_of_image(region.box, region.coordinates, region.image, images)), number)
            for number, region in _of_label(cited, regions)
            if region.image == cited.image
        ]
        overlap, number = max(overlaps, default=(0.0, -1), key=lambda each: (each[0], -each[1]))
        source = f"reference.regions.{number}" if overlap > 0 else "reference.regions"
        return Claim(
            kind="region",
            subject=source if overlap > 0 else repr(cited.box),
            span=cited.span,
            verdict="supported" if overlap >= self.min_iou - 1e-9 else "uncertain" if overlap > 0 else "refuted",
            source=source,
            note=f"overlaps by {overlap:.2f}" if overlap > 0 else "overlaps no region of the reference",
            covers=frozenset({source}),
        )


def _shown_by_tools(trajectory: Trajectory) -> frozenset[int]:
    """Which of the trajectory's images, from 0, tools showed."""
    shown = ["user"] * len(trajectory.task.images)
    shown += [told.message.role for told in trajectory.observations for _ in told.message.images]
    return frozenset(number for number, role in enumerate(shown) if role == "tool")


def cited_boxes(text: Span) -> Iterator[CitedBox]:
    """Four numbers in brackets: ``[l, t, r, b]``, ``(l, t), (r, b)``, ``[box: l, t, r, b]``; images count from 1."""
    for sentence in sentences(text):
        image = _IMAGE.search(sentence.text)
        for match in _BOX.finditer(sentence.text):
            left, top, right, bottom = map(float, match.groups())
            yield CitedBox(
                box=(left, top, right, bottom),
                span=Span(match.start() + sentence.start, match.end() + sentence.start, match[0]),
                image=int(image["number"]) - 1 if image else 0,
                near=around(sentence.text, *match.span()),
            )


def shares_of_image(box: Box, coordinates: Coordinates, image: int, images: Sequence[EncodedImage]) -> Box:
    """The box in shares of its image's width and height; pixels stay pixels where there is no such image."""
    if coordinates == "normalized" or (coordinates == "pixel" and not 0 <= image < len(images)):
        return box
    width = height = 1000.0
    if coordinates == "pixel":
        width, height = float(images[image].width), float(images[image].height)
    left, top, right, bottom = box
    return left / width, top / height, right / width, bottom / height


def problem_with(shares: Box, image: int, images: Sequence[EncodedImage]) -> str:
    """Why the box, in shares of the image, can show nothing; empty where it can."""
    left, top, right, bottom = shares
    if right <= left or bottom <= top:
        return "has no area: left < right and top < bottom"
    if not images:
        return ""
    if not 0 <= image < len(images):
        return f"there is no image {image + 1}"
    if min(left, top) < -1e-6 or max(right, bottom) > 1 + 1e-6:
        return f"leaves the image of {images[image].width}x{images[image].height} pixels"
    return ""


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def _of_label(cited: CitedBox, regions: Sequence[Region]) -> list[tuple[int, Region]]:
    said = f" {fold(cited.near)} "
    numbered = list(enumerate(regions))
    named = [(number, region) for number, region in numbered if region.label and f" {fold(region.label)} " in said]
    return named or numbered
