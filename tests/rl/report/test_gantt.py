"""What ran when, as a picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from rl.report.gantt import STEPS_SHOWN, WORKERS_SHOWN, gantt
from rl.timeline import Phase, Span


def a_span(phase: Phase, began_s: float, ended_s: float, *, worker: int = -1) -> Span:
    return Span(phase=phase, began_s=100 + began_s, ended_s=100 + ended_s, worker=worker)


AHEAD = {
    1: [a_span("generate", 0, 4, worker=0), a_span("update", 4, 6), a_span("publish", 6, 7)],
    2: [a_span("generate", 3, 8, worker=0), a_span("update", 8, 10)],
}


def bars(figure: str) -> dict[str, ElementTree.Element]:
    """The rectangles by what the pointer is told of them."""
    groups = ElementTree.fromstring(figure).iter("g")
    return {group.findtext("title", ""): rect for group in groups if (rect := group.find("rect")) is not None}


def lanes(figure: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(figure).iter("text") if text.get("text-anchor") == "end"]


def test_a_bar_lies_where_its_time_is_and_what_runs_at_once_lies_one_below_the_other() -> None:
    drawn = bars(gantt(AHEAD))
    assert list(drawn) == [
        "step 1, generate: 4 s, from 0 s on",
        "step 2, generate: 5 s, from 3 s on",
        "step 1, update: 2 s, from 4 s on",
        "step 2, update: 2 s, from 8 s on",
        "step 1, publish: 1 s, from 6 s on",
    ]
    first, second, update, *_ = drawn.values()
    # Ten seconds over 1,180 - 84 - 12 units: 108.4 a second, from 84 on.
    assert float(second.attrib["x"]) == pytest.approx(84 + 3 * 108.4, abs=0.01)
    assert float(second.attrib["width"]) == pytest.approx(5 * 108.4, abs=0.01)
    assert float(second.attrib["y"]) == float(first.attrib["y"]) + 19  # both at once, so a row each
    assert float(update.attrib["x"]) == pytest.approx(84 + 4 * 108.4, abs=0.01)


def test_it_says_for_how_much_of_the_time_engines_and_learner_were_at_work() -> None:
    # The engines wrote from 0 to 8, the learner computed from 4 to 6 and 8 to 10; of ten seconds both from 4 to 6.
    assert "Of 10 s the engines wrote in 80%, the learner computed in 40%, both at once in 20%." in gantt(AHEAD)


def test_only_the_last_steps_and_the_first_workers_are_shown() -> None:
    many = {
        step: [a_span("generate", step, step + 1, worker=worker) for worker in range(WORKERS_SHOWN + 3)]
        for step in range(1, 40)
    }
    figure = gantt(many)
    assert lanes(figure) == [f"engine {worker}" for worker in range(WORKERS_SHOWN)]
    assert len(bars(figure)) == STEPS_SHOWN  # eight rectangles each, told alike
    assert "steps 34 to 39" in figure and "3 further engines are not shown." in figure


def test_without_a_timeline_there_is_no_figure() -> None:
    assert gantt({}) == "" and gantt({3: []}) == ""
