"""Logged trajectories under other rewards: same trajectories, new scores, nothing overwritten, nothing done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

import rl.replay.rescore
from rewards.config import load_rewards_file
from rl.cli import main
from rl.config import load_config, to_yaml
from rl.errors import ConfigError, LogError
from rl.replay.rescore import RECORD, Rescorer, own_rewards, replay
from rl.types import EncodedImage, Group, ScoredTrajectory, Task, Unscored
from rollouts.log import LoggedStep, logged_steps, read_step, step_path, write_step
from rollouts.log_import import import_log
from rollouts.log_schema import OUTCOME_COLUMNS, TRAINING_COLUMNS
from tests.samples import a_task, a_trajectory

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
ANSWERS = ("yes", "no", "yes", "eee")
OWN = "scorers: {answer: {use: answer}}"
LETTERS = "scorers: {letters: {use: 'tests.scorers:LetterShare'}}"


def a_run(folder: Path, *, rewards: str = OWN, steps: Sequence[int] = (1, 2, 3)) -> Path:
    """A run of a few steps whose scores were made by the rewards of its config."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"rewards:\n  {rewards}\n")
    with Rescorer(load_rewards_file(folder / "config.yaml")) as rescorer:
        for step in steps:
            groups = [scored_group(rescorer, step, index) for index in range(2)]
            names = [item.trajectory.id for group in groups for item in group.scored]
            write_step(folder, LoggedStep(step=step, groups=groups, advantages=dict.fromkeys(names, 0.5)))
    return folder


def scored_group(rescorer: Rescorer, step: int, index: int) -> Group:
    image = EncodedImage(content=PNG, width=8, height=8)
    task: Task = a_task(f"task-{step}-{index}", images=(image,))
    trajectories = [
        a_trajectory(f"<think>x</think><answer>{answer}</answer>", id=f"{task.id}/{n}", task=task, sample_index=n)
        for n, answer in enumerate(ANSWERS)
    ]
    items = rescorer.score(trajectories)
    return Group(
        task=task,
        scored=tuple(item for item in items if isinstance(item, ScoredTrajectory)),
        unscored=tuple(item for item in items if isinstance(item, Unscored)),
    )


def rewards_file(folder: Path, content: str) -> Path:
    path = folder / "new.yaml"
    path.write_text(content)
    return path


def test_the_runs_own_rewards_give_every_score_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    assert main(["replay", str(run), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "all 24 trajectories have the scores that were logged" in capsys.readouterr().out
    for step in (1, 2, 3):
        logged, again = (pq.read_table(step_path(folder, step)) for folder in (run, tmp_path / "out"))
        others = [name for name in logged.column_names if name not in ("scores", *TRAINING_COLUMNS)]
        assert again.select(others) == logged.select(others)


@pytest.mark.slow
def test_a_scorer_that_changed_is_named_and_the_exit_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "from dataclasses import dataclass\n"
        "from rewards.scorer import Score, Scorer, Trajectory\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Ward(Scorer):\n"
        '    """A scorer of a user."""\n'
        "    async def score(self, trajectory: Trajectory) -> Score:\n"
        "        return Score(VALUE)\n"
    )
    module = tmp_path / "ward_rules.py"
    module.write_text(code.replace("VALUE", "1.0"))
    (tmp_path / "run.yaml").write_text("scorers: {ward: {use: 'ward_rules:Ward'}, answer: {use: answer}}")
    script = (
        "import sys; from pathlib import Path; from tests.rl.replay.test_rescore import a_run\n"
        "a_run(Path(sys.argv[1]), rewards=Path('run.yaml').read_text())"
    )
    run_python = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}, "check": False}
    subprocess.run([sys.executable, "-c", script, "run"], **run_python)  # type: ignore[call-overload]
    module.write_text(code.replace("VALUE", "0.5"))
    command = [sys.executable, "-m", "rl.cli", "replay", "run", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, **run_python)  # type: ignore[call-overload]
    assert done.returncode == 1, done.stderr
    assert (
        "0 of 24 trajectories (0.0%) have the scores that were logged; others come from ward (24, version"
        in done.stdout
    )


