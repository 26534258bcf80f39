"""What the trajectory store costs: the time to log a step, its size on the disk, and the rate of a replay."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from rl.replay.rescore import replay
from rl.types import EncodedImage
from rollouts.images import encode
from rollouts.log import LoggedStep, write_step
from tests.bench.harness import Figure, Part, faster, interleaved, seconds_table, spread, timed
from tests.made_up_log import GROUP_SIZE, a_step

GROUPS = 16  # 128 trajectories, a step of the quickstart
REPLAYED_STEPS = 4


def writers(folder: Path, *, calls: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Log a step of 128 trajectories and 16 images that are new to the store; the same rows as JSON lines, synced.

    The first can be called ``calls`` times: every step is made beforehand.
    """
    step = a_step(1, groups=GROUPS)
    steps = [(folder / str(number), _with_images(step, number)) for number in range(calls)]

    def ours() -> None:
        write_step(*steps.pop())

    def json_lines() -> None:
        with (folder / "rows.jsonl").open("w") as file:
            for group in step.groups:
                for item in group.scored:
                    file.write(json.dumps(asdict(item), default=_plain) + "\n")
            file.flush()
            os.fsync(file.fileno())

    return ours, json_lines


def _with_images(step: LoggedStep, number: int) -> LoggedStep:
    """The step itself, beside images that no other has; they are as large as the quickstart's."""
    groups = []
    for index, group in enumerate(step.groups):
        task = replace(group.task, images=(_picture(number * GROUPS + index),))
        scored = tuple(replace(item, trajectory=replace(item.trajectory, task=task)) for item in group.scored)
        groups.append(replace(group, task=task, scored=scored))
    return replace(step, groups=groups)


def _picture(seed: int) -> EncodedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels))


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def sizes_and_replay() -> tuple[float, float]:
    """Megabytes per 1,000 trajectories, and trajectories/s of a replay with the verifiable answer on one core."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(REPLAYED_STEPS):
            written = write_step(folder / "run", a_step(number, groups=GROUPS))
        rows = GROUPS * GROUP_SIZE
        rewards = folder / "rewards.yaml"
        rewards.write_text("scorers: {answer: {use: answer}}")
        began = time.perf_counter()
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            replay(folder / "run", folder / "out", rewards=rewards, workers=1)
        seconds = time.perf_counter() - began
        return written.stat().st_size / rows / 1e3, REPLAYED_STEPS * rows / seconds


def measure(*, turns: int, quick: bool) -> Part:
    with tempfile.TemporaryDirectory() as folder:
        ours, json_lines = writers(Path(folder), calls=turns + 1)
        seconds = interleaved({"medrl": timed(ours), "JSON lines": timed(json_lines)}, turns=turns)
    stored = [sizes_and_replay() for _ in range(turns)]
    return Part(
        config={"trajectories": GROUPS * GROUP_SIZE, "images": GROUPS, "replayed_steps": REPLAYED_STEPS},
        figures=[
            Figure(
                what="Log a step of 128 trajectories with 16 new images: times as fast as the rows as JSON lines",
                value=faster(seconds, ours="medrl", than="JSON lines"),
                note="which hold no images, and are synced as well",
            ),
            Figure(what="Log a step", value=spread(seconds["medrl"]), unit="s", better="lower"),
            Figure(
                what="Trajectory store per 1,000 trajectories",
                value=spread([megabytes for megabytes, _ in stored]),
                unit="MB",
                better="lower",
            ),
            Figure(what="Replay on one core", value=spread([rate for _, rate in stored]), unit="trajectories/s"),
        ],
        tables=[seconds_table("Seconds to log a step", seconds)],
    )
