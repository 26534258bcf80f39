"""Markup that escapes by construction, and claims marked in the text that they were made in."""

import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from rl.report.markup import element
from rl.report.trace import MOST_CHARACTERS, ScorerEvidence, marked_trace
from rl.types import Evidence
from tests.samples import a_trajectory


class Parsed(HTMLParser):
    """All text of a piece of markup, and its elements with their attributes, as a browser would read them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text())
def test_text_and_attributes_come_out_of_markup_as_they_went_in(text: str, attribute: str) -> None:
    source = element("p", text, element("b", "x"), title=attribute or None)
    parsed = Parsed(source)
    assert parsed.text == text + "x"
    assert parsed.elements == [("p", {"title": attribute} if attribute else {}), ("b", {})]


def trace_of(text: str, *evidence: Evidence) -> str:
    return marked_trace(a_trajectory(text), [ScorerEvidence("facts", one) for one in evidence], told=())


def test_claims_are_marked_where_the_evidence_says_also_behind_wide_characters() -> None:
    text = "🩻 <think>größer < 3 µm</think>"
    start = text.index("größer")
    marked = trace_of(text, Evidence(claim="c", verdict="supported", start=start, end=start + 10, source="record.x"))
    assert '<mark class="claim supported" tabindex="0">größer &lt; ' in marked
    assert Parsed(marked).text.startswith(text[:start])


def test_where_verdicts_overlap_the_worst_colours_the_text_and_all_are_told() -> None:
    marked = trace_of(
        "abcdef",
        Evidence(claim="1", verdict="supported", start=0, end=4, note="first"),
        Evidence(claim="2", verdict="refuted", start=2, end=6, note="second"),
    )
    pieces = re.findall(r'<mark class="claim (\w+)"[^>]*>(\w+)<span class="tip".*?</mark>', marked)
    assert pieces == [("supported", "ab"), ("refuted", "cd"), ("refuted", "ef")]
    assert marked.count("first") == marked.count("second") == 2


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40)), max_size=6))
def test_marking_never_changes_the_text_whatever_the_offsets(text: str, spans: list[tuple[int, int]]) -> None:
    evidence = [Evidence(claim="", verdict="uncertain", start=start, end=end) for start, end in spans]
    bare = re.sub(
        r'<span class="tip" role="note">.*?</i></span></span>', "", trace_of(text, *evidence), flags=re.DOTALL
    )
    assert Parsed(bare).text == text


def test_evidence_about_the_whole_text_or_beyond_it_marks_nothing() -> None:
    places = [(-1, -1), (3, 3), (9, 12), (2, 1)]
    evidence = [Evidence(claim="", verdict="refuted", start=start, end=end) for start, end in places]
    assert "<mark" not in trace_of("abcdef", *evidence)


def test_a_very_long_completion_is_cut_and_says_so() -> None:
    marked = trace_of("x" * (MOST_CHARACTERS + 1234), Evidence(claim="", verdict="refuted", start=0, end=10**6))
    assert "1,234 more characters in the trajectory log" in marked
    assert marked.count("x" * 100) == MOST_CHARACTERS // 100