def test_the_runs_own_rewards_are_found_where_its_config_found_them(tmp_path: Path) -> None:
    (tmp_path / "form.yaml").write_text("[{criterion: c, points: 1, check: {contains: x}}]")
    (tmp_path / "run").mkdir()
    config = tmp_path / "mine.yaml"
    config.write_text("rewards: {scorers: {form: {use: rubric, path: form.yaml}}}")
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(load_config(config)))
    (scorer,) = load_rewards_file(own_rewards(tmp_path / "run")).scorers
    assert scorer.version == load_rewards_file(config).scorers[0].version


def test_other_rewards_change_the_outcome_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    replay(run, tmp_path / "out", rewards=rewards_file(tmp_path, LETTERS), workers=1)
    logged, scored = (pq.read_table(step_path(folder, 2)) for folder in (run, tmp_path / "out"))
    same = [name for name in logged.column_names if name not in (*OUTCOME_COLUMNS, *TRAINING_COLUMNS)]
    assert scored.select(same) == logged.select(same)
    assert scored["advantage"].null_count == 8  # nothing was trained on these scores
    # <think>x</think><answer>yes</answer> has 36 characters, three of them e; with eee for yes it has five.
    assert scored["reward"].to_pylist()[:4] == pytest.approx([3 / 36, 2 / 35, 3 / 36, 5 / 36])
    assert [item.trajectory.task.images[0].content for item in read_step(tmp_path / "out", 2).groups[0].scored] == [
        PNG
    ] * 4


