"""Logs of other systems: what they say is kept, what they do not say is null, and what does not fit is named."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rl.cli import main
from rl.errors import LogError
from rollouts.log import logged_steps, read_step, step_path
from rollouts.log_import import FORMATS, import_log

VERL = {"input": "user\nIs it?\nassistant\n", "output": "<answer>yes</answer>", "gts": "yes", "score": 1.0, "step": 7}
VERIFIERS: dict[str, Any] = {
    "example_id": 3,
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "Is it?"}],
    "completion": [{"role": "assistant", "content": "<answer>no</answer>"}],
    "answer": "yes",
    "reward": 0.25,
    "metrics": {"format": 1.0, "turns": 2.0},
    "is_truncated": True,
    "timing": {"generation_ms": 1500.0},
    "info": {"source": "ward"},
}
OPENAI = {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}], "answer": "yes"}
ROWS = {"openai": OPENAI, "verl": VERL, "verifiers": VERIFIERS}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_what_another_system_does_not_log_is_null_and_not_made_up(format: Any, tmp_path: Path) -> None:
    import_log([written(tmp_path / "a.jsonl", ROWS[format])], tmp_path / "run", format=format)
    (file,) = (tmp_path / "run" / "trajectories").iterdir()
    (row,) = pq.read_table(file).to_pylist()
    unknown = ("prompt_token_ids", "completion_token_ids", "completion_mask", "rollout_logprobs", "policy_version",
               "seed", "sampling", "advantage", "micro_batch", "learner_logprobs")  # fmt: skip
    assert {name: row[name] for name in unknown} == dict.fromkeys(unknown)
    assert row["source"] == format


def test_a_verl_dump_keeps_its_step_its_score_and_what_the_reward_function_added(tmp_path: Path) -> None:
    rows = [VERL | {"acc": True, "pred": "yes"}, VERL | {"output": "no", "score": -1.0}, VERL | {"gts": "no"}]
    found = import_log([written(tmp_path / "7.jsonl", *rows)], tmp_path / "run", format="verl", answer_type="yes_no")
    assert (found.trajectories, found.groups, found.steps) == (3, 2, 1)  # another reference is another task
    group, other = read_step(tmp_path / "run", 7).groups
    assert group.task.answer == {"type": "yes_no", "value": "yes"}
    assert other.task.answer["value"] == "no"
    right, wrong = group.scored
    assert (right.reward, wrong.reward) == (1.0, -1.0)
    record = right.scores["verl"]
    assert record.score is not None
    assert (record.version, record.score.value, record.score.metrics) == ("imported", 1.0, {"acc": 1.0})
    assert json.loads(record.score.reason) == {"pred": "yes"}
    assert wrong.scores["verl"].outcome == "invalid_input"  # -1 is a reward, and no score
    assert wrong.trajectory.finish_reason == "unknown"
    assert wrong.trajectory.length_tokens == 0


def test_a_folder_of_verl_dumps_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    for step in (9, 10):
        written(tmp_path / "dump" / f"{step}.jsonl", VERL | {"step": step})
    import_log([tmp_path / "dump"], tmp_path / "run", format="verl")
    assert logged_steps(tmp_path / "run") == [9, 10]
    with pytest.raises(LogError, match=r"10\.jsonl holds step 10, which .*10\.jsonl holds too"):
        import_log([tmp_path / "dump", tmp_path / "dump" / "10.jsonl"], tmp_path / "other", format="verl")


def test_verifiers_results_keep_metrics_and_an_error_is_never_a_zero(tmp_path: Path) -> None:
    failed = VERIFIERS | {"reward": 0.0, "completion": None, "error": "SandboxError()"}
    import_log([written(tmp_path / "results.jsonl", VERIFIERS, failed)], tmp_path / "run", format="verifiers")
    step = read_step(tmp_path / "run", 0, kind="eval")
    (group,) = step.groups
    (scored,), (lost,) = group.scored, group.unscored
    assert scored.scores["verifiers"].score.metrics == {"format": 1.0, "turns": 2.0}  # type: ignore[union-attr]
    assert (scored.trajectory.finish_reason, scored.trajectory.duration_s) == ("length", 1.5)
    assert (group.task.system, group.task.question) == ("Think.", "Is it?")
    assert group.task.extra == {"example_id": 3, "source": "ward"}
    assert step.messages[group.task.id] == VERIFIERS["prompt"]
    assert "SandboxError" in lost.reason


def test_a_chat_keeps_its_image_its_reasoning_and_its_tool_calls(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 3)).save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    question = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    call = {"id": "c1", "type": "function", "function": {"name": "zoom", "arguments": '{"x": 1}'}}
    row = {
        "id": "case-1",
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": None, "reasoning_content": "look closer", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "a nodule"},
            {"role": "assistant", "content": "<answer>nodule</answer>"},
        ],
        "reward": 0.5,
    }
    import_log([written(tmp_path / "a.jsonl", row)], tmp_path / "run", format="openai")
    step = read_step(tmp_path / "run", 0, kind="eval")
    (scored,) = step.groups[0].scored
    trajectory = scored.trajectory
    assert trajectory.id == "case-1"
    assert (trajectory.task.images[0].width, trajectory.task.images[0].height) == (4, 3)
    assert trajectory.text == "<think>look closer</think>\n\n<answer>nodule</answer>"
    assert [(each.name, each.arguments, each.result, each.ok) for each in trajectory.tool_calls] == [
        ("zoom", {"x": 1}, "a nodule", True)
    ]
    assert step.messages[trajectory.task.id][0]["content"][0] == {
        "type": "image",
        "sha256": trajectory.task.images[0].sha256,
    }


def test_what_an_environment_says_between_turns_is_told_apart_from_what_the_policy_wrote(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 3)).save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    completion = [
        {"role": "assistant", "content": "maybe"},
        {"role": "user", "content": "Sure?"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "See."}],
        },
        {"role": "assistant", "content": "look", "tool_calls": [{"id": "c", "function": {"name": "zoom"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "closer"},
        {"role": "assistant", "content": "<answer>yes</answer>"},
        {"role": "user", "content": "Done."},
    ]
    import_log(
        [written(tmp_path / "a.jsonl", VERIFIERS | {"completion": completion})], tmp_path / "run", format="verifiers"
    )
    trajectory = read_step(tmp_path / "run", 0, kind="eval").groups[0].scored[0].trajectory
    assert trajectory.turns == ("maybe", "look\n\n<answer>yes</answer>")  # a tool's result begins no turn
    assert trajectory.answer_text == "yes"  # of the last turn, which the environment's last word is not
    (told,) = trajectory.observations
    assert (told.message.text, told.place) == ("Sure?\n\nSee.", 5)
    assert [(image.width, image.height) for image in trajectory.images] == [(4, 3)]
    (call,) = trajectory.tool_calls  # such a log does not say what of the text came before a call
    assert (call.name, call.result, call.turn, told.message.role) == ("zoom", "closer", -1, "user")


def test_a_chat_without_a_reward_is_unscored_and_all_choices_of_one_prompt_are_a_group(tmp_path: Path) -> None:
    choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": "length"} for text in "ab"]
    row = {"id": 5, "messages": OPENAI["messages"][:1], "choices": choices}
    import_log([written(tmp_path / "a.jsonl", row)], tmp_path / "run", format="openai")
    (group,) = read_step(tmp_path / "run", 0, kind="eval").groups
    assert [(lost.trajectory.id, lost.trajectory.text) for lost in group.unscored] == [("5/0", "a"), ("5/1", "b")]
    assert group.unscored[0].trajectory.finish_reason == "length"


@pytest.mark.parametrize(
    ("format", "row", "complaint"),
    [
        ("verl", {key: value for key, value in VERL.items() if key != "output"}, "'output' is a required property"),
        ("verl", VERL | {"score": "high"}, "score: 'high' is not of type 'number'"),
        ("verl", VERL | {"score": float("nan")}, "NaN is not a number in JSON"),
        ("verl", VERL | {"score": 10**400}, "is too large"),
        ("verl", [1], "is not of type 'object'"),
        ("verifiers", VERIFIERS | {"metrics": {"format": "good"}}, "metrics.format: 'good' is not of type 'number'"),
        ("openai", {"messages": OPENAI["messages"][:1]}, "the last message of the user has no answer"),
        ("openai", {"messages": [{"role": "robot"}]}, "messages.0.role: 'robot' is not one of"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'text' is a required property"),
        (
            "openai",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://host/a.png"}}]},
                    *OPENAI["messages"][1:],
                ]
            },
            "must be a data: URI",
        ),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line_and_nothing_is_left(
    format: Any, row: Any, complaint: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "a.jsonl", ROWS[format], row)
    with pytest.raises(LogError, match=r"a\.jsonl:2: ") as raised:
        import_log([file], tmp_path / "run", format=format)
    assert complaint in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def calling(arguments: str) -> dict[str, Any]:
    """A chat whose answer calls a tool with these arguments, as a model wrote them."""
    call = {"id": "c1", "type": "function", "function": {"name": "zoom", "arguments": arguments}}
    return {"messages": [OPENAI["messages"][0], {"role": "assistant", "content": "yes", "tool_calls": [call]}]}


def test_malformed_rows_are_left_out_where_asked_for_and_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [calling('{"x": 1}'), calling('{"x": '), {"messages": []}, calling("[1]"), OPENAI]
    file = written(tmp_path / "a.jsonl", *rows)
    asked = ["import", str(file), "--format", "openai", "--out", str(tmp_path / "run")]
    assert main(asked) == 2
    complaint = "a.jsonl:2: the arguments of the tool 'zoom' must be a JSON object: Expecting value"
    assert complaint in capsys.readouterr().err
    assert main([*asked, "--skip-malformed"]) == 0
    said = capsys.readouterr()
    assert "2 trajectories in" in said.out
    assert "left out: 3 malformed rows" in said.err and complaint in said.err
    listed = json.loads((tmp_path / "run" / "import.json").read_text())["left_out"]
    assert [line.split(": ")[0].rpartition(":")[2] for line in listed] == ["2", "3", "4"]
    with pytest.raises(LogError, match=r"no rollouts in .*; 1 rows are malformed, the first: .*bad\.jsonl:1"):
        import_log([written(tmp_path / "bad.jsonl", rows[1])], tmp_path / "b", format="openai", skip_malformed=True)


def test_an_import_never_adds_to_a_folder_that_holds_something(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", VERL)
    with pytest.raises(LogError, match="already exists; name a new folder"):
        import_log([file], tmp_path, format="verl")
    assert not step_path(tmp_path, 7).exists()


def test_the_command_imports_and_a_wrong_row_is_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.jsonl", VERL)
    assert main(["import", str(file), "--format", "verl", "--out", str(tmp_path / "run")]) == 0
    assert "1 trajectories in 1 groups of 1 steps" in capsys.readouterr().out
    file.write_text("{\n")
    assert main(["import", str(file), "--format", "verl", "--out", str(tmp_path / "other")]) == 2
    assert "a.jsonl:1: " in capsys.readouterr().err
