"""Regions enlarged and images turned: which pixels are shown, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from rl.types import EncodedImage
from rollouts.images import encode
from rollouts.tools.images import Rotate, Zoom
from rollouts.tools.tool import Scene, ToolRefusal
from tests.samples import a_task


def quarters(width: int = 120, height: int = 80) -> EncodedImage:
    """Red, green / blue, white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return encode(Image.fromarray(pixels))


SCENE = Scene(task=a_task(), images=(quarters(), quarters(60, 40)))


def shown(tool: Any, scene: Scene = SCENE, **arguments: Any) -> Image.Image:
    (image,) = tool.call(arguments, scene).images
    picture: Image.Image = image.decode()
    assert picture.size == (image.width, image.height)
    return picture


class TestZoom:
    @pytest.mark.parametrize(
        ("coordinates", "box"),
        [
            ("pixel", [60, 0, 120, 40]),
            ("pixel", [60.0, -9, 999, 40]),
            ("normalized", [0.5, 0, 1, 0.5]),
            ("per_mille", [500, 0, 1000, 500]),
        ],
    )
    def test_a_region_is_enlarged_to_its_longer_side(self, coordinates: Any, box: list[float]) -> None:
        picture = shown(Zoom(side=300, coordinates=coordinates), box=box)
        assert picture.size == (300, 200)  # 60 x 40 pixels, five times
        assert {picture.getpixel(at) for at in ((0, 0), (299, 0), (0, 199), (299, 199))} == {(0, 255, 0)}

    def test_a_region_larger_than_that_is_shown_as_it_is(self) -> None:
        assert shown(Zoom(side=50), box=[0, 0, 120, 80]).size == (120, 80)

    def test_another_image_is_named_by_its_number(self) -> None:
        result = Zoom(side=40).call({"image": 2, "box": [0, 0, 30, 20]}, SCENE)
        assert result.images[0].width == 40 and result.text == "the region [0, 0, 30, 20] of image 2"

    def test_a_part_of_a_pixel_counts_as_the_whole(self) -> None:
        assert Zoom(side=28).call({"box": [60.9, 0.2, 61.1, 1.5]}, SCENE).text == "the region [60, 0, 62, 2] of image 1"

    def test_a_tiny_image_is_cut_where_its_own_pixels_say(self) -> None:
        """One of 20 x 10 pixels is shown to the policy enlarged to 40 x 20 (56 // 20 = 2)."""
        scene = Scene(task=a_task(), images=(quarters(20, 10),))
        picture = shown(Zoom(side=100), scene, box=[10, 5, 20, 10])
        assert picture.size == (100, 50)
        assert picture.getpixel((50, 25)) == (255, 255, 255)

    @pytest.mark.parametrize("box", [[60, 0, 60, 40], [60, 40, 70, 30], [130, 0, 140, 9], [-9, -9, -1, -1]])
    def test_a_box_that_holds_nothing_is_refused(self, box: list[float]) -> None:
        with pytest.raises(ToolRefusal, match=r"holds nothing of the image \(120 x 80 pixels\)"):
            Zoom().call({"box": box}, SCENE)

    def test_an_image_that_was_not_shown_is_refused(self) -> None:
        with pytest.raises(ToolRefusal, match="there is no image 3; 2 were shown so far"):
            Zoom().call({"image": 3, "box": [0, 0, 1, 1]}, SCENE)

    def test_the_policy_is_told_which_coordinates_are_meant(self) -> None:
        declared = Zoom(coordinates="per_mille").declaration("look")["function"]
        assert declared["name"] == "look" and "0 to 1000" in declared["description"]


class TestRotate:
    @pytest.mark.parametrize(
        ("degrees", "size", "corner"),
        [(90, (80, 120), (0, 0, 255)), (180, (120, 80), (255, 255, 255)), (-90, (80, 120), (0, 255, 0))],
    )
    def test_it_turns_clockwise(self, degrees: float, size: tuple[int, int], corner: tuple[int, ...]) -> None:
        """The lower left corner, blue, is the upper left one after a quarter turn clockwise."""
        picture = shown(Rotate(), degrees=degrees)
        assert picture.size == size
        assert picture.getpixel((5, 5)) == corner

    def test_a_slanted_image_has_room_for_its_corners(self) -> None:
        picture = shown(Rotate(), degrees=30)
        # 120·cos 30° + 80·sin 30° = 143.9 across, 120·sin 30° + 80·cos 30° = 129.3 down.
        assert abs(picture.width - 144) <= 2 and abs(picture.height - 129) <= 2
        assert picture.getpixel((0, 0)) == (0, 0, 0)
