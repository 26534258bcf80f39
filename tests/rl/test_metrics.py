"""Declared metrics, the run's metrics.jsonl, its sinks and the progress line."""

import importlib
import io
import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.errors import CheckpointError, ConfigError
from rl.metrics import METRICS, MetricsLog, declaration, evaluation_metrics, group_metrics, read_metrics
from rl.progress import Progress, duration
from rl.sinks import MlflowSink, TensorBoardSink, open_sinks
from rl.types import (
    Evidence,
    FinishReason,
    Group,
    Message,
    Observation,
    SamplingParams,
    Score,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    ToolCall,
    Trajectory,
    Unscored,
)

TASK = Task(id="case", question="?", answer={"type": "yes_no", "value": "yes"})


def a_trajectory(length: int, *, finish_reason: FinishReason = "stop") -> Trajectory:
    return Trajectory(
        id=f"t{length}",
        task=TASK,
        sample_index=0,
        prompt_token_ids=np.arange(3, dtype=np.int32),
        completion_token_ids=np.arange(length, dtype=np.int32),
        completion_mask=np.ones(length, np.bool_),
        rollout_logprobs=np.zeros(length, np.float32),
        text="",
        finish_reason=finish_reason,
        policy_version=0,
        seed=0,
        sampling=SamplingParams(),
    )


def scored(reward: float, *, length: int = 10, correct: bool | None = None, **scores: Score) -> ScoredTrajectory:
    records = {
        name: ScoreRecord(scorer=name, version="1", outcome="scored", score=score) for name, score in scores.items()
    }
    return ScoredTrajectory(trajectory=a_trajectory(length), reward=reward, scores=records, correct=correct)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_declared_name_has_a_meaning_and_stands_once() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.meaning for metric in METRICS)


def test_a_name_with_a_scorer_in_it_takes_the_unit_and_chart_of_its_pattern() -> None:
    metric = declaration("score/answer")
    assert (metric.name, metric.unit, metric.chart, metric.label) == (
        "score/answer",
        "score",
        "Reward components",
        "answer",
    )
    assert declaration("score/facts/claims").chart == ""


@pytest.mark.parametrize("name", ["reward/mena", "score", "score/a/b/c", "Reward/mean"])
def test_an_undeclared_name_is_refused_with_the_nearest_declared_one(name: str, tmp_path: Path) -> None:
    with (
        MetricsLog(tmp_path / "metrics.jsonl") as log,
        pytest.raises(ValueError, match=r"is not declared; did you mean"),
    ):
        log.record(0, {name: 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_record_is_on_the_disk_as_soon_as_it_was_made(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.record(1, {"reward/mean": np.float64(0.5), "policy_version": 1})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5, "policy_version": 1.0}]
    log.close()


def test_a_number_that_is_not_finite_is_written_as_null_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.record(1, {"loss/policy": math.nan, "loss/grad_norm": math.inf, "reward/mean": 0.5})
        log.record(1, {"eval/reward": -math.inf})
    assert lines(path)[0] == {
        "step": 1, "loss/policy": None, "loss/grad_norm": None, "reward/mean": 0.5, "nonfinite/count": 2.0,
    }  # fmt: skip
    (merged,) = read_metrics(path)
    assert merged["nonfinite/count"] == 3.0
    assert math.isnan(merged["loss/policy"]) and math.isnan(merged["eval/reward"])


def test_the_parts_of_a_step_are_merged_and_steps_never_go_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.record(0, {"eval/accuracy": 0.6})
        log.record(3, {"reward/mean": 0.1})
        log.record(3, {"eval/accuracy": 0.7})
        with pytest.raises(ValueError, match="metrics of step 2 come after those of step 3"):
            log.record(2, {"reward/mean": 0.2})
    assert read_metrics(path) == [
        {"step": 0, "eval/accuracy": 0.6},
        {"step": 3, "reward/mean": 0.1, "eval/accuracy": 0.7},
    ]


def test_a_resumed_log_has_neither_gap_nor_overlap_even_after_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(5):
            log.record(step, {"reward/mean": step / 10})
    with path.open("a") as file:
        file.write('{"step": 5, "reward/me')
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3, 4]
    with MetricsLog(path, resume_at=3) as log:
        log.record(3, {"reward/mean": 0.9})
    assert [(record["step"], record["reward/mean"]) for record in read_metrics(path)] == [
        (0, 0.0), (1, 0.1), (2, 0.2), (3, 0.9),
    ]  # fmt: skip
    assert len(lines(path)) == 4
    with MetricsLog(path, resume_at=4) as log, pytest.raises(ValueError, match="come after those of step 3"):
        log.record(2, {"reward/mean": 0.0})


