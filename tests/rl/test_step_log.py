"""A step's log beside the next step: in order, whole however the waiting ends, and never a silent loss."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import rl.step_log
from rl.collect import Collected
from rl.errors import LearnerError
from rl.metrics import MetricsLog, read_metrics
from rl.step_log import StepLog
from rl.timeline import Timeline, read_timeline
from rollouts.log import LoggedStep, logged_steps, write_step
from tests.samples import a_group


def a_step(step: int) -> LoggedStep:
    return LoggedStep(step=step, groups=[a_group([0.0, 1.0], id=f"g{step}")])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StepLog]:
    with MetricsLog(tmp_path / "metrics.jsonl") as metrics, Timeline(tmp_path / "timeline.jsonl") as timeline:
        yield StepLog(tmp_path, metrics=metrics, timeline=timeline)


class SlowDisk:
    """Writes a step once it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(rl.step_log, "write_step", self.write)

    def write(self, folder: Path, logged: LoggedStep) -> None:
        self.began.set()
        assert self.go_on.wait(timeout=20)
        write_step(folder, logged)


async def test_metrics_follow_the_trajectories_that_are_written_beside_the_loop(
    log: StepLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    async with log:
        log.begin(a_step(1), {"reward/mean": 0.5})
        while not disk.began.is_set():
            await asyncio.sleep(0)  # the loop goes on meanwhile
        assert not logged_steps(tmp_path) and not read_metrics(tmp_path / "metrics.jsonl")
        disk.go_on.set()
        await log.written()
        assert logged_steps(tmp_path) == [1]
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5}]
        log.begin(a_step(2), {"reward/mean": 1.0})
    assert logged_steps(tmp_path) == [1, 2]  # leaving waits for the last one
    assert [span.phase for spans in read_timeline(tmp_path / "timeline.jsonl").values() for span in spans] == [
        "log"
    ] * 2


async def test_who_is_called_off_while_waiting_leaves_the_step_whole(
    log: StepLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)

    async def loop() -> None:
        async with log:
            log.begin(a_step(1), {"reward/mean": 0.5})
            await log.written()

    running = asyncio.create_task(loop())
    while not disk.began.is_set():
        await asyncio.sleep(0)
    running.cancel()  # as a second Ctrl-C does
    await asyncio.sleep(0)
    disk.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert logged_steps(tmp_path) == [1]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5}]


async def test_a_step_that_cannot_be_written_has_no_metrics_and_stops_whoever_waits(
    log: StepLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, logged: LoggedStep) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(rl.step_log, "write_step", fail)
    with pytest.raises(OSError, match="no space left"):
        async with log:
            log.begin(a_step(1), {"reward/mean": 0.5})
    assert not read_metrics(tmp_path / "metrics.jsonl") and not read_timeline(tmp_path / "timeline.jsonl")


async def test_a_disk_that_fails_does_not_hide_what_failed_before(
    log: StepLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, logged: LoggedStep) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rl.step_log, "write_step", full)
    with pytest.raises(LearnerError, match="the loss is nan") as caught:
        async with log, log.kept_on_failure(2, [Collected([a_group([0.0, 1.0], id="g2")], spans=(), waits=())]):
            raise LearnerError("the loss is nan")
    assert "No space left on device" in caught.value.__notes__[0]
