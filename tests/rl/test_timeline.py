"""When phases ran, as it is kept: what a resumed run does again is cut, and a torn last line is left out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rl.timeline import Span, Timeline, read_timeline


def a_span(began_s: float, ended_s: float) -> Span:
    return Span(phase="update", began_s=began_s, ended_s=ended_s)


def test_spans_read_back_by_step_and_a_resumed_run_cuts_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    with Timeline(path) as timeline:
        timeline.record(2, [a_span(3, 4)])
        timeline.record(1, [a_span(1, 2), Span(phase="generate", began_s=0, ended_s=1, worker=3)])
    assert read_timeline(path) == {
        1: [a_span(1, 2), Span(phase="generate", began_s=0, ended_s=1, worker=3)],
        2: [a_span(3, 4)],
    }
    with Timeline(path, resume_at=2) as timeline:
        timeline.record(2, [a_span(9, 10)])
    assert list(read_timeline(path)) == [1, 2] and read_timeline(path)[2] == [a_span(9, 10)]
    with path.open("a") as file:
        file.write('{"step": 3, "phase": "upd')
    assert list(read_timeline(path)) == [1, 2]


def test_what_runs_inside_is_recorded_when_it_ends_and_not_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    before_s = time.time()
    with Timeline(path) as timeline:
        with timeline.during("publish", 4) as publishing:
            assert read_timeline(path) == {}
        with pytest.raises(RuntimeError), timeline.during("update", 5):
            raise RuntimeError
    assert read_timeline(path) == {4: [publishing]}
    assert before_s <= publishing.began_s <= publishing.ended_s <= time.time()


def test_of_a_wait_only_what_lies_after_a_moment_counts() -> None:
    assert [a_span(2, 5).after(moment_s) for moment_s in (0, 3, 7)] == [3, 2, 0]
