"""A trajectory that called tools: the calls and what they answered stand behind the turn that made them, as theirs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rl.report.run import write_report
from rl.types import Group, Message, Observation, ScoredTrajectory, ToolCall, Unscored
from rl.view.index import LoggedFile
from rl.view.trajectory import open_trajectory, trajectory_view
from rollouts.log import LoggedStep, write_step
from tests.rl.view.conftest import a_case, an_image
from tests.samples import a_trajectory

LOOK = '<tool_call>{"name": "zoom", "arguments": {"box": [0, 0, 8, 8]}}</tool_call>'
PIECES = re.compile(
    r'<div class="(trace|told by-tools|told)">|<img[^>]* alt="([^"]*)"|<p class="dim">(\w+, (?:in|after) turn \d)'
)
CALLS = (
    ToolCall(name="zoom", arguments={"box": [0, 0, 8, 8]}, result="Image 2 (8 x 8 pixels)", turn=0),
    ToolCall(name="dose", arguments={"drug": "<b>"}, result="refused: no drug is called '<b>'", ok=False, turn=0),
    ToolCall(name="", arguments={}, result="refused: a call is JSON", ok=False, turn=2),
)


def a_dialogue() -> ScoredTrajectory:
    """Two calls in the first turn, answered with an image; a doubt after the second; the third ends in a call."""
    answered = Message(text="Image 2 (8 x 8 pixels)\n\nrefused", images=(an_image(),), role="tool")
    doubt = Message(text="Are you sure?", images=(an_image(),))
    places = len(LOOK), len(LOOK) + 2 + len("yes")
    observations = tuple(
        Observation(message=message, place=place) for message, place in zip((answered, doubt), places, strict=True)
    )
    task = replace(a_case("called"), follow_ups=(doubt,))
    text = f"{LOOK}\n\nyes\n\nno"
    trajectory = a_trajectory(text, task=task, observations=observations, tool_calls=CALLS)
    return ScoredTrajectory(trajectory=trajectory, reward=0.5, scores={})


def a_step(item: ScoredTrajectory | Unscored) -> LoggedStep:
    kept = {"scored": (item,)} if isinstance(item, ScoredTrajectory) else {"scored": (), "unscored": (item,)}
    return LoggedStep(step=1, groups=[Group(task=item.trajectory.task, **kept)])  # type: ignore[arg-type]


def shown(folder: Path, item: ScoredTrajectory | Unscored) -> str:
    write_step(folder, a_step(item))
    return trajectory_view(
        open_trajectory(folder, LoggedFile(run="mine", kind="train", step=1, written=0, size_bytes=0), 0), []
    )


def test_calls_and_what_they_showed_stand_behind_their_turn_and_are_not_the_users_word(tmp_path: Path) -> None:
    page = shown(tmp_path, a_dialogue())
    assert [next(filter(None, piece)) for piece in PIECES.findall(page)] == [
        *("image 1 of case called", "trace", "told by-tools", "Tools, in turn 1", "image 2 of case called"),
        *("trace", "told", "User, after turn 1", "image 3 of case called"),
        *("trace", "told by-tools", "Tools, in turn 2"),
    ]
    calls = re.findall(r'<div class="call"><p><b>(.*?)</b> <code>(.*?)</code></p><p class="question">(.*?)</p>', page)
    refused = '<span class="failure">not answered </span>'
    assert calls == [
        ("zoom", "{&quot;box&quot;: [0, 0, 8, 8]}", "Image 2 (8 x 8 pixels)"),
        (
            "dose",
            "{&quot;drug&quot;: &quot;&lt;b&gt;&quot;}",
            f"{refused}refused: no drug is called &#x27;&lt;b&gt;&#x27;",
        ),
        ("no call", "{}", f"{refused}refused: a call is JSON"),
    ]
    assert "2 turns · 3 tool calls, 2 not answered" in page
    assert "<summary>Tool calls" not in page  # each stands in its place
    conversation = page[page.index("<summary>Conversation") :]
    assert re.findall(r"<li><b>(\w+)</b>", conversation)[-5:] == ["assistant", "tool", "assistant", "user", "assistant"]


def test_a_report_shows_calls_in_their_place(tmp_path: Path) -> None:
    write_step(tmp_path, a_step(a_dialogue()))
    report = write_report(tmp_path).read_text(encoding="utf-8")
    pieces = [next(filter(None, piece)) for piece in PIECES.findall(report)]
    start = pieces.index("told by-tools")
    assert pieces[start - 1 : start + 3] == ["trace", "told by-tools", "Tools, in turn 1", "image 2 of case called"]
    assert report.count("<b>zoom</b> <code>") == 1


def test_what_tools_told_is_shown_where_the_log_does_not_say_who_called(tmp_path: Path) -> None:
    item = a_dialogue()
    unknown = replace(item.trajectory, tool_calls=tuple(replace(call, turn=-1) for call in CALLS))
    page = shown(tmp_path, replace(item, trajectory=unknown))
    assert '<p class="question">Image 2 (8 x 8 pixels)\n\nrefused</p>' in page
    assert '<summary>Tool calls <span class="dim">3</span>' in page


def test_the_call_that_broke_a_trajectory_off_is_shown(tmp_path: Path) -> None:
    broken = ToolCall(name="dose", arguments={}, result="OSError: " + "x" * 3000, ok=False, turn=0)
    trajectory = a_trajectory("ask", finish_reason="abort", tool_calls=(broken,))
    page = shown(tmp_path, Unscored(trajectory=trajectory, scores={}, reason="aborted"))
    assert f"OSError: {'x' * 1991} … 1,009 more characters" in page


def test_what_the_user_says_after_a_call_whose_result_was_told_nowhere_is_shown_too(tmp_path: Path) -> None:
    doubt = Message(text="Are you sure?")
    trajectory = a_trajectory("ask\n\nyes", observations=(Observation(message=doubt, place=3),), tool_calls=CALLS[:1])
    page = shown(tmp_path, ScoredTrajectory(trajectory=trajectory, reward=0.5, scores={}))
    assert [next(filter(None, piece)) for piece in PIECES.findall(page)] == [
        *("trace", "told by-tools", "Tools, in turn 1", "told", "User, after turn 1", "trace"),
    ]


def test_a_trace_that_is_cut_says_so_last(tmp_path: Path) -> None:
    item = a_dialogue()
    long = replace(item.trajectory, text=f"{LOOK}\n\nyes\n\n{'no ' * 9000}")
    assert "Tools, in turn 2" not in shown(tmp_path, replace(item, trajectory=long))
