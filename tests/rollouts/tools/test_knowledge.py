"""Passages found by their words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.errors import ConfigError
from rollouts.tools.knowledge import LookUp
from rollouts.tools.tool import Scene, ToolRefusal
from tests.samples import a_task

SCENE = Scene(task=a_task(), images=())
PASSAGES = [
    ("Pleural effusion", "Fluid around the lung. Blunts the costophrenic angle."),
    ("Pneumothorax", "Air around the lung. The pleural line is seen."),
    ("Fracture", "A broken bone."),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n\n".join(json.dumps({"title": title, "text": text}) for title, text in PASSAGES))
    return path


def found(path: Path, query: str, passages: int = 3) -> list[str]:
    told = LookUp(path=path, passages=passages).call({"query": query}, SCENE).text
    return [passage.split("\n")[0] for passage in told.split("\n\n")]


def test_the_passages_that_fit_best_come_first(path: Path) -> None:
    assert found(path, "pleural effusions") == [
        "Pleural effusion",
        "Pneumothorax",
    ]  # both name the pleura, one the rest
    assert found(path, "pleural effusions", passages=1) == ["Pleural effusion"]


@pytest.mark.parametrize(
    "query", ['lung" OR "bone', "bone NEAR(", "title:bone -broken*", "bone ^ {", "'; drop table--bone"]
)
def test_a_query_is_words_and_no_language(path: Path, query: str) -> None:
    assert "Fracture" in found(path, query)


@pytest.mark.parametrize("query", ["kidney", "?!", "_", "\ud800"])
def test_where_nothing_is_found_it_says_so(path: Path, query: str) -> None:
    with pytest.raises(ToolRefusal, match="nothing was found about"):
        found(path, query)


@pytest.mark.parametrize("line", ["{", "[1]", '{"title": "x"}', '{"title": "x", "text": 3}'])
def test_a_file_of_something_else_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"title": "a", "text": "b"}\n' + line)
    with pytest.raises(ConfigError, match=r"x\.jsonl:2"):
        LookUp(path=tmp_path / "x.jsonl").prepare()