def test_a_new_run_does_not_write_into_the_metrics_of_another(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.record(0, {"reward/mean": 0.5})
    with pytest.raises(CheckpointError, match="already holds metrics of another run"):
        MetricsLog(path)


def test_a_run_without_metrics_reads_as_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_steps_groups_become_metrics_and_the_unscored_stay_out_of_the_reward() -> None:
    group = Group(
        task=TASK,
        scored=(
            scored(0.2, length=10, correct=False, answer=Score(0.0)),
            scored(0.8, length=20, correct=True, answer=Score(1.0)),
        ),
        unscored=(
            Unscored(
                trajectory=a_trajectory(60, finish_reason="length"),
                scores={"judge": ScoreRecord(scorer="judge", version="1", outcome="failed", reason="time-out")},
                reason="judge timed out",
            ),
        ),
    )
    values = group_metrics([group, Group(task=TASK, scored=(scored(0.5), scored(0.5)))])
    # rewards .2 .8 .5 .5: mean .5, variance (.09 + .09) / 4 = .045
    assert values["reward/mean"] == pytest.approx(0.5)
    assert values["reward/std"] == pytest.approx(math.sqrt(0.045))
    assert values["accuracy/train"] == 0.5  # two answers could be told
    assert values["score/answer"] == 0.5
    assert values["outcome/unscored"] == 1
    assert values["outcome/unscored_fraction"] == 0.2  # one of five
    assert values["outcome/failed/judge"] == 1
    assert values["group/signal_fraction"] == 0.5
    assert values["length/mean_tokens"] == 22.0  # (10 + 20 + 60 + 10 + 10) / 5
    assert values["length/max_tokens"] == 60
    assert values["length/truncated_fraction"] == 0.2
    assert values["throughput/tokens"] == 110
    for name in values:
        declaration(name)


def test_what_broken_scorers_did_to_groups_that_were_drawn_anew_is_counted() -> None:
    failed = ScoreRecord(scorer="judge", version="1", outcome="failed", reason="time-out")
    lost = Unscored(trajectory=a_trajectory(60), scores={"judge": failed}, reason="judge timed out")
    kept = Group(task=TASK, scored=(scored(0.2, length=10), scored(0.8, length=20)))
    values = group_metrics([kept], drawn_anew=[Group(task=TASK, scored=(scored(0.5, length=10),), unscored=(lost,))])
    assert values["outcome/unscored"] == values["outcome/failed/judge"] == 1
    assert values["outcome/unscored_fraction"] == 0.25  # one of four
    assert values["throughput/tokens"] == 100  # 10 + 20 + 10 + 60: all of it was written in the step's time
    assert values["reward/mean"] == 0.5 and values["length/mean_tokens"] == 15.0  # of what was trained on alone


def test_turns_are_counted_where_tasks_have_follow_ups() -> None:
    task = replace(TASK, follow_ups=(Message(text="Sure?"), Message(text="And here?")))
    told = Observation(message=task.follow_ups[0], place=1)
    talks = [
        replace(a_trajectory(5), text="a\n\nb", task=task, observations=(told,)),
        replace(a_trajectory(5), text="a", task=task),
    ]
    group = Group(task=task, scored=tuple(ScoredTrajectory(trajectory=each, reward=0.5, scores={}) for each in talks))
    one_turn = Group(task=TASK, scored=(scored(0.5), scored(0.5)))
    assert group_metrics([group, one_turn])["length/turns"] == 1.5  # (2 + 1) / 2: the others could have no second turn
    assert evaluation_metrics([group])["eval/turns"] == 1.5
    assert "length/turns" not in group_metrics([one_turn])


def a_call(*, ok: bool = True) -> ToolCall:
    return ToolCall(name="zoom", arguments={}, result="closer", ok=ok, turn=0)


def test_tool_calls_are_counted_and_so_are_the_turns_that_they_begin() -> None:
    told = Observation(message=Message(text="closer", role="tool"), place=1)
    called = replace(
        a_trajectory(5), text="a\n\nb", observations=(told,), tool_calls=(a_call(), a_call(ok=False), a_call())
    )
    other = replace(called, tool_calls=(a_call(),))
    plain = [a_trajectory(5), a_trajectory(5)]
    items = [ScoredTrajectory(trajectory=each, reward=0.5, scores={}) for each in (called, other, *plain)]
    group = Group(task=TASK, scored=tuple(items))
    values = group_metrics([group], with_tools=True)
    assert values["tools/calls"] == 1.0  # (3 + 1 + 0 + 0) / 4
    assert values["tools/refused_fraction"] == 0.25  # 1 of 4
    assert values["length/turns"] == 1.5  # (2 + 2 + 1 + 1) / 4
    held_out = evaluation_metrics([group], with_tools=True)
    assert (held_out["eval/tools/calls"], held_out["eval/tools/refused_fraction"]) == (1.0, 0.25)
    assert held_out["eval/turns"] == 1.5
    assert not [name for name in held_out if not name.startswith("eval/")]


def test_a_policy_that_stops_calling_its_tools_leaves_no_hole_in_the_curve() -> None:
    silent = Group(task=TASK, scored=(scored(0.5),))
    values = group_metrics([silent], with_tools=True)
    assert (values["tools/calls"], values["length/turns"]) == (0.0, 1.0)
    assert "tools/refused_fraction" not in values  # of no call nobody can tell
    assert not [name for name in group_metrics([silent]) if name.startswith("tools/")]
    imported = replace(a_trajectory(5), tool_calls=(a_call(),))
    counted = group_metrics([Group(task=TASK, scored=(ScoredTrajectory(trajectory=imported, reward=1.0, scores={}),))])
    assert counted["tools/calls"] == 1.0


def test_claims_are_counted_by_verdict_over_the_scores_that_check_claims() -> None:
    def checked(**counts: float) -> Score:
        return Score(0.5, metrics={"claims": sum(counts.values()), **counts})

    rubric = Score(1.0, evidence=(Evidence(claim="names the side", verdict="refuted"),))
    first = scored(0.5, facts=checked(supported=2, refuted=1), rubric=rubric)
    values = group_metrics([Group(task=TASK, scored=(first, scored(0.5, facts=checked(unsupported=1))))])
    assert values["hallucination/claims"] == 2.0  # four claims in two completions
    assert values["hallucination/supported"] == 0.5
    assert values["hallucination/refuted"] == values["hallucination/unsupported"] == 0.25
    assert values["score/facts/claims"] == 2.0


def test_a_step_in_which_nothing_could_be_scored_says_so() -> None:
    lost = Unscored(trajectory=a_trajectory(5), scores={}, reason="crashed")
    values = group_metrics([Group(task=TASK, scored=(), unscored=(lost,))])
    assert math.isnan(values["reward/mean"])
    assert values["outcome/unscored_fraction"] == 1.0
    assert "accuracy/train" not in values


def test_an_evaluation_goes_by_held_out_names_alone() -> None:
    values = evaluation_metrics([Group(task=TASK, scored=(scored(1.0, correct=True, answer=Score(1.0)),))])
    assert values == {
        "eval/reward": 1.0,
        "eval/accuracy": 1.0,
        "eval/mean_tokens": 10.0,
        "eval/truncated_fraction": 0.0,
        "eval/unscored_fraction": 0.0,
        "eval/score/answer": 1.0,
    }
    for name in values:
        declaration(name)


def test_tensorboard_gets_the_same_numbers_and_is_told_where_a_resumed_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with MetricsLog(tmp_path / "metrics.jsonl", sinks=[TensorBoardSink(tmp_path / "tensorboard")]) as log:
        log.record(0, {"reward/mean": 0.25})
        log.record(1, {"reward/mean": math.nan})
    TensorBoardSink(tmp_path / "tensorboard", resume_at=1).close(failed=False)
    events = [event for path in sorted((tmp_path / "tensorboard").iterdir()) for event in tensorboard_events(path)]
    scalars = [(event.step, event.summary.value[0]) for event in events if event.HasField("summary")]
    assert [(step, value.tag) for step, value in scalars] == [(0, "reward/mean"), (1, "reward/mean")]
    assert scalars[0][1].simple_value == 0.25 and math.isnan(scalars[1][1].simple_value)
    assert [event.step for event in events if event.HasField("session_log")] == [1]


def tensorboard_events(path: Path) -> list[Any]:
    """The records of an event file: length, its checksum, the event, its checksum."""
    Event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_mlflow_gets_the_same_numbers_goes_on_in_the_same_run_and_hears_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # MLflow keeps files where it stands
    with (
        pytest.raises(KeyboardInterrupt),
        MetricsLog(tmp_path / "metrics.jsonl", sinks=[MlflowSink(tmp_path, {"seed": 1}, experiment="e")]) as log,
    ):
        log.record(1, {"reward/mean": 0.25, "loss/total": 2.0})
        raise KeyboardInterrupt
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "FAILED"
    resumed = MlflowSink(tmp_path, {"seed": 1}, experiment="e")
    resumed.record(2, {"reward/mean": 0.5})
    resumed.close(failed=False)
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "reward/mean")]
    assert history == [(1, 0.25), (2, 0.5)]
    assert client.get_run(run.info.run_id).data.metrics["loss/total"] == 2.0
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_sink_whose_package_is_missing_is_a_config_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"logging.wandb_project asks for wandb.*pip install wandb"):
        open_sinks(tmp_path, {}, tensorboard=False, wandb_project="p", mlflow_experiment="")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"logging.mlflow_experiment asks for mlflow"):
        open_sinks(tmp_path, {}, tensorboard=False, wandb_project="", mlflow_experiment="e")


