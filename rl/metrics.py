"""Every metric name and its unit, declared once; what a step's groups amount to; the run's ``metrics.jsonl``.

A name that is not declared here cannot be recorded, so that curves, sinks and the report never drift apart.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, get_args

import numpy as np

from rl.errors import CheckpointError
from rl.types import Group, Score, ScoredTrajectory, ScoreRecord, Trajectory, Unscored, Verdict
from rl.watch import common_verdicts

NONFINITE = "nonfinite/count"


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared name. ``<...>`` in a name stands for any one path component, such as a scorer's name.

    ``chart`` is the title of the report's chart that draws it (empty: drawn nowhere), ``label`` its legend there.
    """

    name: str
    unit: str
    meaning: str
    chart: str = ""
    label: str = ""


_DIFFERENCE = "Rollout–learner difference"

METRICS: tuple[Metric, ...] = (
    Metric("accuracy/train", "fraction", "training answers that were right", "Accuracy", "training"),
    Metric("eval/accuracy", "fraction", "held-out answers that were right, greedy", "Accuracy", "held-out"),
    Metric("reward/mean", "reward", "mean reward of the scored training trajectories", "Reward", "training"),
    Metric("eval/reward", "reward", "mean reward on held-out tasks, greedy", "Reward", "held-out"),
    Metric("reward/std", "reward", "standard deviation of the reward over the scored training trajectories"),
    Metric("score/<scorer>", "score", "mean score of one scorer over what it scored", "Reward components"),
    Metric("eval/score/<scorer>", "score", "mean score of one scorer on held-out tasks", "Reward components, held-out"),
    Metric("score/<scorer>/<metric>", "", "mean of a further number that a scorer reports"),
    Metric("eval/score/<scorer>/<metric>", "", "mean of a further number that a scorer reports, on held-out tasks"),
    Metric("length/mean_tokens", "tokens", "mean length of a completion", "Completion length", "training"),
    Metric("eval/mean_tokens", "tokens", "mean length of a held-out completion", "Completion length", "held-out"),
    Metric("length/max_tokens", "tokens", "longest completion"),
    Metric("length/turns", "turns", "mean where the task has follow-ups, or the policy tools", "Turns", "training"),
    Metric("eval/turns", "turns", "the same, held-out", "Turns", "held-out"),
    Metric("tools/calls", "calls", "mean number of tool calls in a trajectory", "Tool calls", "training"),
    Metric("eval/tools/calls", "calls", "the same, held-out", "Tool calls", "held-out"),
    Metric("tools/refused_fraction", "fraction", "tool calls refused or failed", "Tool calls refused", "training"),
    Metric("eval/tools/refused_fraction", "fraction", "held-out tool calls so", "Tool calls refused", "held-out"),
    Metric("length/truncated_fraction", "fraction", "completions cut by the token limit", "Cut short", "training"),
    Metric("eval/truncated_fraction", "fraction", "held-out completions cut so", "Cut short", "held-out"),
    Metric("hallucination/supported", "fraction", "claims that the evidence supports"),
    Metric("hallucination/uncertain", "fraction", "claims that stay open", "Claims not supported", "uncertain"),
    Metric("hallucination/unsupported", "fraction", "claims without evidence", "Claims not supported", "unsupported"),
    Metric("hallucination/refuted", "fraction", "claims that are wrong", "Claims not supported", "refuted"),
    Metric("hallucination/claims", "claims", "claims per completion", "Claims per completion", "training"),
    Metric("hallucination/one_sided", "fraction", "largest share of one verdict", "Commonest verdict", "share"),
    Metric("eval/hallucination/claims", "claims", "the same, held-out", "Claims per completion", "held-out"),
    Metric("eval/hallucination/<verdict>", "fraction", "held-out claims of one verdict"),
    Metric("loss/entropy", "nats", "mean entropy of the policy over loss tokens", "Entropy", "policy"),
    Metric("loss/kl_ref", "nats", "divergence from the frozen reference policy", "KL divergence", "from the reference"),
    Metric("loss/kl_old", "nats", "divergence from the policy that sampled (k3)", "KL divergence", "within the update"),
    Metric("loss/policy", "", "policy loss", "Policy loss", "policy loss"),
    Metric("loss/total", "", "loss that was differentiated: policy, KL and entropy terms together"),
    Metric("loss/ratio_mean", "", "mean importance ratio over loss tokens"),
    Metric("loss/ratio_max", "", "largest importance ratio"),
    Metric("loss/rollout_ratio_max", "", "largest ratio of learner to engine probability"),
    Metric("loss/correction_weight_mean", "", "mean weight of the rollout correction"),
    Metric("loss/clip_low_fraction", "fraction", "loss tokens held by the lower clip", "Clipped tokens", "low"),
    Metric("loss/clip_high_fraction", "fraction", "loss tokens held by the upper clip", "Clipped tokens", "high"),
    Metric("loss/dual_clip_fraction", "fraction", "loss tokens held by the dual clip", "Clipped tokens", "dual"),
    Metric("loss/correction_fraction", "fraction", "loss tokens whose rollout correction was capped or masked"),
    Metric("loss/tokens", "tokens", "loss tokens of the step, over all ranks"),
    Metric("loss/grad_norm", "", "gradient norm before clipping", "Gradient norm", "before clipping"),
    Metric("loss/learning_rate", "", "learning rate of the step", "Learning rate", "learning rate"),
    Metric("loss/supervised", "nats", "cross-entropy of the warm start"),
    Metric("advantage/abs_mean", "reward", "mean absolute advantage"),
    Metric("advantage/std", "reward", "standard deviation of the advantages"),
    Metric("group/signal_fraction", "fraction", "groups whose rewards differ", "Groups with signal", "groups"),
    Metric("group/refilled", "groups", "groups drawn anew because they had no signal"),
    Metric("outcome/unscored", "trajectories", "training trajectories that no reward could be given"),
    Metric("outcome/unscored_fraction", "fraction", "trajectories a broken scorer left out", "Unscored", "training"),
    Metric("eval/unscored_fraction", "fraction", "held-out trajectories left unscored", "Unscored", "held-out"),
    Metric("outcome/failed/<scorer>", "trajectories", "trajectories on which one scorer failed"),
    Metric("outcome/abstained/<scorer>", "trajectories", "trajectories on which one scorer had nothing to say"),
    Metric("rollout/logprob_difference_mean", "nats", "mean absolute difference", _DIFFERENCE, "mean"),
    Metric("rollout/logprob_difference_max", "nats", "largest absolute difference", _DIFFERENCE, "largest"),
    Metric("publication/check_difference", "nats", "mean after a publication", _DIFFERENCE, "publication check"),
    Metric("publication/size_bytes", "bytes", "weights published to the engines"),
    Metric("rollout/version_lag", "versions", "mean over tokens, learner minus writer", "Staleness", "mean"),
    Metric("rollout/version_lag_max", "versions", "the same of the oldest token", "Staleness", "oldest token"),
    Metric("rollout/mixed_fraction", "fraction", "completions that more than one version of the policy wrote"),
    Metric("policy_version", "version", "weights that the step's update began from"),
    Metric("time/generate_s", "s", "waiting for rollouts", "Time per step", "generate"),
    Metric("time/score_s", "s", "waiting for scores after the last rollout", "Time per step", "score"),
    Metric("time/forward_s", "s", "waiting for early forward passes after the last score", "Time per step", "forward"),
    Metric("time/update_s", "s", "learner update", "Time per step", "update"),
    Metric("time/publish_s", "s", "publication of the weights", "Time per step", "publish"),
    Metric("time/check_s", "s", "comparing engine and learner after a publication", "Time per step", "check"),
    Metric("time/eval_s", "s", "held-out evaluation", "Time per step", "evaluate"),
    Metric("time/checkpoint_s", "s", "saving a checkpoint", "Time per step", "checkpoint"),
    Metric("time/log_s", "s", "waiting for the trajectory log of the step before", "Time per step", "log"),
    Metric("time/step_s", "s", "the whole step"),
    Metric("throughput/tokens_per_s", "tokens/s", "completion tokens over the step's time", "Throughput", "whole step"),
    Metric("throughput/generate_tokens_per_s", "tokens/s", "the same over its time", "Throughput", "generation"),
    Metric("throughput/tokens", "tokens", "completion tokens of the step, with those of groups drawn anew"),
    Metric(NONFINITE, "values", "values of this record that were not finite numbers and are written as null"),
)  # fmt: skip

