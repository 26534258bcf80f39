"""Tools that show an image of the scene anew: a part of it enlarged, or all of it turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, cos, floor, radians, sin
from typing import Any, Literal

import PIL.Image

from rl.types import EncodedImage
from rollouts.images import encode
from rollouts.tools.tool import Scene, Tool, ToolRefusal, ToolResult

MAX_CANVAS_PIXELS = 1 << 23
IMAGE_NUMBER = {"type": "integer", "minimum": 1, "description": "which image, from 1 in the order they were shown"}


def scene_image(arguments: Mapping[str, Any], scene: Scene) -> tuple[int, EncodedImage]:
    """The image that a call is about, and its number: the first unless the call names another. Raises ToolRefusal."""
    number = int(arguments.get("image", 1))  # to JSON Schema 2.0 is an integer, too
    if not number <= len(scene.images):
        raise ToolRefusal(f"there is no image {number}; {len(scene.images)} were shown so far")
    return number, scene.images[number - 1]


@dataclass(frozen=True, kw_only=True)
class Zoom(Tool):
    """Shows a region of an image, enlarged until its longer side has ``side`` pixels."""

    description = "Look at a region of an image more closely: it is cut out, enlarged and shown as a new image."
    parameters = {  # noqa: RUF012 - shared by all, changed by none
        "type": "object",
        "properties": {
            "image": IMAGE_NUMBER,
            "box": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 4,
                "maxItems": 4,
                "description": "the region as [left, top, right, bottom]",
            },
        },
        "required": ["box"],
        "additionalProperties": False,
    }

    side: int = 448
    coordinates: Literal["pixel", "normalized", "per_mille"] = "pixel"
    """Of ``box``: pixels of the image, or shares of its width and height, out of 1 or of 1,000."""

    def __post_init__(self) -> None:
        if not 28 <= self.side <= 4096:
            raise ValueError(f"side must be in [28, 4096] pixels; got {self.side}")

    def declaration(self, name: str) -> dict[str, Any]:
        units = {"pixel": "pixels", "normalized": "shares of width and height (0 to 1)", "per_mille": "0 to 1000"}
        declared = super().declaration(name)
        declared["function"]["description"] += f" Coordinates are in {units[self.coordinates]}."
        return declared

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        number, image = scene_image(arguments, scene)
        left, top, right, bottom = box = self._pixels(arguments["box"], image)
        picture = image.decode()
        scale = picture.width // image.width  # a tiny image is decoded enlarged, by a whole factor
        region = picture.crop((left * scale, top * scale, right * scale, bottom * scale))
        factor = max(1.0, self.side / max(right - left, bottom - top))
        size = max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor))
        enlarged = region.resize(size, PIL.Image.Resampling.BICUBIC)
        return _shown(enlarged, f"the region {list(box)} of image {number}")

    def _pixels(self, box: Sequence[float], image: EncodedImage) -> tuple[int, int, int, int]:
        """Whole pixels that cover the box, within the image. Raises ToolRefusal where it holds none."""
        of_whole = {"pixel": (image.width, image.height), "normalized": (1, 1), "per_mille": (1000, 1000)}
        extents = (image.width, image.height) * 2
        shares = zip(box, of_whole[self.coordinates] * 2, extents, strict=True)
        inside = [min(max(at / whole * extent, 0.0), float(extent)) for at, whole, extent in shares]
        left, top, right, bottom = floor(inside[0]), floor(inside[1]), ceil(inside[2]), ceil(inside[3])
        if left >= right or top >= bottom:
            raise ToolRefusal(
                f"box {list(box)} holds nothing of the image ({image.width} x {image.height} pixels); a box is "
                f"[left, top, right, bottom] with left < right and top < bottom"
            )
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Rotate(Tool):
    """Shows an image turned clockwise, the canvas as large as it needs, what it did not hold black.

    A long and narrow image needs a canvas of many times its own size, which is bounded.
    """

    description = "Turn an image clockwise; it is shown as a new image."
    parameters = {  # noqa: RUF012 - shared by all, changed by none
        "type": "object",
        "properties": {"image": IMAGE_NUMBER, "degrees": {"type": "number", "minimum": -360, "maximum": 360}},
        "required": ["degrees"],
        "additionalProperties": False,
    }

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        number, image = scene_image(arguments, scene)
        degrees = arguments["degrees"]
        along, across = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
        canvas = (image.width * along + image.height * across) * (image.width * across + image.height * along)
        if canvas > max(MAX_CANVAS_PIXELS, 1.01 * image.width * image.height):
            raise ToolRefusal(f"image {number} turned {degrees:g} degrees would have {canvas:,.0f} pixels, too many")
        turned = image.decode().rotate(-degrees, resample=PIL.Image.Resampling.BICUBIC, expand=True)
        return _shown(turned, f"image {number}, turned {degrees:g} degrees clockwise")


def _shown(picture: PIL.Image.Image, what: str) -> ToolResult:
    return ToolResult(text=what, images=(encode(picture, source=what),))