def test_metrics_sinks_and_progress_load_without_the_accelerator_stack() -> None:
    code = """
import sys, rl.metrics, rl.progress, rl.sinks, rollouts.log, rl.report.run
print(sorted({"torch", "ray", "vllm", "pandas", "pyarrow", "tensorboard", "PIL"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class Clock:
    """A clock that goes as it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_progress_line_tells_step_reward_accuracy_speed_and_time_left() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(80, done=10, stream=out, clock=clock)
    clock.now = 6.0
    progress.update(
        12, {"reward/mean": 0.613, "accuracy/train": 0.7, "throughput/tokens_per_s": 1830.2, "loss/policy": 1}
    )
    # 68 steps left at 3 s each: 204 s
    assert out.getvalue() == "step 12/80  reward 0.61  accuracy 0.70  1,830 tokens/s  left 3:24\n"


def test_progress_is_thinned_to_one_line_in_so_many_seconds_but_the_last_is_always_printed() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(5, noun="case", every_s=10.0, stream=out, clock=clock)
    for done, now in enumerate([4.0, 11.0, 14.0, 20.0, 21.5], start=1):
        clock.now = now
        progress.update(done)
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == ["case 2/5", "case 5/5"]


def test_the_time_left_is_judged_by_the_lines_and_not_by_a_burst_of_updates_between_them() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(1000, noun="trajectory", every_s=10.0, stream=out, clock=clock)
    for second in range(1, 11):
        clock.now = float(second)
        for done in range(30):  # 30 at once, then nothing for a second
            progress.update(30 * (second - 1) + done + 1)
    # the line of the 10th second stands at its first of 30: 271 in 10 s, so 729 in 729 / 27.1 = 26.9 s
    assert out.getvalue() == "trajectory 271/1,000  left 0:27\n"


def test_the_time_left_follows_the_recent_pace() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(1000, stream=out, clock=clock)
    for done in range(1, 101):
        clock.now += 100.0 if done == 1 else 1.0  # a slow first step is soon forgotten
        progress.update(done)
    assert out.getvalue().splitlines()[-1] == "step 100/1,000  left 15:00"


def test_durations_read_as_on_a_clock() -> None:
    assert [duration(s) for s in (0, 59.6, 192, 3765)] == ["0:00", "1:00", "3:12", "1:02:45"]
