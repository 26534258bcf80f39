"""What the trajectory store costs: the time to log a step, its size, the rate of a replay, the time of a page."""

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
from rl.view.index import TrajectoryIndex
from rl.view.pages import trajectories_page
from rl.view.query import Query
from rl.view.runs import find_runs
from rollouts.images import encode
from rollouts.log import LoggedStep, write_step
from tests.bench.peers import TURNS, Line, compare, show
from tests.made_up_log import GROUP_SIZE, a_step, write_made_up

GROUPS = 16  # 128 trajectories, a step of the quickstart
REPLAYED_STEPS = 4
VIEWED_ROWS = 100_000
ALLOWED = 0.02  # of the time of a step

Measured = dict[str, float]


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


def measure_sizes_and_replay() -> Measured:
    """Megabytes per 1,000 trajectories, and trajectories a second of a replay with the verifiable answer."""
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
        return {
            "store_mb_per_1000_trajectories": written.stat().st_size / rows / 1e3,
            "replay_trajectories_per_s": REPLAYED_STEPS * rows / seconds,
        }


def measure_view() -> Measured:
    """Seconds of the pages over 100,000 trajectories: the first one, which reads their columns, and others."""
    with tempfile.TemporaryDirectory() as name:
        write_made_up(Path(name), rows=VIEWED_ROWS)
        index = TrajectoryIndex(find_runs([Path(name)]))
        asked = {
            "view_first_page_s": Query(),
            "view_filter_s": Query(reward_min=0.5, sort="reward-low"),
            "view_text_s": Query(text="finding 77 "),
            "view_next_page_s": Query(text="finding 77 ", page=2),
        }
        return {key: _seconds(trajectories_page, index, query) for key, query in asked.items()}


def _seconds(call: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def compare_logging() -> Line:
    """A step of 128 trajectories with 16 images that are new."""
    with tempfile.TemporaryDirectory() as folder:
        ours, json_lines = writers(Path(folder), calls=TURNS + 1)
        return compare("log a step of 128 trajectories", ours, "the rows as JSON lines", json_lines)


def measure() -> Measured:
    """Every number, printed in a sentence."""
    logging = compare_logging()
    show([logging])
    viewed = measure_view()
    print(f"medrl view, {VIEWED_ROWS:,} trajectories: " + ", ".join(f"{name} {s:.2f}" for name, s in viewed.items()))
    store = viewed | measure_sizes_and_replay() | {"log_step_s": logging.ours_s, "log_step_ratio": logging.ratio}
    print(
        f"trajectory store: {store['store_mb_per_1000_trajectories']:.2f} MB per 1,000 trajectories; logging stays "
        f"within {ALLOWED:.0%} of steps of {logging.ours_s / ALLOWED:.1f} s and more; a replay scores "
        f"{store['replay_trajectories_per_s']:,.0f} trajectories/s on one core"
    )
    return store
