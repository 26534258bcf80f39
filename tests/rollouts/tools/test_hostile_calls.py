"""What a policy may write must neither fail a built-in tool, which would spare it its reward, nor the engine, nor cost
much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.errors import ConfigError
from rl.types import EncodedImage, Measurement
from rollouts.images import encode
from rollouts.tools.config import build_tools
from rollouts.tools.tool import Scene
from rollouts.tools.toolbox import CLOSE, OPEN, Answered, Toolbox, ToolLimits
from tests.bounded import bounded_work
from tests.samples import a_task

LIMITS = ToolLimits(calls=100, images=5, image_pixels=4_194_304, timeout_s=5.0)
IMAGES = tuple(encode(PIL.Image.new("RGB", size, "gray")) for size in ((64, 48), (1, 1), (28, 3), (300, 2)))
SCENE = Scene(
    task=a_task(
        images=IMAGES,
        record={"heart_rate": Measurement(value=72.0, unit="1/min")},
        extra={"mm": 0.5, "name": "unknown"},
    ),
    images=IMAGES,
)

edges = st.sampled_from([0, -0.0, 5e-324, 1e-300, 0.1 + 0.2, 1.0, 2.0, 48.0, 64, 999.9999999, 1e17, -1e17])
numbers = st.one_of(edges, st.integers(-5, 400), st.floats(-10, 1100))
words = st.one_of(
    st.text(max_size=60), st.sampled_from(["heart_rate", "NEAR", '"', "*", "a AND b", "title:x", "_", "٣"])
)
points = st.lists(numbers, min_size=2, max_size=2)
numbered = {"image": st.one_of(st.integers(1, 4), st.sampled_from([1.0, 4.0, 1.5, 0, 5, 10**17, True, None, "1"]))}
boxed = numbered | {"box": st.lists(numbers, min_size=4, max_size=4)}
measured = numbered | {"start": points, "end": points}

TOOLS: dict[str, tuple[dict[str, Any], dict[str, st.SearchStrategy[Any]]]] = {
    "zoom": ({"use": "zoom"}, boxed),
    "zoom_normalized": ({"use": "zoom", "coordinates": "normalized", "side": 28}, boxed),
    "zoom_per_mille": ({"use": "zoom", "coordinates": "per_mille", "side": 600}, boxed),
    "rotate": ({"use": "rotate"}, numbered | {"degrees": numbers}),
    "measure": ({"use": "measure_length"}, measured),
    "measure_mm": ({"use": "measure_length", "spacing": "mm"}, measured),
    "measure_unknown": ({"use": "measure_length", "spacing": "name"}, measured),
    "read": ({"use": "read_record"}, {"names": st.lists(words, max_size=4)}),
    "look_up": ({"use": "look_up", "path": "texts.jsonl"}, {"query": words}),
}


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory: pytest.TempPathFactory) -> Toolbox:
    folder = tmp_path_factory.mktemp("texts")
    passage = {"title": "Heart rate", "text": "A rate of 72 is usual. NEAR the title, 3."}
    (folder / "texts.jsonl").write_text(json.dumps(passage) + "\n")
    return Toolbox(build_tools({name: spec for name, (spec, _) in TOOLS.items()}, folder), LIMITS)


def answers(toolbox: Toolbox, *texts: str, scene: Scene = SCENE) -> list[Answered]:
    calls = toolbox.begin("".join(f"{OPEN}{text}{CLOSE}" for text in texts), scene, made=0)
    return calls.answers() if calls else []


def a_call(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments})


@pytest.mark.parametrize("name", TOOLS)
def test_no_arguments_make_a_built_in_tool_fail(toolbox: Toolbox, name: str) -> None:
    required = {key: value for key, value in TOOLS[name][1].items() if key != "image"}
    optional = {key: value for key, value in TOOLS[name][1].items() if key == "image"}

    @settings(max_examples=60, deadline=None)
    @given(st.fixed_dictionaries(required, optional=optional))
    def holds(arguments: dict[str, Any]) -> None:
        (answered,) = answers(toolbox, a_call(name, arguments))
        assert not answered.broken, answered.call.result
        for image in answered.images:
            assert image.width * image.height <= LIMITS.image_pixels
            assert max(image.width, image.height) <= 100 * min(image.width, image.height)
            image.decode()

    holds()


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [OPEN, CLOSE, "<think>", "</think>", '{"name": "zoom", "arguments": ', '{"box": [0, 0, 9, 9]}', "}"]
        ),
        st.sampled_from(
            ["[" * 3000, '{"a":' * 400, r'"\ud800"', "NaN", "1e999", "-" * 50, "\x00", "9" * 5000, '"name"']
        ),
        st.text(max_size=20),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(pieces)
def test_no_text_fails_the_reading_of_calls_and_what_is_read_can_be_logged(parts: list[str]) -> None:
    toolbox = Toolbox(build_tools({"zoom": {"use": "zoom"}}), LIMITS, unsayable=("<|im_end|>", "�"))
    text = "".join(parts).encode(errors="replace").decode()  # what an engine writes is UTF-8
    calls = toolbox.begin(text, SCENE, made=0)
    for answered in calls.answers() if calls else []:
        assert not answered.broken and "�" not in answered.call.result
        written = [answered.call.name, json.dumps(answered.call.arguments, ensure_ascii=False), answered.call.result]
        assert pa.array(written).to_pylist() == written


def test_turning_an_image_again_and_again_does_not_make_it_grow_without_bound(toolbox: Toolbox) -> None:
    images: tuple[EncodedImage, ...] = (encode(PIL.Image.new("RGB", (1000, 1000))),)
    for _ in range(3):  # 1, 2, 4 and 8 million pixels
        (answered,) = answers(
            toolbox,
            a_call("rotate", {"image": len(images), "degrees": 45}),
            scene=Scene(task=SCENE.task, images=images),
        )
        assert not answered.broken
        images = (*images, *answered.images)
    assert answered.call.result.startswith("refused: ")


def test_a_narrow_image_is_not_laid_on_a_canvas_of_thousands_of_times_its_size(toolbox: Toolbox) -> None:
    scene = Scene(task=SCENE.task, images=(encode(PIL.Image.new("RGB", (40_000, 90))),))  # 45 degrees: 28,348 a side
    (answered,) = answers(toolbox, a_call("rotate", {"degrees": 45}), scene=scene)
    assert answered.call.result == "refused: image 1 turned 45 degrees would have 803,604,050 pixels, too many"


@pytest.mark.parametrize(
    "turn",
    [
        (OPEN + "x") * 100_000,
        (OPEN + CLOSE) * 2_000,
        OPEN + a_call("read", {"names": [1] * 6000}) + CLOSE,
        OPEN + a_call("read", {"names": ["x" * 19_000]}) + CLOSE,
        (OPEN + a_call("look_up", {"query": "rate " * 190}) + CLOSE) * 100,
        (OPEN + a_call("zoom_per_mille", {"box": [0, 0, 1e17, 1e17]}) + CLOSE) * 20,
        OPEN + "[" * 19_000 + CLOSE,
        OPEN + '{"a":' * 3_000 + CLOSE,
    ],
    ids=lambda turn: turn[:60],
)
def test_what_a_turn_of_calls_costs_is_bounded(toolbox: Toolbox, turn: str) -> None:
    with bounded_work():
        calls = toolbox.begin(turn, SCENE, made=0)
        assert not any(answered.broken for answered in (calls.answers() if calls else []))


DECLARED = """
from dataclasses import dataclass
from typing import Any
from rollouts.tools.tool import Tool, ToolResult

