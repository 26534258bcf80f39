from __future__ import annotations

from typing import get_args

import pytest

from rewards.answer import CHECKERS
from rewards.claims.claim import ClaimKindName
from rewards.config import BUILT_IN
from rewards.rubrics.rules import RULE_NAMES
from rewards.tools.catalog import catalog, listing
from rewards.tools.terminal import Paint

CHAPTERS = {chapter.kind: chapter for chapter in catalog()}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("scorers", BUILT_IN),
        ("answers", CHECKERS),
        ("rules", RULE_NAMES),
        ("claims", get_args(ClaimKindName)),
    ],
)
def test_all_that_exists_is_listed_with_what_it_is(kind: str, names: tuple[str, ...]) -> None:
    entries = {entry.name: entry for entry in CHAPTERS[kind].entries}
    assert set(names) <= entries.keys()
    assert [name for name, entry in entries.items() if not entry.summary] == []


def test_a_scorer_is_listed_with_its_parameters_and_their_defaults() -> None:
    hallucination = next(entry for entry in CHAPTERS["scorers"].entries if entry.name == "hallucination")
    assert "form: Literal['share', 'recall', 'f1', 'crimson', 'saliency'] = 'share'" in hallucination.details
    assert "max_refuted: int | None = None" in hallucination.details
    assert "turns = 'each'" in hallucination.details


def test_a_rule_is_listed_with_what_it_takes() -> None:
    length = next(entry for entry in CHAPTERS["rules"].entries if entry.name == "length")
    assert length.details == ("length: {unit: words | chars | tokens, min?: integer, max?: integer}",)


def test_the_list_fits_on_80_columns() -> None:
    assert max(map(len, listing(catalog(), paint=Paint()))) <= 80
