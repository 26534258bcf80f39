"""Tools that read what is known of the patient: fields of the record, lengths in an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot, isfinite
from typing import Any

from rl.types import Task
from rollouts.tools.images import IMAGE_NUMBER, scene_image
from rollouts.tools.tool import Scene, Tool, ToolRefusal, ToolResult

POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2, "description": "[x, y] in pixels"}


@dataclass(frozen=True, kw_only=True)
class ReadRecord(Tool):
    """Tells values of the task's record, for tasks whose question does not."""

    description = "Read measurements of the patient's record by their names."
    parameters = {  # noqa: RUF012 - shared by all, changed by none
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 50}},
        "required": ["names"],
        "additionalProperties": False,
    }

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        record = scene.task.record
        if unknown := [name for name in arguments["names"] if name not in record]:
            raise ToolRefusal(f"the record has no {', '.join(unknown)}; it has {', '.join(record) or 'nothing'}")
        lines = (f"- {name} {record[name].value:g} {record[name].unit}".rstrip() for name in arguments["names"])
        return ToolResult(text="\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class MeasureLength(Tool):
    """Tells the distance between two points of an image, in millimetres where the task knows the size of a pixel."""

    description = "Measure the distance between two points of an image."
    parameters = {  # noqa: RUF012 - shared by all, changed by none
        "type": "object",
        "properties": {"image": IMAGE_NUMBER, "start": POINT, "end": POINT},
        "required": ["start", "end"],
        "additionalProperties": False,
    }

    spacing: str = ""
    """The column of ``extra`` that holds the millimetres per pixel: a number, or [across, down]. Empty measures in
    pixels."""

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        number, image = scene_image(arguments, scene)
        for x, y in (arguments["start"], arguments["end"]):
            if not (0 <= x <= image.width and 0 <= y <= image.height):
                raise ToolRefusal(
                    f"[{x:g}, {y:g}] lies outside of image {number}: {image.width} x {image.height} pixels"
                )
        across, down = (end - start for start, end in zip(arguments["start"], arguments["end"], strict=True))
        if not self.spacing:
            return ToolResult(text=f"{hypot(across, down):.1f} pixels")
        if number > len(scene.task.images):
            raise ToolRefusal(
                f"image {number} was made by a tool: its pixels have no known size; measure in the original"
            )
        wide, high = self._millimetres(scene.task)
        return ToolResult(text=f"{hypot(across * wide, down * high):.1f} mm")

    def _millimetres(self, task: Task) -> tuple[float, float]:
        given = task.extra.get(self.spacing)
        pair = given if isinstance(given, list | tuple) else (given, given)
        if len(pair) == 2 and all(isinstance(each, int | float) and isfinite(each) and each > 0 for each in pair):
            return float(pair[0]), float(pair[1])
        raise ToolRefusal(  # a call that breaks it off would be a way out of any such task
            f"extra.{self.spacing} of task {task.id!r} must be the millimetres per pixel, a number > 0 or two; "
            f"got {given!r}"
        )