@dataclass(frozen=True, kw_only=True)
class Declared(Tool):
    description = "Takes what its config says."

    schema: dict[str, Any]

    def declaration(self, name):
        return {"type": "function", "function": {"name": name, "description": "", "parameters": self.schema}}

    def call(self, arguments, scene):
        return ToolResult(text="called")
"""


def declared(folder: Path, schema: Mapping[str, Any]) -> Toolbox:
    (folder / "declared_tool.py").write_text(DECLARED)
    return Toolbox(build_tools({"it": {"use": "declared_tool:Declared", "schema": schema}}, folder), LIMITS)


def test_a_pattern_of_a_schema_takes_no_exponential_time(tmp_path: Path) -> None:
    toolbox = declared(tmp_path, {"properties": {"word": {"type": "string", "pattern": "^(a+)+$"}}})
    with bounded_work():
        refused, called = answers(toolbox, a_call("it", {"word": "a" * 400 + "!"}), a_call("it", {"word": "aaa"}))
    assert "does not match '^(a+)+$'" in refused.call.result and called.call.result == "called"


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"word": {"$ref": "http://127.0.0.1:1/schema.json"}}},
        {"properties": {"word": {"$ref": "file:///etc/passwd"}}},
        {"patternProperties": {"^(a+)+$": {}}},
        {"properties": {"word": {"pattern": "(?=a)"}}},
    ],
)
def test_a_schema_that_leads_outside_or_has_no_bound_is_a_config_error(tmp_path: Path, schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"rollouts.tools.it: its parameters cannot be checked: "):
        declared(tmp_path, schema)


@pytest.mark.parametrize("definitions", [{}, {"it": {"$ref": "#/$defs/it"}}])
def test_a_schema_that_leads_nowhere_or_around_in_circles_is_the_tools_fault(
    tmp_path: Path, definitions: dict[str, Any]
) -> None:
    toolbox = declared(tmp_path, {"$defs": definitions, "properties": {"word": {"$ref": "#/$defs/it"}}})
    (answered,) = answers(toolbox, a_call("it", {"word": "x"}))
    assert answered.broken
