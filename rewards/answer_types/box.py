"""Boxes in an image."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from rewards.answer_types.reading import Check, key_number
from rewards.scorer import InvalidInput
from rl.types import Task

_NUMBER = r"-?\d{1,6}(?:\.\d{1,9})?"
_GAP = r"[\s,;]{1,4}"
_FOUR = re.compile(rf"[\[(]\s{{0,3}}({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER})\s{{0,3}}[\])]")
_CORNERS = re.compile(rf"\(\s?({_NUMBER}){_GAP}({_NUMBER})\s?\)[\s,;]{{0,3}}\(\s?({_NUMBER}){_GAP}({_NUMBER})\s?\)")
_LOOSE = re.compile(rf"(?<![\w.])({_NUMBER})(?![\w.]*\w)")
_COORDINATES = ("pixel", "normalized", "per_mille")
MAX_BOXES = 200


def check(given: str, task: Task) -> Check:
    """Key: ``{"value": [left, top, right, bottom] or a list of these, "threshold"?, "coordinates"?,
    "answer_coordinates"?, "image_size"?: [width, height]}``.

    Boxes are matched one to one so that the sum of their intersections over union is largest. Without a ``threshold``
    the value is that sum over the larger number of boxes; with one, the F1 of the pairs that reach it. ``coordinates``
    (``pixel``, ``normalized`` to 1, ``per_mille``) are the key's. ``answer_coordinates`` are the answer's; where they
    are left out, the key's, or normalised ones if none is above 1. Pixels meet the others where the image's size is
    known, from the key or from the task's first image.
    """
    expected = _key_boxes(task)
    found = _read(given)
    if len(found) > MAX_BOXES:
        return Check(0.0, f"lists {len(found)} boxes", read="too many")
    if not found:
        return Check(0.0, "holds no box [left, top, right, bottom]")
    boxes = _in_shares(found, task) * _scale(task, _coordinates(task, "coordinates"))
    overlaps = _matched(_pairwise_iou(boxes, expected))
    most = max(len(boxes), len(expected))
    threshold = key_number(task, "threshold")
    if threshold is None:
        value = float(overlaps.sum()) / most
    else:
        value = 2 * int((overlaps >= threshold - 1e-9).sum()) / (len(boxes) + len(expected))
    reason = f"{len(boxes)} boxes for {len(expected)}, overlaps {np.round(np.sort(overlaps)[::-1][:8], 3).tolist()}"
    metrics = {"iou": float(overlaps.sum()) / most, "boxes": float(len(boxes))}
    return Check(min(1.0, value), reason, read=repr(np.round(boxes, 4).tolist()), metrics=metrics)


def boxes_in_shares(given: str, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of an answer and those of the key, [box, 4] each, in shares of the image's width and height.

    Raises InvalidInput for a key that holds none, and where the size of the image is needed and not known.
    """
    found, expected = _read(given)[:MAX_BOXES], _key_boxes(task)
    answered = _in_shares(found, task) if found else np.empty((0, 4))
    return answered, expected / _scale(task, _coordinates(task, "coordinates"))


def _in_shares(found: list[list[float]], task: Task) -> np.ndarray:
    boxes = np.asarray(found, dtype=float)
    return boxes / _scale(task, _coordinates_of(boxes, task))


def _key_boxes(task: Task) -> np.ndarray:
    value: Any = task.answer.get("value")
    try:
        boxes = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        boxes = np.empty(0)
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    well_formed = boxes.ndim == 2 and boxes.shape[1] == 4 and len(boxes) and np.isfinite(boxes).all()
    if not well_formed or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise InvalidInput(
            f"answer.value of task {task.id!r} must be one or several [left, top, right, bottom], left < right and "
            f"top < bottom; got {value!r}"
        )
    for name in ("coordinates", "answer_coordinates"):
        _scale(task, _coordinates(task, name))
    return boxes


def _coordinates(task: Task, name: str) -> str:
    coordinates = task.answer.get(name) or task.answer.get("coordinates") or "pixel"
    if coordinates not in _COORDINATES:
        raise InvalidInput(
            f"answer.{name} of task {task.id!r} must be one of {', '.join(_COORDINATES)}; got {coordinates!r}"
        )
    return str(coordinates)


def _read(given: str) -> list[list[float]]:
    """Boxes in any of the usual spellings: ``[l, t, r, b]``, ``(l, t), (r, b)``, or bare numbers in fours."""
    for pattern in (_FOUR, _CORNERS):
        if found := [[float(number) for number in match.groups()] for match in pattern.finditer(given)]:
            return found
    numbers = [float(match[1]) for match in _LOOSE.finditer(given)]
    return [numbers[at : at + 4] for at in range(0, len(numbers), 4)] if len(numbers) % 4 == 0 else []


def _coordinates_of(boxes: np.ndarray, task: Task) -> str:
    """Those that the answer is in. Without a word on it, no box of a pixel or less is meant."""
    said = _coordinates(task, "answer_coordinates")
    in_pixels = _coordinates(task, "coordinates") == "pixel"
    if "answer_coordinates" in task.answer or (in_pixels and _image_size(task) is None):
        return said
    if boxes.max() <= 1.0:
        return "normalized"
    return "pixel" if said == "normalized" and _image_size(task) is not None else said


def _scale(task: Task, coordinates: str) -> np.ndarray:
    """What the image's right and lower edges are in these coordinates, for left, top, right and bottom."""
    if coordinates != "pixel":
        return np.full(4, 1.0 if coordinates == "normalized" else 1000.0)
    size = _image_size(task)
    kinds = {_coordinates(task, name) for name in ("coordinates", "answer_coordinates")}
    if size is None and len(kinds) > 1:
        raise InvalidInput(
            f"task {task.id!r} has boxes in pixels and in {max(kinds)} and no image nor answer.image_size"
        )
    return np.full(4, 1.0) if size is None else np.asarray([*size, *size], dtype=float)


def _image_size(task: Task) -> tuple[float, float] | None:
    size = task.answer.get("image_size") or next(((image.width, image.height) for image in task.images), None)
    if size is None:
        return None
    sides = (
        [side for side in size if isinstance(side, int | float) and side > 0] if isinstance(size, list | tuple) else []
    )
    if len(sides) != 2:
        raise InvalidInput(f"answer.image_size of task {task.id!r} must be [width, height]; got {size!r}")
    return sides[0], sides[1]


def _pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union. Shapes: [box, 4] and [other, 4] to [box, other]; an inside-out box has no area."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    area = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    other_area = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / (area[:, None] + other_area[None] - shared)


def _matched(overlaps: np.ndarray) -> np.ndarray:
    """The overlaps of the one-to-one matching with the largest sum."""
    from scipy.optimize import linear_sum_assignment  # .2 s: only where boxes are scored

    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return overlaps[rows, columns]
