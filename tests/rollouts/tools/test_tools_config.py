"""Tools as a config names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl.errors import ConfigError
from rollouts.tools.config import build_tools
from rollouts.tools.images import Zoom

OWN = """
from dataclasses import dataclass
from rollouts.tools.tool import Tool, ToolResult

@dataclass(frozen=True, kw_only=True)
class Dose(Tool):
    description = "The usual daily dose of a drug."
    parameters = {"type": "object"}
    table: dict[str, str]

    def call(self, arguments, scene):
        return ToolResult(text=self.table["aspirin"])

@dataclass(frozen=True, kw_only=True)
class Odd(Dose):
    parameters = {"type": "objekt"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ward_tools.py").write_text(OWN)
    (tmp_path / "texts.jsonl").write_text('{"title": "a", "text": "b"}')
    return tmp_path


def test_built_in_tools_and_those_of_the_user_are_built_from_what_the_config_says(folder: Path) -> None:
    specs = {
        "look": {"use": "zoom", "side": 100},
        "dose": {"use": "ward_tools:Dose", "table": {"aspirin": "100 mg"}},
        "texts": {"use": "look_up", "path": "texts.jsonl"},
    }
    tools = build_tools(specs, folder)
    assert tools["look"] == Zoom(side=100)
    assert tools["dose"].call({}, None).text == "100 mg"  # type: ignore[arg-type]
    assert tools["texts"].path == folder / "texts.jsonl"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("zoom", "zoom", "rollouts.tools.zoom must be a mapping with the key `use`; got 'zoom'"),
        ("zoom", {"side": 3}, "rollouts.tools.zoom must be a mapping with the key `use`"),
        ("a b", {"use": "zoom"}, "a tool's name has up to 64 letters, digits, _ and -; got 'a b'"),
        ("z", {"use": "zom"}, "rollouts.tools.z.use: no tool is called 'zom'; known: .* Did you mean 'zoom'?"),
        ("z", {"use": "zoom", "sides": 3}, "rollouts.tools.z.sides: Zoom has no such parameter; allowed: side"),
        ("z", {"use": "zoom", "side": "big"}, "rollouts.tools.z.side must be an integer; got 'big'"),
        ("z", {"use": "zoom", "side": 9}, r"rollouts.tools.z: side must be in \[28, 4096\] pixels; got 9"),
        ("z", {"use": "zoom", "coordinates": "mm"}, "rollouts.tools.z.coordinates must be one of 'pixel'"),
        ("t", {"use": "look_up", "path": "gone.jsonl"}, "rollouts.tools.t.path: there is no file 'gone.jsonl'"),
        ("d", {"use": "ward_tools:Dos"}, "ward_tools has no 'Dos'; its tools: Dose, Odd. Did you mean 'Dose'?"),
        ("d", {"use": "ward_tools:dataclass"}, "not a subclass of rollouts.tools.tool.Tool"),
        (
            "d",
            {"use": "ward_tools:Odd", "table": {}},
            "its parameters cannot be checked: this is no JSON Schema: 'objekt' is not valid",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(folder: Path, name: str, spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tools({name: spec}, folder)
