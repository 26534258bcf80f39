"""The log of a step: written beside the next one, and whole before anything is built on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from policies.contract import Update
from rl.collect import Collected
from rl.errors import MedrlError
from rl.metrics import MetricsLog
from rl.timeline import Timeline
from rl.types import TrainBatch
from rollouts.log import LoggedStep, write_step
from rollouts.prompts import messages_by_task


class StepLog:
    """Writes one step or evaluation at a time, its trajectories into ``folder`` (None: nowhere) and then its metrics:
    where rewards are recorded, the trajectories that got them can be read.

    ``waited_s`` is for how long the loop has waited for it since the last step was begun.
    """

    def __init__(self, folder: Path | None, *, metrics: MetricsLog, timeline: Timeline) -> None:
        self._folder, self._metrics, self._timeline = folder, metrics, timeline
        self._writing: asyncio.Task[None] | None = None
        self.waited_s = 0.0

    def begin(self, logged: LoggedStep, values: Mapping[str, float]) -> None:
        """To be called once what was begun before is written."""
        if logged.kind == "train":
            self.waited_s = 0.0
        self._writing = asyncio.create_task(self._write(logged, values))

    async def written(self) -> None:
        """Wait until what was begun is on the disk. Raises what the writing raised."""
        began = time.perf_counter()
        if self._writing:
            await asyncio.shield(self._writing)  # who is called off while waiting does not call the writing off
        self.waited_s += time.perf_counter() - began

    @asynccontextmanager
    async def kept_on_failure(self, step: int, rounds: Sequence[Collected]) -> AsyncIterator[None]:
        """What runs inside makes something of the step's trajectories; where it fails they are written all the same,
        for whoever looks for the reason."""
        try:
            yield
        except MedrlError as error:
            try:
                await self.written()
                if self._folder:
                    await asyncio.to_thread(write_step, self._folder, _bare_step(step, rounds))
            except OSError as failed:
                error.add_note(f"Its trajectories could not be written either: {failed}")
            raise

    async def _write(self, logged: LoggedStep, values: Mapping[str, float]) -> None:
        with self._timeline.during("log", logged.step):
            if self._folder:
                await asyncio.to_thread(write_step, self._folder, logged)
        self._metrics.record(logged.step, values)

    async def __aenter__(self) -> StepLog:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """However a run ends, the steps that it took are in its log."""
        try:
            await self.written()
        except OSError as failed:
            if error is None:
                raise
            error.add_note(f"The last step could not be written either: {failed}")


def logged_step(
    step: int, collected: Collected, batch: TrainBatch, update: Update, *, record: Mapping[str, Any]
) -> LoggedStep:
    """The step's trajectories with what training made of them; ``record`` says what the update did."""
    samples = batch.samples
    return replace(
        _bare_step(step, [collected]),
        advantages={sample.trajectory_id: sample.advantage for sample in samples},
        learner_logprobs={
            sample.trajectory_id: _spread(part, sample.loss_mask[sample.prompt_length :])
            for sample, part in zip(samples, update.logprobs, strict=True)
        },
        micro_batches={
            sample.trajectory_id: number for sample, number in zip(samples, update.micro_batches, strict=True)
        },
        update=record,
    )


def _bare_step(step: int, rounds: Sequence[Collected]) -> LoggedStep:
    """The step's trajectories, of which training made nothing."""
    groups = [group for each in rounds for group in each.groups]
    every = [*groups, *(group for each in rounds for group in each.drawn_anew)]
    return LoggedStep(
        step=step, groups=every, drawn_anew=range(len(groups), len(every)), messages=messages_by_task(every)
    )


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values of the masked tokens at their places among all tokens, NaN elsewhere."""
    spread = np.full(len(mask), np.nan, dtype=np.float32)
    spread[mask] = values
    return spread
