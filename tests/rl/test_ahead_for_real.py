"""Generation ahead of the update with real Ray, vLLM and DeepSpeed: weights change under what is half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rl.metrics import read_metrics
from rl.types import Trajectory
from rollouts.log import read_step
from tests.killing import Moment
from tests.rl.conftest import STEPS, killed, medrl, train

pytestmark = pytest.mark.slow

AHEAD = ("async.max_staleness=1", "rollouts.max_num_seqs=4")  # so few at once that a step outlasts an update


@pytest.fixture(scope="module")
def ahead(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ahead"
    train(config, folder, *AHEAD)
    return folder


def trajectories(run: Path, step: int) -> list[Trajectory]:
    return [item.trajectory for group in read_step(run, step).groups for item in group.items]


def test_weights_change_in_flight_and_no_token_is_older_than_the_bound(ahead: Path) -> None:
    steps = {step: trajectories(ahead, step) for step in range(1, STEPS + 1)}
    assert [len(each) for each in steps.values()] == [16] * STEPS
    lags = [step - 1 - each.token_versions for step, written in steps.items() for each in written]
    assert all(0 <= lag.min() <= lag.max() <= 1 and (np.diff(lag) <= 0).all() for lag in lags)
    assert any(each.later_versions for written in steps.values() for each in written)
    records = read_metrics(ahead / "metrics.jsonl")
    assert max(record.get("rollout/version_lag_max", 0) for record in records) == 1
    assert all(record["publication/check_difference"] < 1e-4 for record in records)


def test_what_was_written_before_the_weights_changed_has_the_logprobs_of_the_old_ones(
    ahead: Path, tiny_policy: Path
) -> None:
    import torch

    from policies.vlm import load_policy

    model, processor = load_policy(str(tiny_policy))  # version 0
    begun_by_it = [trajectory for trajectory in trajectories(ahead, 2) if trajectory.policy_version == 0]
    assert begun_by_it
    for trajectory in begun_by_it:
        images = processor.image_processor([image.decode() for image in trajectory.task.images], return_tensors="pt")
        ids = torch.from_numpy(np.concatenate([trajectory.prompt_token_ids, trajectory.completion_token_ids])).long()
        with torch.no_grad():
            logits = model(input_ids=ids[None], **images).logits[0, len(trajectory.prompt_token_ids) - 1 : -1]
        completion = ids[len(trajectory.prompt_token_ids) :, None]
        expected = logits.log_softmax(-1).gather(1, completion)[:, 0].numpy()
        apart = np.abs(trajectory.rollout_logprobs - expected)
        old = trajectory.token_versions == 0
        assert apart[old].max() < 1e-4
        assert old.all() or apart[~old].max() > 1e-3


def test_a_step_that_was_written_ahead_is_made_again_from_its_log_to_the_bit(ahead: Path) -> None:
    done = medrl("replay", ahead, "--step", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines = done.stdout.splitlines()
    assert head == "step 3, from checkpoint step_000002; compared to the bit"
    assert lines[-1] == "no difference" and "weights after     same" in done.stdout
    assert read_metrics(ahead / "metrics.jsonl")[3]["rollout/logprob_difference_mean"] > 1e-3  # it was off-policy


def test_a_run_killed_while_it_writes_ahead_loses_and_doubles_no_task(
    ahead: Path, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    killed(
        config, folder, Moment("update", 3, 0.05), *AHEAD
    )  # after the checkpoint of step 2, with step 4 half-written
    resumed = train(config, folder, *AHEAD, "resume=true")
    assert "resuming after step 2" in resumed.stderr and "written ahead is written anew" in resumed.stderr
    for step in range(1, STEPS + 1):
        written = trajectories(folder, step)
        assert [each.task.id for each in written] == [each.task.id for each in trajectories(ahead, step)]
        lags = [step - 1 - each.token_versions for each in written]
        assert all(0 <= lag.min() <= lag.max() <= 1 for lag in lags)
