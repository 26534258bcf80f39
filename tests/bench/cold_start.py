"""From nothing: imports, the first optimizer step of a run, what its actors hold, and the learner's peak by context."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rl.metrics import read_metrics
from tests.bench.harness import Figure, Growth, Part, Spread, faster, grown, interleaved, seconds_table, spread, timed
from tests.bench.memory import peak_mb, reset_peak
from tests.bench.setting import learner, picture_tasks, policy, random_batch, run_config

BIN = Path(sys.executable).parent
RUNS = 5
LOOK_EVERY_S = 0.25
PATIENCE_S = 500.0
CONTEXTS_PX = (112, 224, 448, 896)  # sides of the picture in the prompt
ACTORS = {"RolloutWorker": "rollout worker", "RewardWorker": "reward worker", "LearnerWorker": "learner"}


def measure(*, turns: int, quick: bool) -> Part:
    starts = interleaved(
        {
            "medrl --help": _command(BIN / "medrl", "--help"),
            "trl --help": _command(BIN / "trl", "--help"),
            "import rl.config": _command(sys.executable, "-c", "import rl.config"),
            "python -c pass": _command(sys.executable, "-c", "pass"),
        },
        turns=turns,
    )
    runs = [first_step() for _ in range(1 if quick else RUNS)]
    name = "tiny" if quick else "medium"
    return Part(
        config={"policy": "tiny", "dtype": "float32", "runs": len(runs), "policy of the contexts": name},
        figures=[
            Figure(
                what="medrl --help: times as fast as trl --help",
                value=faster(starts, ours="medrl --help", than="trl --help"),
            ),
            _low("medrl --help", spread(starts["medrl --help"]), "s"),
            _low("import rl.config", spread(starts["import rl.config"]), "s"),
            _low(
                "From the command to the first optimizer step",
                spread([run.seconds for run in runs]),
                "s",
                note="quickstart without its supervised stage: policy built, actors and engine started",
            ),
            *(
                _low(f"Memory of the {actor}, at most", spread([run.actors_mb[actor] for run in runs]), "MB")
                for actor in ACTORS.values()
            ),
        ],
        growths=[contexts(name, CONTEXTS_PX[:2] if quick else CONTEXTS_PX)],
        tables=[seconds_table("Seconds to start and end", starts)],
    )


def _low(what: str, value: Spread, unit: str, note: str = "") -> Figure:
    return Figure(what=what, value=value, unit=unit, better="lower", note=note)


def _command(*command: str | Path) -> Callable[[], float]:
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


@dataclass(frozen=True, slots=True)
class FirstStep:
    """Seconds from the command to a recorded step, and the most that each kind of actor held until then, in MB."""

    seconds: float
    actors_mb: dict[str, float]


def first_step() -> FirstStep:
    """Run the quickstart for one step, without its supervised stage, and watch it from outside."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        overrides = [f"output_dir={folder}", "max_steps=1", "warmstart.steps=0", "evaluation.max_tasks=1"]
        began = time.perf_counter()
        said = Path(name, "said")
        with said.open("w") as output:
            command = [BIN / "medrl", "train", "quickstart", *overrides]
            run = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        held_mb = dict.fromkeys(ACTORS.values(), 0.0)
        while not _has_stepped(folder):
            if run.poll() or time.perf_counter() - began > PATIENCE_S:
                status = run.poll()
                with contextlib.suppress(psutil.Error):  # it has ended by itself
                    run.kill()
                raise RuntimeError(f"medrl train had no first step: exit status {status}; {said.read_text()[-300:]}")
            for actor, mb in _actors_mb(run):
                held_mb[actor] = max(held_mb[actor], mb)
            time.sleep(LOOK_EVERY_S)
        seconds = time.perf_counter() - began
        run.wait(PATIENCE_S)
        return FirstStep(seconds, held_mb)


def _has_stepped(folder: Path) -> bool:
    return any("time/step_s" in record for record in read_metrics(folder / "metrics.jsonl"))


def _actors_mb(run: psutil.Process) -> Iterator[tuple[str, float]]:
    for process in _children(run):
        try:
            title, held = " ".join(process.cmdline()), process.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
        for actor, name in ACTORS.items():
            if title.startswith(f"ray::{actor}"):
                yield name, held / 2**20


def _children(run: psutil.Process) -> list[psutil.Process]:
    try:
        return list(run.children(recursive=True))
    except psutil.Error:
        return []


def contexts(name: str, sides_px: Sequence[int]) -> Growth:
    """The most memory that an update takes, above what the learner holds, as the prompt of a group of 8 grows."""
    trained = learner(policy(name), run_config())
    points = []
    for side_px in sides_px:
        tasks = picture_tasks(1, side_px=side_px)
        batch = random_batch(tasks, trained.processor, group_size=8, completion_tokens=64)
        before_mb = reset_peak()
        trained.update(batch)
        points.append((float(batch.samples[0].prompt_length), [peak_mb() - before_mb]))
    return grown("Peak memory of an update", over="prompt tokens", unit="MB", points=points)
