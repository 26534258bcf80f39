"""Images inside a page with boxes over them: as data URIs, shrunk where large, within a budget for the whole page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from entities.reference import Coordinates
from rl.report.markup import Markup, element
from rl.report.regions import DrawnBox, picture
from rl.types import EncodedImage

_SHRINK_FROM_BYTES = 60_000
_LONGEST_SIDE = 640  # twice what the page shows, for dense screens


class Pictures:
    """Turns images into elements until ``budget_bytes`` of data URIs are spent; later ones are named only.

    ``coordinates`` are those that the policy writes boxes in.
    """

    def __init__(self, budget_bytes: int = 4_000_000, *, coordinates: Coordinates = "pixel") -> None:
        self.coordinates = coordinates
        self._left = budget_bytes

    def element(self, image: EncodedImage, alt: str, boxes: Sequence[DrawnBox] = ()) -> Markup:
        content, kind = _shrunk(image)
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        if len(uri) > self._left:
            return element(
                "div", f"Image {image.source or image.sha256[:12]} stays in the run's folder", class_="noimage"
            )
        self._left -= len(uri)
        return picture(image, uri, alt, boxes)


def _shrunk(image: EncodedImage) -> tuple[bytes, str]:
    kind = "jpeg" if image.content.startswith(b"\xff\xd8\xff") else "png"
    if len(image.content) <= _SHRINK_FROM_BYTES:
        return image.content, kind
    from PIL import Image

    with Image.open(io.BytesIO(image.content), formats=("PNG", "JPEG")) as opened:
        opened.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        encoded = io.BytesIO()
        opened.convert("RGB").save(encoded, "JPEG", quality=82)
    return encoded.getvalue(), "jpeg"