_EXACT = {metric.name: metric for metric in METRICS if "<" not in metric.name}
_PATTERNS = [(re.compile(re.sub(r"<\w+>", "[^/]+", metric.name)), metric) for metric in METRICS if "<" in metric.name]


def declaration(name: str) -> Metric:
    """The declared metric that ``name`` is an instance of, with this name and, where it had none, a legend label.

    Raises ValueError for a name that is not declared, with the nearest declared one.
    """
    if name in _EXACT:
        return _EXACT[name]
    for pattern, metric in _PATTERNS:
        if pattern.fullmatch(name):
            return replace(metric, name=name, label=metric.label or name.rsplit("/", 1)[-1])
    near = difflib.get_close_matches(name, [metric.name for metric in METRICS], n=1, cutoff=0.5)
    suggestion = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"metric {name!r} is not declared{suggestion} Every name stands in METRICS, rl/metrics.py")


def is_declared(name: str) -> bool:
    return name in _EXACT or any(pattern.fullmatch(name) for pattern, _ in _PATTERNS)


class Sink(Protocol):
    """Anything that takes a step's numbers besides ``metrics.jsonl`` (see rl/sinks.py)."""

    def record(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None:
        """No more will come; ``failed`` where a run ends before its last step."""


class MetricsLog:
    """A run's ``metrics.jsonl``: one line per record, flushed at once, and the same numbers to every sink.

    Steps never go back. A number that is not finite is written as null and counted in ``nonfinite/count``.
    ``resume_at`` is the first step that will be recorded again: lines from it on are cut, so that a resumed run has
    neither gap nor overlap. Without it an existing file is an error (CheckpointError).
    """

    def __init__(self, path: Path, *, resume_at: int | None = None, sinks: Sequence[Sink] = ()) -> None:
        if resume_at is None and path.exists() and path.stat().st_size:
            raise CheckpointError(
                f"{path} already holds metrics of another run; resume that run or name another folder"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._last_step = keep_steps_before(resume_at, path) if resume_at is not None else -1
        self._file = path.open("a", encoding="utf-8")
        self._sinks = tuple(sinks)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of ``step``; a step may be recorded in several parts."""
        if step < self._last_step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last_step}")
        numbers = {declaration(name).name: float(value) for name, value in values.items()}
        nonfinite = sum(not math.isfinite(number) for number in numbers.values())
        if nonfinite:
            numbers[NONFINITE] = float(nonfinite)
        line = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self._file.write(json.dumps({"step": step, **line}, allow_nan=False) + "\n")
        self._file.flush()
        self._last_step = step
        for sink in self._sinks:
            sink.record(step, numbers)

    def close(self, *, failed: bool = False) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close(failed=failed)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """One mapping per step, in order, with ``step`` among its keys; a null comes back as NaN.

    The parts of a step are merged (their ``nonfinite/count`` added up); a last line that was cut by a crash is left
    out. Empty where the file does not exist.
    """
    steps: dict[int, dict[str, float]] = {}
    for line in whole_lines(path):
        record = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
        merged = steps.setdefault(int(record["step"]), {})
        if NONFINITE in record:
            record[NONFINITE] += merged.get(NONFINITE, 0.0)
        merged.update(record)
    return [steps[step] for step in sorted(steps)]


def keep_steps_before(before: int, path: Path) -> int:
    """Keep only the lines of steps ``< before``, by a rename; the last step kept, or -1."""
    kept = [line for line in whole_lines(path) if json.loads(line)["step"] < before]
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    return max((json.loads(line)["step"] for line in kept), default=-1)


def whole_lines(path: Path) -> Iterable[str]:
    """All lines but a last one that a crash cut; none where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line for line in file if line.endswith("\n"))


def group_metrics(
    groups: Sequence[Group], *, drawn_anew: Sequence[Group] = (), with_tools: bool = False
) -> dict[str, float]:
    """What the trajectories of a training step amount to, under declared names.

    A trajectory that is unscored counts in the lengths and in ``outcome/``, and nowhere else. The groups ``drawn_anew``
    count in ``outcome/`` and in the tokens that were written: what broken scorers left without signal is not hidden by
    what took its place. Where no trajectory was scored the reward is NaN, which the log shows as such; accuracy is left
    out where no answer can be told. ``with_tools`` says that the policy may call tools, whether it did or not.
    """
    scored = [item for group in groups for item in group.scored]
    unscored = [item for group in groups for item in group.unscored]
    every: list[ScoredTrajectory | Unscored] = [*scored, *unscored]
    rewards = np.array([item.reward for item in scored], dtype=np.float64)
    told = [item.correct for item in scored if item.correct is not None]
    values = {
        "reward/mean": float(rewards.mean()) if scored else math.nan,
        "reward/std": float(rewards.std()) if scored else math.nan,
        "group/signal_fraction": _mean([len({item.reward for item in group.scored}) > 1 for group in groups]),
    }
    if told:
        values["accuracy/train"] = _mean(told)
    if common := common_verdicts(groups):
        values["hallucination/one_sided"] = max(each.share for each in common.values())
    return (
        values
        | _outcome_metrics([item for group in (*groups, *drawn_anew) for item in group.items])
        | _length_metrics([item.trajectory for item in every], with_tools=with_tools)
        | _tool_metrics([item.trajectory for item in every], with_tools=with_tools)
        | _score_metrics([record for item in every for record in item.scores.values()])
        | _claim_metrics([record.score for item in every for record in item.scores.values() if record.score])
    )


_HELD_OUT = {
    "reward/mean": "eval/reward",
    "accuracy/train": "eval/accuracy",
    "length/mean_tokens": "eval/mean_tokens",
    "length/turns": "eval/turns",
    "length/truncated_fraction": "eval/truncated_fraction",
    "outcome/unscored_fraction": "eval/unscored_fraction",
}


_NESTED = ("score/", "hallucination/", "tools/")


def evaluation_metrics(groups: Sequence[Group], *, with_tools: bool = False) -> dict[str, float]:
    """What the trajectories of a held-out evaluation amount to, under the declared ``eval/`` names."""
    values = group_metrics(groups, with_tools=with_tools)
    renamed = {held_out: values[name] for name, held_out in _HELD_OUT.items() if name in values}
    nested = {f"eval/{name}": value for name, value in values.items() if name.startswith(_NESTED)}
    return renamed | nested


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _outcome_metrics(items: Sequence[ScoredTrajectory | Unscored]) -> dict[str, float]:
    unscored = sum(isinstance(item, Unscored) for item in items)
    named = {"abstained": "abstained", "failed": "failed", "invalid_input": "failed"}
    outcomes = Counter(
        f"outcome/{named[record.outcome]}/{record.scorer}"
        for item in items
        for record in item.scores.values()
        if record.outcome in named
    )
    return {
        "outcome/unscored": unscored,
        "outcome/unscored_fraction": unscored / max(len(items), 1),
        "throughput/tokens": float(sum(item.trajectory.length_tokens for item in items)),
        **outcomes,
    }


def _length_metrics(trajectories: Sequence[Trajectory], *, with_tools: bool) -> dict[str, float]:
    lengths = [trajectory.length_tokens for trajectory in trajectories]
    turns = [len(each.turns) for each in trajectories if with_tools or each.task.follow_ups or each.observations]
    return ({"length/turns": _mean(turns)} if turns else {}) | {
        "length/mean_tokens": _mean(lengths),
        "length/max_tokens": float(max(lengths, default=0)),
        "length/truncated_fraction": _mean([trajectory.finish_reason == "length" for trajectory in trajectories]),
    }


def _tool_metrics(trajectories: Sequence[Trajectory], *, with_tools: bool) -> dict[str, float]:
    calls = [call for trajectory in trajectories for call in trajectory.tool_calls]
    refused = {"tools/refused_fraction": _mean([not call.ok for call in calls])} if calls else {}
    return {"tools/calls": len(calls) / len(trajectories)} | refused if calls or (with_tools and trajectories) else {}


def _score_metrics(records: Iterable[ScoreRecord]) -> dict[str, float]:
    columns: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.score is not None:
            columns[f"score/{record.scorer}"].append(record.score.value)
            for name, value in record.score.metrics.items():
                columns[f"score/{record.scorer}/{name}"].append(value)
    return {name: _mean(values) for name, values in columns.items()}


def _claim_metrics(scores: Iterable[Score]) -> dict[str, float]:
    """Claims per completion and their share by verdict, over the scores that report how many claims they checked."""
    counts = [score.metrics for score in scores if "claims" in score.metrics]
    if not counts:
        return {}
    total = sum(count["claims"] for count in counts)
    shares = {
        f"hallucination/{verdict}": sum(count.get(verdict, 0.0) for count in counts) / total
        for verdict in get_args(Verdict)
        if total
    }
    return {"hallucination/claims": total / len(counts)} | shares
