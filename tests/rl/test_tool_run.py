"""Runs in which the policy calls tools: written, scored, learnt from, logged, repeated and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rl.metrics import read_metrics
from rollouts.images import encode
from tests.rl.conftest import logged, medrl, train, weights_hash
from tests.rl.test_conversation import rows_of
from tests.samples import a_task
from tests.tool_policy import policy_that_says

TOOLS = {"zoom": {"use": "zoom", "side": 84}}
TURNS = (
    '<tool_call>{"name": "zoom", "arguments": {"box": [10, 20, 66, 76]}}</tool_call>',
    "<think>\nround\n</think>\n<answer>yes</answer>",
)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that make the shared test run one of a policy that looks closer before it answers."""
    folder = tmp_path_factory.mktemp("looking")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        pixels = rng.integers(0, 256, (84, 112, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        answer = "yes" if number % 2 else "no"
        rows.append({"id": number, "question": "Is it round?", "answer": answer, "image": f"{number}.png"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mapping.yaml").write_text(
        """
id: id
image: image
question: question
answer: {type: yes_no, column: answer}
split: {hash_of: image, eval_fraction: 0.3}
"""
    )
    task = a_task("round", question="Is it round?", images=(encode(Image.open(folder / "0.png")),))
    policy = policy_that_says(TURNS, folder, task=task, tools=TOOLS)
    tasks = f"tasks={{source: {folder / 'rows.jsonl'}, mapping: {folder / 'mapping.yaml'}}}"
    rollouts = ("rollouts.max_model_len=1024", f"rollouts.tools={json.dumps(TOOLS)}", "sampling.max_tokens=200")
    return (tasks, f"policy.path={policy}", *rollouts, "max_steps=2", "evaluation.max_tasks=2")


def assert_learnt_from_as_written(folder: Path) -> None:
    """The learner, which runs a group as one packed sequence, sees each token as the engine saw it: those of the image
    that each trajectory of a group was shown by its own call."""
    records = read_metrics(folder / "metrics.jsonl")
    assert all(record["rollout/logprob_difference_max"] < 1e-3 for record in records[1:])
    rows = [row for step in (1, 2) for row in rows_of(folder, step)]
    looked = [row for row in rows if any(call["ok"] for call in row["tool_calls"])]
    assert len(looked) > len(rows) / 4
    for row in looked:
        (told, *_) = row["observations"]
        assert told["role"] == "tool" and len(told["images"]) == 1
        assert (folder / told["images"][0]["file"]).is_file()
        mask = np.array(row["completion_mask"])
        apart = np.array(row["learner_logprobs"])[mask] - np.array(row["rollout_logprobs"])[mask]
        assert np.abs(apart).max() < 1e-3


@pytest.mark.slow
def test_a_run_whose_policy_calls_tools_is_repeated_and_replayed_bit_for_bit(
    config: Path, looking: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("one", "again"):
        train(config, tmp_path / name, *looking)
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "again")
    assert repr(logged(tmp_path / "one", "step")) == repr(logged(tmp_path / "again", "step"))
    assert_learnt_from_as_written(tmp_path / "one")
    rescored = medrl("replay", tmp_path / "one", "--out", tmp_path / "rescored")
    assert rescored.returncode == 0, rescored.stdout + rescored.stderr
    again = medrl("replay", tmp_path / "one", "--step", 2)
    assert again.returncode == 0 and "no difference" in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('rollouts.tools={"look": {"use": "zom"}}', "rollouts.tools.look.use: no tool is called 'zom'"),
        ('rollouts.tools={"text": {"use": "look_up", "path": "gone.jsonl"}}', "there is no file 'gone.jsonl'"),
        ("rollouts.max_tool_calls=0", "rollouts.max_tool_calls must be >= 1; got 0"),
        ("rollouts.tool_timeout_s=0", "rollouts.tool_timeout_s must be > 0; got 0"),
    ],
)
def test_a_tool_that_cannot_be_is_told_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    from rl.cli import main

    (tmp_path / "run.yaml").write_text("rewards: {scorers: {answer: {use: answer}}}\n")
    arguments: list[Any] = ["train", tmp_path / "run.yaml", f"output_dir={tmp_path / 'run'}", setting]
    assert main([str(each) for each in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
