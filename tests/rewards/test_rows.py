from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rewards.rows import check_rows, parse_row, read_rows, row_trajectory, score_row
from rl.errors import TaskError
from rl.types import Measurement, Outcome, Score, ScoredTrajectory, ScoreRecord, ToolCall, Unscored
from tests.rewards.conftest import MakeTrajectory

ROW: dict[str, Any] = {
    "id": "1",
    "question": "Which?",
    "completion": "<think>x</think><answer>B</answer>",
    "answer": {"type": "choice", "value": "B", "options": ["a", "b"]},
}


def written(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_a_row_becomes_the_trajectory_that_scorers_see() -> None:
    row = ROW | {
        "record": {"heart rate": {"value": 82, "unit": "bpm", "reading": "normal"}, "lactate": 1.5},
        "tool_calls": [{"name": "zoom", "result": "a nodule"}],
        "extra": {"site": "A"},
        "finish_reason": "length",
    }
    trajectory = row_trajectory(parse_row(json.dumps(row)))
    assert (trajectory.id, trajectory.task.id, trajectory.finish_reason) == ("1", "1", "length")
    assert trajectory.answer_text == "B"
    assert trajectory.task.record == {
        "heart rate": Measurement(value=82.0, unit="bpm", reading="normal"),
        "lactate": Measurement(value=1.5),
    }
    assert trajectory.tool_calls == (ToolCall(name="zoom", arguments={}, result="a nodule", ok=True),)
    assert trajectory.task.extra == {"site": "A"}
    assert trajectory.length_tokens == 0


def test_a_lone_surrogate_is_replaced_as_in_the_trajectory_store() -> None:
    line = json.dumps(ROW | {"completion": "a\ud800b"})
    assert row_trajectory(parse_row(line)).text == "a\ufffdb"


def test_a_trajectory_has_all_that_its_row_says() -> None:
    row = ROW | {
        "task_id": "case",
        "system": "Be brief.",
        "record": {"lactate": {"value": 1.5, "unit": "mmol/L", "reading": ""}},
        "rubric": [{"criterion": "c", "points": 1}],
        "images": [{"base64": base64.b64encode(png(3, 2)).decode()}],
        "reference": {"findings": ["edema", {"name": "effusion", "polarity": "negated"}], "sources": {"note": "x"}},
        "tool_calls": [{"name": "zoom", "arguments": {"box": [0, 0, 1, 1]}, "result": "", "ok": False}],
        "stratum": "B",
        "extra": {"site": "A"},
    }
    trajectory = row_trajectory(parse_row(json.dumps(row)))
    task = trajectory.task
    assert (task.id, task.system, task.stratum, task.extra) == ("case", "Be brief.", "B", {"site": "A"})
    assert task.record == {"lactate": Measurement(value=1.5, unit="mmol/L", reading="")}
    assert (task.rubric, task.reference) == (({"criterion": "c", "points": 1},), row["reference"])
    assert [image.content for image in task.images] == [png(3, 2)]
    assert trajectory.tool_calls == (ToolCall(name="zoom", arguments={"box": [0, 0, 1, 1]}, result="", ok=False),)


def test_further_turns_of_a_row_are_told_and_written(tmp_path: Path) -> None:
    (tmp_path / "slide.png").write_bytes(png(30, 20))
    told = [
        {"user": "Sure?", "completion": "<answer>A\ud800</answer>"},
        {"user": "", "images": ["slide.png"], "completion": ""},
    ]
    trajectory = row_trajectory(parse_row(json.dumps(ROW | {"turns": told})), image_folder=tmp_path)
    assert trajectory.turns == (ROW["completion"], "<answer>A\ufffd</answer>", "")
    assert [each.message.text for each in trajectory.observations] == ["Sure?", ""]
    assert [(image.width, image.height) for image in trajectory.images] == [(30, 20)]
    assert trajectory.task.follow_ups == tuple(each.message for each in trajectory.observations)


def test_what_tools_told_is_no_follow_up_and_a_call_belongs_to_its_turn(tmp_path: Path) -> None:
    (tmp_path / "zoomed.png").write_bytes(png(30, 20))
    turns = [
        {"tool": "closer", "images": ["zoomed.png"], "completion": "seen"},
        {"user": "Sure?", "completion": "yes"},
    ]
    row = ROW | {"turns": turns, "tool_calls": [{"name": "zoom", "result": "closer", "turn": 0}]}
    trajectory = row_trajectory(parse_row(json.dumps(row)), image_folder=tmp_path)
    assert [(each.message.role, each.message.text) for each in trajectory.observations] == [
        ("tool", "closer"),
        ("user", "Sure?"),
    ]
    assert [each.text for each in trajectory.task.follow_ups] == ["Sure?"]
    assert [(image.width, image.height) for image in trajectory.images] == [(30, 20)]
    assert [call.turn for call in trajectory.tool_calls] == [0]
    row["tool_calls"][0]["turn"] = 3
    with pytest.raises(ValueError, match=r"tool_calls\[0\]\.turn must be < 3, the number of turns; got 3"):
        row_trajectory(row, image_folder=tmp_path)


def test_the_token_count_of_a_row_is_the_length_that_is_shaped() -> None:
    trajectory = row_trajectory(ROW | {"length_tokens": 300, "max_tokens": 512})
    assert (trajectory.length_tokens, trajectory.sampling.max_tokens) == (300, 512)


def test_an_image_is_read_from_the_folder_of_the_rows_or_from_the_row(tmp_path: Path) -> None:
    (tmp_path / "slide.png").write_bytes(png(30, 20))
    row = ROW | {"images": ["slide.png", {"base64": base64.b64encode(png(5, 4)).decode()}]}
    sizes = [(image.width, image.height) for image in row_trajectory(row, image_folder=tmp_path).task.images]
    assert sizes == [(30, 20), (5, 4)]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("slide.png", "send the content as"),
        ({"base64": "%%%"}, "not base64"),
        ({"base64": base64.b64encode(b"GIF89a").decode()}, "no PNG or JPEG"),
    ],
)
def test_an_image_that_cannot_be_had_is_named(entry: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        row_trajectory(ROW | {"images": [entry]})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON: "),
        ("[]", "is not of type 'object'"),
        (json.dumps(ROW | {"compleation": ""}), "unknown key 'compleation'.*Did you mean 'completion'"),
        (json.dumps({"id": "1"}), "'question' is a required property"),
        (json.dumps(ROW | {"answer": {"value": "B"}}), "answer: 'type' is a required property"),
        (json.dumps(ROW | {"id": 7}), "id: 7 is not of type 'string'"),
        (json.dumps(ROW | {"record": {"lactate": "high"}}), "record.lactate: 'high' is not of type"),
        (json.dumps(ROW | {"turns": [{"user": "Sure?"}]}), r"turns\[0\]: 'completion' is a required property"),
        (json.dumps(ROW | {"turns": [{"user": "", "completion": "", "x": 1}]}), r"turns\[0\]: unknown key 'x'"),
        (json.dumps(ROW | {"turns": [{"completion": ""}]}), r"turns\[0\]: .* one of the keys `user` and `tool`"),
        (
            json.dumps(ROW | {"turns": [{"user": "", "tool": "", "completion": ""}]}),
            "one of the keys `user` and `tool`",
        ),
        (json.dumps(ROW | {"length_tokens": 3}), "'max_tokens' is a dependency of 'length_tokens'"),
        (json.dumps(ROW)[:-1] + ', "id": "2"}', "the key 'id' stands there twice"),
        (json.dumps(ROW)[:-1] + ', "record": {"x": NaN}}', "NaN is not JSON"),
        (json.dumps(ROW)[:-1] + ', "record": {"x": 1e999}}', "too large"),
        (json.dumps(ROW)[:-1] + ', "extra": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, "nested too deeply"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, json.dumps(ROW), "", line)
    with pytest.raises(TaskError, match=f"rows.jsonl:3: .*{said}"):
        list(read_rows(path))


def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(TaskError, match=r"rows.jsonl:1: not UTF-8: byte 9 is 0xff"):
        list(read_rows(path))


def test_an_id_that_occurs_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(ROW), json.dumps(ROW | {"id": "2"}), json.dumps(ROW))
    with pytest.raises(TaskError, match=r"rows.jsonl:3: the id '1' was used on line 1"):
        list(check_rows(path))


@pytest.mark.parametrize("name", ["missing.jsonl", "empty.jsonl"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TaskError, match=name):
        list(check_rows(tmp_path / name))


def record(outcome: Outcome) -> ScoreRecord:
    score = Score(0.5, reason="half") if outcome == "scored" else None
    return ScoreRecord(scorer="a", version="v", outcome=outcome, score=score, reason="" if score else "why")


def test_a_reward_is_written_with_every_score_behind_it(trajectory: MakeTrajectory) -> None:
    scored = ScoredTrajectory(trajectory=trajectory("x"), reward=0.5, scores={"a": record("scored")})
    assert score_row(scored) == {
        "id": "task-0/0",
        "outcome": "scored",
        "reward": 0.5,
        "scores": {
            "a": {
                **{"value": 0.5, "outcome": "scored", "reason": "half", "evidence": []},
                **{"version": "v", "inputs": "", "duration_s": 0.0},
            }
        },
    }


@pytest.mark.parametrize(
    ("outcomes", "gravest"),
    [
        (("scored", "invalid_input"), "invalid_input"),
        (("invalid_input", "failed"), "failed"),
        (("abstained", "abstained"), "abstained"),
    ],
)
def test_no_reward_is_never_a_zero_and_says_the_gravest_outcome(
    trajectory: MakeTrajectory, outcomes: tuple[Outcome, ...], gravest: str
) -> None:
    scores = {str(index): record(outcome) for index, outcome in enumerate(outcomes)}
    row = score_row(Unscored(trajectory=trajectory("x"), scores=scores, reason="…"))
    assert (row["outcome"], row["reward"]) == (gravest, None)
    last = list(row["scores"].values())[-1]
    assert (last["value"], last["reason"]) == (None, "why")