def test_a_scorer_that_fails_leaves_its_trajectories_unscored_and_never_a_zero(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    broken = rewards_file(tmp_path, "scorers: {judge: {use: 'tests.scorers:Broken'}}")
    replay(run, tmp_path / "out", rewards=broken, workers=1)
    table = pq.read_table(step_path(tmp_path / "out", 1))
    assert table["reward"].null_count == 8
    assert set(table["outcome"].to_pylist()) == {"unscored"}


def test_a_replay_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    run, out, rewards = a_run(tmp_path / "run"), tmp_path / "out", rewards_file(tmp_path, LETTERS)
    replay(run, out, rewards=rewards, steps={1, 3}, workers=1)
    written = {step: step_path(out, step).stat().st_mtime_ns for step in (1, 3)}
    done = replay(run, out, rewards=rewards, workers=1)
    assert [number for _, number in done.steps] == logged_steps(out) == [1, 2, 3]
    assert {step: step_path(out, step).stat().st_mtime_ns for step in (1, 3)} == written


def test_a_replay_never_overwrites_a_run_or_another_replay(tmp_path: Path) -> None:
    run, rewards = a_run(tmp_path / "run"), rewards_file(tmp_path, LETTERS)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(run)
    for same in (run, tmp_path / "link"):
        with pytest.raises(ConfigError, match="is the run itself; a replay never overwrites what it reads"):
            replay(run, same, rewards=rewards, workers=1)
    with pytest.raises(ConfigError, match="already exists and is no replay"):
        replay(run, run / "trajectories", rewards=rewards, workers=1)
    replay(run, tmp_path / "out", rewards=rewards, workers=1)
    rewards.write_text(LETTERS.replace("LetterShare'", "LetterShare', letter: x"))
    with pytest.raises(ConfigError, match=r"holds another replay: scorers differ from its replay\.json"):
        replay(run, tmp_path / "out", rewards=rewards, workers=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_cannot_be_replayed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    with pytest.raises(LogError, match="has no step 9; its steps are 1 to 3"):
        replay(run, tmp_path / "out", steps={2, 9})
    (run / "config.yaml").unlink()
    assert main(["replay", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "pass --rewards FILE" in capsys.readouterr().err
    assert main(["replay", str(tmp_path), "--out", str(tmp_path / "out"), "--rewards", "configs/quickstart.yaml"]) == 2
    assert "holds no trajectories" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_replay_needs_neither_torch_nor_ray_nor_vllm(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=[1])
    code = (
        "import sys; from rl.cli import main; "
        f"assert main(['replay', {str(run)!r}, '--out', {str(tmp_path / 'out')!r}]) == 0; "
        "loaded = {module.split('.')[0] for module in sys.modules}; "
        "print(sorted(loaded & {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'scipy', 'sklearn'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


def test_an_imported_log_is_scored_without_what_counts_tokens_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"input": "Is it?", "output": "<answer>yes</answer>", "gts": "yes", "score": 0.0, "step": 1}
    (tmp_path / "1.jsonl").write_text(json.dumps(row) + "\n")
    import_log([tmp_path / "1.jsonl"], tmp_path / "run", format="verl", answer_type="yes_no")
    rewards = rewards_file(tmp_path, f"{OWN}\nlength_penalty: 0.1\nlength_soft_tokens: 5\n")
    replay(tmp_path / "run", tmp_path / "out", rewards=rewards, workers=1)
    assert "counts tokens, which no log of verl has" in capsys.readouterr().err
    (scored,) = read_step(tmp_path / "out", 1).groups[0].scored
    assert (scored.reward, scored.trajectory.source) == (1.0, "verl")


def follow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the progress of replays will be told, as they go on."""
    told: list[int] = []
    monkeypatch.setattr(rl.replay.rescore.Progress, "update", lambda _, done: told.append(done))
    return told


def test_progress_counts_trajectories_within_a_step_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rewards = a_run(tmp_path / "run"), rewards_file(tmp_path, LETTERS)
    told = follow(monkeypatch)
    replay(run, tmp_path / "out", rewards=rewards, workers=1)
    assert told == list(range(1, 25))  # 3 steps of 2 groups of 4
    step_path(tmp_path / "out", 2).unlink()
    told.clear()
    replay(run, tmp_path / "out", rewards=rewards, workers=1)
    assert told == list(range(17, 25))


@pytest.mark.slow
def test_progress_moves_within_the_steps_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, slow = (
        a_run(tmp_path / "run", steps=(1, 2)),
        rewards_file(tmp_path, "scorers: {one: {use: 'tests.scorers:Slow'}}"),
    )
    monkeypatch.setattr(rl.replay.rescore, "_LOOK_S", 0.05)
    told = follow(monkeypatch)
    replay(run, tmp_path / "out", rewards=slow, workers=2)
    assert told == sorted(set(told)) and told[-1] == 16
    assert len(told) > 2  # more often than steps are done: trajectories end .3 s apart


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_scores(tmp_path: Path) -> None:
    run, rewards = a_run(tmp_path / "run", steps=range(6)), rewards_file(tmp_path, LETTERS)
    for workers in (1, 3):
        replay(run, tmp_path / str(workers), rewards=rewards, workers=workers)
    for step in range(6):
        one, three = (pq.read_table(step_path(tmp_path / name, step)) for name in ("1", "3"))
        assert one["reward"] == three["reward"]


@pytest.mark.slow
def test_a_replay_that_is_killed_leaves_whole_steps_and_no_process_and_can_go_on(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run", steps=range(40)), tmp_path / "out"
    slow = rewards_file(tmp_path, LETTERS + "\n")
    command = [sys.executable, "-m", "rl.cli", "replay", str(run), "--out", str(out), "--rewards", str(slow)]
    child = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    while not logged_steps(out):
        time.sleep(0.01)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert all(len(read_step(out, step).groups) == 2 for step in logged_steps(out))
    assert (out / RECORD).is_file()
    replay(run, out, rewards=slow, workers=1)
    assert logged_steps(out) == list(range(40))


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_scores(tmp_path: Path, ray_session: Any) -> None:
    run, rewards = a_run(tmp_path / "run"), rewards_file(tmp_path, LETTERS)
    address = ray_session.get_runtime_context().gcs_address
    replay(run, tmp_path / "here", rewards=rewards, workers=1)
    command = ["replay", str(run), "--out", str(tmp_path / "there"), "--rewards", str(rewards), "--address", address]
    done = subprocess.run([sys.executable, "-m", "rl.cli", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for step in (1, 2, 3):
        here, there = (pq.read_table(step_path(tmp_path / name, step)) for name in ("here", "there"))
        assert here["reward"] == there["reward"]
