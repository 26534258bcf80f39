from __future__ import annotations

import random

import pytest

from entities.match import Matcher, fold
from tests.bounded import bounded_work

NAMES = [
    ("pleural effusion", "effusion"),
    ("effusion", "effusion"),
    ("heart", "heart"),
    ("heart attack", "infarction"),
    ("myocardial infarction", "infarction"),
    ("acute lymphoblastic leukemia", "leukemia"),
    ("ALL", "leukemia"),
    ("metastasis", "metastasis"),
    ("Hodgkin's lymphoma", "hodgkin"),
    ("St. Louis encephalitis", "encephalitis"),
    ("T-cell", "t cell"),
    ("HER2+ carcinoma", "her2+"),
    ("HER2- carcinoma", "her2-"),
]


def found(text: str) -> list[tuple[str, str]]:
    return [(text[each.start : each.end], each.entity_id) for each in Matcher(NAMES).find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small pleural effusion.", [("pleural effusion", "effusion")]),
        ("PLEURAL  \n EFFUSIONS", [("PLEURAL  \n EFFUSIONS", "effusion")]),
        ("pleural-effusion", [("pleural-effusion", "effusion")]),
        ("after a heart attack the heart", [("heart attack", "infarction"), ("heart", "heart")]),
        ("heart attacked", [("heart", "heart")]),
        ("hearty, sweetheart", []),
        ("Metastases in a T cell", [("Metastases", "metastasis"), ("T cell", "t cell")]),
        ("acute lymphoblastic leukaemia", [("acute lymphoblastic leukaemia", "leukemia")]),
        ("Hodgkin’s lymphoma, Hodgkins lymphoma, Hodgkin lymphomas", [
            ("Hodgkin’s lymphoma", "hodgkin"), ("Hodgkins lymphoma", "hodgkin"), ("Hodgkin lymphomas", "hodgkin"),
        ]),
        ("all of the ALL", [("ALL", "leukemia")]),
        ("Saint Louis; St Louis encephalitis", [("St Louis encephalitis", "encephalitis")]),
        ("St. Louis encephalitis", [("St. Louis encephalitis", "encephalitis")]),
        ("Cause: pleural. Effusion?", [("Effusion", "effusion")]),
        ("- myocardial\n- infarction", []),
        ("HER2+ carcinoma, HER2- carcinoma", [("HER2+ carcinoma", "her2+"), ("HER2- carcinoma", "her2-")]),
        ("", []),
    ],
)  # fmt: skip
def test_names_are_found_whole_and_longest_first(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("masses", "mass"), ("biopsies", "biopsy"), ("emboli", "embolus"), ("viruses", "virus"), ("causes", "cause"),
        ("metastases", "metastasis"), ("diverticula", "diverticulum"), ("tumours", "tumor"), ("diseases", "disease"),
        ("oedema", "edema"), ("Ménière's disease", "Meniere disease"), ("MIs", "MI"), ("ﬁbrosis", "fibrosis"),
    ],
)  # fmt: skip
def test_inflections_of_one_word_fold_alike(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize(
    ("one", "other"), [("hypertension", "hypotension"), ("AIDS", "AID"), ("ileum", "ilium"), ("abscess", "absce")]
)
def test_different_words_stay_different(one: str, other: str) -> None:
    assert fold(one) != fold(other)


def test_a_whole_name_is_looked_up_in_any_case() -> None:
    matcher = Matcher(NAMES)
    assert matcher.entities_named("all") == matcher.entities_named("ALL") == ("leukemia",)
    assert matcher.entities_named("heart attack, acute") == ()


def test_the_automaton_agrees_with_trying_every_name_at_every_word() -> None:
    """The reference takes, from left to right, the longest name that begins at a word."""
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta"]
    names = {" ".join(draw.choices(words, k=draw.randint(1, 4))) for _ in range(25)}
    matcher = Matcher((name, name) for name in sorted(names))
    for _ in range(200):
        said = draw.choices([*words, "other"], k=30)
        expected, at = [], 0
        while at < len(said):
            length = max((n for n in range(1, 5) if " ".join(said[at : at + n]) in names), default=0)
            expected += [" ".join(said[at : at + length])] * bool(length)
            at += length or 1
        assert [mention.entity_id for mention in matcher.find(" ".join(said))] == expected


@pytest.mark.parametrize(
    "text", ["pleural " * 40_000, "a" * 300_000, "\n" + " " * 300_000, ".\n" * 150_000, "'s" * 150_000, "é" * 300_000]
)
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    matcher = Matcher([*NAMES, *((" ".join(["pleural"] * n), str(n)) for n in range(2, 30))])
    with bounded_work():
        matcher.find(text)
