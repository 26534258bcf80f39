from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.assertion import Assertion, classify
from tests.bounded import bounded_work

CASES = Path(__file__).with_name("assertion_cases")
_MENTION = re.compile(r"(?<!\*\*NAME)(?<!\*\*AGE)(?<!\*\*DATE)\[([^\]]*)\]")


@dataclass(frozen=True)
class Case:
    """A sentence with one marked mention, and what it asserts of it, in the judgement of whoever wrote it."""

    text: str
    start: int
    end: int
    expected: Assertion

    def __str__(self) -> str:
        return f"{self.text[: self.start]}[{self.text[self.start : self.end]}]{self.text[self.end :]}"


def _cases(name: str) -> list[Case]:
    with (CASES / name).open(encoding="utf-8", newline="") as file:
        return [_case(**row) for row in csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE)]


def _case(text: str, **expected: str) -> Case:
    text = text.replace("\\n", "\n")
    (mention,) = _MENTION.finditer(text)
    plain = text[: mention.start()] + mention[1] + text[mention.end() :]
    return Case(plain, mention.start(), mention.start() + len(mention[1]), Assertion(**expected))  # type: ignore[arg-type]


def _marked(text: str) -> Assertion:
    case = _case(text, polarity="", temporality="", experiencer="")
    return classify(case.text, case.start, case.end)


def _negation_f1(cases: Sequence[Case]) -> float:
    said = [(classify(case.text, case.start, case.end).polarity, case.expected.polarity) for case in cases]
    hits = sum(pair == ("negated", "negated") for pair in said)
    return 2 * hits / sum(pair.count("negated") for pair in said)


DEVELOPMENT = _cases("development.tsv")
HELD_OUT = _cases("held_out.tsv")


def test_the_development_set() -> None:
    misjudged = [str(case) for case in DEVELOPMENT if classify(case.text, case.start, case.end) != case.expected]
    assert not misjudged, "\n".join(misjudged)


def test_the_held_out_set() -> None:
    """233 sentences that were written last and run once: 229 polarities right, an F1 of .984 on negation.

    The module's first, shorter list of cues had .826 on them. Three kinds of cue that this run found missing were then
    added, so that by now they guard against getting worse, and are no estimate any more.
    """
    said = [classify(case.text, case.start, case.end) for case in HELD_OUT]
    misjudged = [
        str(case) for case, found in zip(HELD_OUT, said, strict=True) if found.polarity != case.expected.polarity
    ]
    assert len(misjudged) <= 4, "\n".join(misjudged)
    assert _negation_f1(HELD_OUT) >= 0.984
    for dimension in ("temporality", "experiencer"):
        wrong = [
            str(case)
            for case, found in zip(HELD_OUT, said, strict=True)
            if getattr(found, dimension) != getattr(case.expected, dimension)
        ]
        assert len(wrong) <= 1, wrong


