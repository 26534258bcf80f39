"""The whole loop through the command line: real Ray, vLLM and DeepSpeed. Repeatable, resumable, interruptible."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.rl.conftest import ROOT, STEPS, assert_same_logs, belongs_to, logged, medrl, train, weights_hash

pytestmark = pytest.mark.slow


def test_the_run_folder_has_what_people_look_for(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {
        "config.yaml", "versions.json", "summary.json", "metrics.jsonl", "tensorboard", "checkpoints", "trajectories",
        "policy", "report.html",
    }  # fmt: skip
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["finished"] is True and summary["wall_s"] > 0
    assert summary["reward_before"] != summary["reward_after"]


def test_every_trajectory_knows_the_version_that_wrote_it(undisturbed: Path) -> None:
    versions = [{row["policy_version"] for row in rows} for rows in logged(undisturbed, "step")]
    assert versions == [{0}, {1}, {2}, {3}]


def test_every_row_says_what_made_it_and_what_was_made_of_it(undisturbed: Path) -> None:
    import pyarrow.parquet as pq

    for step in range(1, STEPS + 1):
        rows = pq.read_table(undisturbed / "trajectories" / f"step_{step:06d}.parquet").to_pylist()
        assert len(rows) == 16 == len({row["seed"] for row in rows})
        for row in rows:
            empty = {name for name, value in row.items() if value is None}
            assert empty == {"unscored_reason", "follow_ups", "observations"}
            assert (row["step"], row["policy_version"], row["sampling"]["max_tokens"]) == (step, step - 1, 24)
            lengths = [len(row[name]) for name in ("completion_mask", "rollout_logprobs", "learner_logprobs")]
            assert lengths == [len(row["completion_token_ids"])] * 3
            apart = np.subtract(row["learner_logprobs"], row["rollout_logprobs"])[row["completion_mask"]]
            assert np.abs(apart).max() < 1e-3
            assert row["prompt_token_ids"] and json.loads(row["messages"])[-1]["role"] == "user"
            assert row["images"] and all((undisturbed / image["file"]).is_file() for image in row["images"])
            assert row["finish_reason"] in ("stop", "length") and row["duration_s"] > 0
            scores = {score["scorer"]: score for score in row["scores"]}
            assert scores.keys() == {"letters", "answer"}
            assert all(each["version"] and each["inputs"] and each["outcome"] == "scored" for each in scores.values())


def test_engine_and_learner_agree_at_every_step(undisturbed: Path) -> None:
    from rl.metrics import read_metrics

    records = read_metrics(undisturbed / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(STEPS + 1))
    assert all(record["publication/check_difference"] < 1e-4 for record in records)
    assert all(record["rollout/logprob_difference_max"] < 1e-3 for record in records[1:])


def test_two_runs_with_one_seed_are_the_same_bit_for_bit(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "again")
    assert weights_hash(tmp_path / "again") == weights_hash(undisturbed)
    assert_same_logs(tmp_path / "again", undisturbed)


def test_the_trained_policy_differs_from_the_one_it_started_from(undisturbed: Path, tiny_policy: Path) -> None:
    assert weights_hash(undisturbed) != hashlib.sha256((tiny_policy / "model.safetensors").read_bytes()).hexdigest()


def test_the_final_policy_loads_with_the_auto_classes(undisturbed: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, report = AutoModelForImageTextToText.from_pretrained(undisturbed / "policy", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.num_parameters() > 1e6
    assert AutoProcessor.from_pretrained(undisturbed / "policy").chat_template


def test_a_resume_under_a_changed_config_says_which_keys(config: Path, undisturbed: Path) -> None:
    done = medrl("train", config, f"output_dir={undisturbed}", "resume=true", "group_size=8", "loss.clip_low=0.1")
    assert done.returncode == 2
    assert "group_size (4 -> 8)" in done.stderr and "loss.clip_low (0.2 -> 0.1)" in done.stderr


def test_a_run_folder_that_exists_is_not_overwritten(config: Path, undisturbed: Path) -> None:
    before = (undisturbed / "summary.json").read_text()
    done = medrl("train", config, f"output_dir={undisturbed}")
    assert done.returncode == 2 and "already exists; add resume=true" in done.stderr
    assert (undisturbed / "summary.json").read_text() == before


def test_a_broken_scorer_stops_the_run_and_is_named(config: Path, tmp_path: Path) -> None:
    broken = "rewards.scorers.judge={use: 'tests.scorers:Broken'}"
    done = medrl("train", config, f"output_dir={tmp_path / 'broken'}", broken)
    assert done.returncode == 1
    assert "16 of 16 trajectories could not be scored" in done.stderr and "judge (16)" in done.stderr
    assert "the judge is out of order" in done.stderr
    assert "Traceback" not in done.stderr
    (rows,) = logged(tmp_path / "broken", "step")  # what it failed on can be looked at
    assert len(rows) == 16 and {row["reward"] for row in rows} == {None}


def test_a_worker_that_dies_ends_the_run_with_its_own_error(config: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rl.cli", "train", str(config), f"output_dir={tmp_path / 'dead'}", "max_steps=500"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 1/"):
            killed = [child for child in psutil.Process(process.pid).children(recursive=True) if _is_engine(child)]
            assert len(killed) == 1
            killed[0].kill()
    assert process.wait(timeout=240) == 1
    assert "RolloutError: rollout worker 0 died" in lines[-1]
    assert len("".join(lines).split("RolloutError", 1)[1].splitlines()) <= 3
    time.sleep(1)


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "ray::RolloutWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_another_architecture_trains_two_steps(config: Path, tiny_qwen: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "qwen", f"policy.path={tiny_qwen}", "max_steps=2", "evaluation.max_tasks=2")
    from rl.metrics import read_metrics

    records = read_metrics(tmp_path / "qwen" / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["publication/check_difference"] < 1e-4 for record in records)
    assert records[-1]["loss/grad_norm"] > 0


def test_adapters_on_two_sharded_ranks_reach_the_engine_merged(config: Path, tmp_path: Path) -> None:
    lora = ("policy.lora.rank=4", "learner.ranks=2", "learner.zero_stage=3", "learner.learning_rate=1e-2")
    train(config, tmp_path / "lora", *lora, "loss.kl_coef=0.05", "max_steps=2", "evaluation.max_tasks=2")
    from rl.metrics import read_metrics

    records = read_metrics(tmp_path / "lora" / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["publication/check_difference"] < 1e-4 for record in records)
    assert records[2]["loss/kl_ref"] > records[1]["loss/kl_ref"] == 0.0  # the reference stays where RL began


def test_dynamic_sampling_refills_groups_without_signal(config: Path, tmp_path: Path) -> None:
    # The letter never comes, every reward is zero: no group has signal, and every round is spent.
    rewards = ("rewards.scorers.answer.weight=0", "rewards.scorers.letters.letter=ﷺ")
    rounds = ("dynamic_sampling={enabled: true, max_rounds: 3}", *rewards)
    train(config, tmp_path / "dynamic", *rounds, "max_steps=1", "evaluation.max_tasks=2")
    rows = logged(tmp_path / "dynamic", "step")[0]
    groups = {row["trajectory_id"].split("/")[0]: row["drawn_anew"] for row in rows}
    assert list(groups.values()) == [False] * 4 + [True] * 8  # the batch keeps its size, and no sample is lost
    from rl.metrics import read_metrics

    record = read_metrics(tmp_path / "dynamic" / "metrics.jsonl")[-1]
    assert record["group/signal_fraction"] == 0.0 and record["group/refilled"] == 8  # two more rounds of four


def test_a_run_that_is_stopped_while_its_policy_is_prepared_leaves_no_process(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    overrides = (f"output_dir={folder}", "policy.path=''", "warmstart.steps=1000")
    process = subprocess.Popen(
        [sys.executable, "-m", "rl.cli", "train", str(config), *overrides],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("building the tiny policy"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 130, "".join(lines)
    assert "stopped before the first step" in "".join(lines) and "Traceback" not in "".join(lines)
    assert not [child for child in psutil.process_iter() if belongs_to(child, folder)]
