"""Values of the record and lengths in an image."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from rl.types import Measurement
from rollouts.images import encode
from rollouts.tools.record import MeasureLength, ReadRecord
from rollouts.tools.tool import Scene, ToolRefusal
from tests.samples import a_task

RECORD = {"radius": Measurement(value=18.0, unit="um"), "worst radius": Measurement(value=25.25)}
IMAGE = encode(Image.new("RGB", (100, 80)))


def scene(**fields: Any) -> Scene:
    task = a_task(images=(IMAGE,), **fields)
    return Scene(task=task, images=(IMAGE, IMAGE))


class TestReadRecord:
    def test_values_are_told_with_their_units_in_the_order_asked(self) -> None:
        told = ReadRecord().call({"names": ["worst radius", "radius"]}, scene(record=RECORD))
        assert told.text == "- worst radius 25.25\n- radius 18 um"

    def test_what_the_record_does_not_have_is_refused_with_what_it_has(self) -> None:
        with pytest.raises(ToolRefusal, match="has no area, colour; it has radius, worst radius"):
            ReadRecord().call({"names": ["area", "radius", "colour"]}, scene(record=RECORD))
        with pytest.raises(ToolRefusal, match="it has nothing"):
            ReadRecord().call({"names": ["area"]}, scene())


class TestMeasureLength:
    def test_without_a_spacing_it_is_in_pixels(self) -> None:
        assert MeasureLength().call({"start": [10, 10], "end": [40, 50]}, scene()).text == "50.0 pixels"  # 30, 40, 50

    @pytest.mark.parametrize(("spacing", "told"), [(0.5, "25.0 mm"), ([0.1, 0.2], "8.5 mm")])
    def test_with_one_in_millimetres(self, spacing: Any, told: str) -> None:
        """30 · 0.1 = 3 across and 40 · 0.2 = 8 down are √73 = 8.54."""
        tool = MeasureLength(spacing="pixel_mm")
        assert tool.call({"start": [40, 10], "end": [10, 50]}, scene(extra={"pixel_mm": spacing})).text == told

    def test_a_point_outside_is_refused(self) -> None:
        with pytest.raises(ToolRefusal, match=r"\[10, 81\] lies outside of image 1: 100 x 80 pixels"):
            MeasureLength().call({"start": [10, 81], "end": [0, 0]}, scene())

    def test_millimetres_of_an_image_that_a_tool_made_are_refused(self) -> None:
        with pytest.raises(ToolRefusal, match="measure in the original"):
            MeasureLength(spacing="mm").call({"image": 2, "start": [0, 0], "end": [1, 1]}, scene(extra={"mm": 1}))

    @pytest.mark.parametrize("spacing", [None, 0, "0.5", [1], [1, float("nan")]])
    def test_in_a_task_without_a_size_of_its_pixels_it_is_refused(self, spacing: Any) -> None:
        with pytest.raises(ToolRefusal, match=r"extra\.mm of task 't' must be the millimetres per pixel"):
            MeasureLength(spacing="mm").call({"start": [0, 0], "end": [1, 1]}, scene(id="t", extra={"mm": spacing}))