def test_reports_that_were_labelled_before_any_was_run() -> None:
    """287 sentences in the style of discharge summaries, radiology and pathology, each labelled before it was run: 278
    polarities were right at first, an F1 of .976 on negation (186 hits, 8 misses, 1 too many).

    They are no blind set: whoever wrote them had seen the neutral phrases and the barriers, and for the last 117 all
    cues. What the run found missing, where it was of a kind, was then added. Four stay: two that a reader might label
    otherwise, and ``worked up for [X], which was negative`` and ``as was [X]``, which would need syntax.
    """
    with (CASES / "reports.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    cases = [_case(**row, temporality="", experiencer="") for row in rows]
    misjudged = [
        str(case) for case in cases if classify(case.text, case.start, case.end).polarity != case.expected.polarity
    ]
    assert len(misjudged) <= 4, "\n".join(misjudged)
    assert _negation_f1(cases) >= 0.989  # 190 hits, 4 misses: 380 / 384 = .9896


NEGATING = [
    "The patient denies {}.",
    "No {} were seen.",
    "ROS: negative for {} at this time.",
    "He has had no {} since discharge.",
    "He presented without {}.",
    "no evidence of {} .",
    "The patient has no {} but does have hives.",
]
AFFIRMING = [
    "The patient complains of {}.",
    "Denies hives but has {}.",
    "No hives. There is {}.",
    "He reports {}, no hives.",
    "Positive for {} without hives.",
]
FINDINGS = [
    "fever",
    "chest pain",
    "shortness of breath",
    "blood in the stool",
    "changes in vision",
    "loss of consciousness",
    "clear discharge",
    "soft tissue swelling",
    "recent travel",
    "pain after eating",
    "suicidal thoughts",
    "pneumothorax",
    "small bowel obstruction",
    "free air",
    "rebound tenderness",
    "dizziness when standing",
    "multiple sclerosis",
    "nausea",
    "wheezing",
    "palpitations",
    "rash",
]


@given(
    template=st.sampled_from(NEGATING + AFFIRMING),
    findings=st.lists(st.sampled_from(FINDINGS), min_size=1, max_size=7, unique=True),
    last=st.sampled_from([", or ", ", and ", " or ", " and ", ", "]),
    which=st.integers(min_value=0, max_value=6),
)
def test_a_list_is_negated_or_affirmed_throughout(template: str, findings: list[str], last: str, which: int) -> None:
    mention = findings[which % len(findings)]
    listed = last.join(filter(None, [", ".join(findings[:-1]), findings[-1]]))
    text = template.format(listed)
    start = text.index(mention, template.index("{"))
    said = classify(text, start, start + len(mention)).polarity
    assert said == ("negated" if template in NEGATING else "affirmed"), text


class TestPerturbation:
    @given(case=st.sampled_from(DEVELOPMENT), spaces=st.lists(st.sampled_from(["  ", " \t", "   "]), min_size=1))
    def test_white_space_changes_nothing(self, case: Case, spaces: list[str]) -> None:
        def widened(text: str) -> str:
            widths = iter(spaces * (len(text) + 1))
            return re.sub(" ", lambda _: next(widths), text)

        before, mention, after = case.text[: case.start], case.text[case.start : case.end], case.text[case.end :]
        text = widened(before) + mention + widened(after)
        start = len(widened(before))
        assert classify(text, start, start + len(mention)) == case.expected

    @given(
        case=st.sampled_from([case for case in DEVELOPMENT if "\n" not in case.text]),
        how=st.sampled_from(["upper", "lower"]),
    )
    def test_case_changes_nothing(self, case: Case, how: str) -> None:
        assert classify(getattr(case.text, how)(), case.start, case.end) == case.expected

    @given(
        case=st.sampled_from([case for case in DEVELOPMENT if case.text.endswith(".")]),
        trailing=st.sampled_from(
            [
                " No fever.",
                " Pneumonia was ruled out.",
                " It cannot be excluded.",
                "\nMother had diabetes.",
                " If so, return.",
            ]
        ),
    )
    def test_a_sentence_behind_changes_nothing(self, case: Case, trailing: str) -> None:
        assert classify(case.text + trailing, case.start, case.end) == case.expected

    @given(
        case=st.sampled_from([case for case in DEVELOPMENT if case.text[0].isupper()]),
        leading=st.sampled_from(["He was seen. ", "No fever. ", "Rule out pneumonia.\n", "Denies chest pain.\n\n"]),
    )
    def test_a_sentence_in_front_changes_nothing(self, case: Case, leading: str) -> None:
        shift = len(leading)
        assert classify(leading + case.text, case.start + shift, case.end + shift) == case.expected


class TestSections:
    def test_a_heading_holds_to_the_end_of_its_paragraph(self) -> None:
        assert _marked("FAMILY HISTORY: Noted above. [Diabetes].").experiencer == "other"
        assert _marked("FAMILY HISTORY: Noted above.\n\n[Diabetes].").experiencer == "patient"
        assert _marked("FAMILY HISTORY: None. ASSESSMENT: [Diabetes].").experiencer == "patient"

    def test_the_past_ends_where_a_sentence_has_a_predicate(self) -> None:
        assert _marked("PAST MEDICAL HISTORY: Gout. [Diabetes].").temporality == "historical"
        assert _marked("PAST MEDICAL HISTORY: Gout. She presents with [fever].").temporality == "recent"


@pytest.mark.parametrize(
    "filler", ["no ", "(", ") ", ", ", "has ", "not been ", "fever, and ", "- ", "no. ", "?", "\n", "[**", "a/"]
)
def test_a_long_text_takes_no_longer_than_its_bounded_part(filler: str) -> None:
    text = filler * 50_000 + "fever" + filler * 50_000
    start = len(filler) * 50_000
    with bounded_work():
        classify(text, start, start + 5)
