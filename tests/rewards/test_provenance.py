"""What a version is a hash of: all code and tables that a score depends on, and nothing of the service around."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from rewards.config import BUILT_IN, resolve_scorer
from rewards.provenance import _source_files, version_of
from rewards.scorer import Scorer

AROUND_THE_SCORE = frozenset(
    {"rewards", "rewards.scorer", "entities"}  # the contract
    | {"rewards.isolation", "rewards.isolation.attempt", "rewards.isolation.deadline"}  # how a verdict is waited for
    | {"rewards.cache"}  # and kept
    | {
        "rewards.config",
        "rl.plugins",
        "rewards.places",
    }  # how a config is read, and its faults are told
)


def imported_by(module: str) -> set[str]:
    """The modules of ours that one imports, at its head or inside its functions."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node not in for_types]
    ours = [node for node in froms if (node.module or "").split(".")[0] in ("rewards", "entities")]
    return {str(node.module) for node in ours}


def needed_by(module: str) -> set[str]:
    needed, waiting = set[str](), [module]
    while waiting:
        each = waiting.pop()
        if each not in needed | AROUND_THE_SCORE:
            needed.add(each)
            waiting += imported_by(each)
    return needed


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_scorer_names_every_module_that_its_score_depends_on(name: str) -> None:
    cls = resolve_scorer(name)
    named = {cls.__module__, *cls.depends_on}
    missed = {each for each in needed_by(cls.__module__) if each not in named and each.rpartition(".")[0] not in named}
    assert not missed


DISTRIBUTIONS = importlib.metadata.packages_distributions()
OUTSIDE_THE_SCORE = frozenset({"httpx2", "jsonschema", "numpy", "PyYAML"})
"""Read configs, schemas and pixels or speak to judges, whose verdicts do not depend on them."""


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_scorer_names_every_library_that_its_score_depends_on(name: str) -> None:
    cls = resolve_scorer(name)
    files = {file for module in (cls.__module__, *cls.depends_on) for file in _source_files(module)}
    imported = {each for file in files if file.suffix == ".py" for each in libraries_of(file)}
    assert imported - OUTSIDE_THE_SCORE <= set(cls.libraries)


def libraries_of(file: Path) -> set[str]:
    """The distributions that a file imports from, at its head or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {distribution for name in names for distribution in DISTRIBUTIONS.get(name.split(".")[0], [])}
    return found - {"medrl"}


def test_a_version_changes_with_that_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = resolve_scorer("hallucination")()
    before = version_of(scorer)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9" if name == "Pint" else real(name))
    assert version_of(scorer) != before


PARTS = """
from dataclasses import dataclass
from rewards.scorer import Score, Scorer, Trajectory

@dataclass(frozen=True, kw_only=True)
class Half(Scorer):
    depends_on = {depends_on}
    async def score(self, trajectory: Trajectory) -> Score:
        return Score(0.5)
"""


@pytest.mark.parametrize("table", ["words.yaml", "words.schema.json"])
@pytest.mark.parametrize("part", ["", ".words"])
def test_a_table_beside_the_code_counts_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, part: str
) -> None:
    kit = f"kit{part}_{table}".replace(".", "_")  # an import of one name would stay for the next test
    (tmp_path / f"by_{kit}.py").write_text(PARTS.format(depends_on=(kit + part,)))
    (tmp_path / kit).mkdir()
    for file in ("__init__.py", "words.py", table):
        (tmp_path / kit / file).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    scorer: Scorer = resolve_scorer(f"by_{kit}:Half")()
    before = version_of(scorer)
    assert version_of(scorer) == before
    (tmp_path / kit / table).write_text('{"type": "object"}')
    assert version_of(scorer) != before
