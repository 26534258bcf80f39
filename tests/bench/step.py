"""The whole step: ``medrl train`` against TRL's GRPOTrainer with vLLM, and against nothing but its two halves.

Three processes hold the same policy, tasks, rewards and engine settings, and take a step each in turn while the others
wait: medrl's driver with its actors; TRL's trainer; and a bare engine beside a bare PyTorch update, whose two times
make up the step that no orchestration would have.

TRL's own colocated vLLM does not run on a CPU, and not right on pictures: see `tests.bench.trl_with_vllm` for what is
mended for it. Every mending is in its favour.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rewards.scorer import Score, Scorer, Trajectory
from rl.config_schema import RunConfig
from rl.types import Task
from tests.bench.harness import Figure, Part, faster, interleaved, seconds_table, spread
from tests.bench.setting import CORES, PICTURE_PX, picture_tasks, policy, run_config

TASKS, GROUP_SIZE, COMPLETION_TOKENS = 8, 8, 64
AIM, ORCHESTRATION_AIM = 2.5, 0.05
PATIENCE_S = 600.0  # for one step, or for a contestant to be ready


@dataclass(frozen=True, kw_only=True)
class Vowels(Scorer):
    """The share of vowels: cheap, and different from completion to completion, so that there is something to learn."""

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(vowels(trajectory.text))


def vowels(text: str) -> float:
    return sum(text.lower().count(vowel) for vowel in "aeiou") / max(len(text), 1)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants are given."""

    folder: Path
    policy_path: Path
    turns: int

    def run_config(self) -> RunConfig:
        config = run_config()
        config.output_dir = str(self.folder / "run")
        config.max_steps = self.turns + 2  # one when all are ready, one that is not counted
        config.tasks_per_step, config.group_size = TASKS, GROUP_SIZE
        config.policy.path = str(self.policy_path)
        config.tasks.source, config.tasks.mapping = str(self.folder), str(self.folder / "mapping.yaml")
        config.tasks.balance = False
        config.sampling.max_tokens, config.sampling.stop = COMPLETION_TOKENS, []
        config.rewards.scorers = {"vowels": {"use": f"{__name__}:Vowels"}}
        config.evaluation.every_steps, config.checkpoint.every_steps = 0, config.max_steps
        config.logging.tensorboard = False
        return config

    def tasks(self) -> tuple[Task, ...]:
        from rl.launch import load_both_splits

        return load_both_splits(self.run_config())[0]


def write_tasks(folder: Path, *, side_px: int) -> None:
    """The tasks of every step, and one more that a run evaluates before it begins."""
    tasks = picture_tasks(TASKS + 1, side_px=side_px)
    for name, part in {"train": tasks[:-1], "eval": tasks[-1:]}.items():
        rows = []
        for task in part:
            path = folder / f"{task.id}.png"
            path.write_bytes(task.images[0].content)
            rows.append({"id": task.id, "image": path.name, "question": task.question, "label": task.answer["value"]})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mapping.yaml").write_text(
        "{id: id, image: image, question: question, split: {train: train.jsonl, eval: eval.jsonl},"
        " tasks: [{answer: {type: yes_no, column: label}}]}"
    )


class Contestant:
    """A process that takes one step when it is told to, and says how long it took."""

    def __init__(self, target: Callable[[Connection, Setting], None], setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = target.__name__
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, setting))
        self.process.start()
        theirs.close()

    def answer(self) -> Mapping[str, float]:
        if not self.connection.poll(PATIENCE_S):
            raise TimeoutError(f"{self.name} took more than {PATIENCE_S:g} s")
        answer: Mapping[str, float] = self.connection.recv()  # EOFError where it has died
        return answer

    def step(self, order: Any = None) -> Mapping[str, float]:
        self.connection.send(order)
        return self.answer()

    def dismiss(self) -> None:
        self.connection.close()
        self.process.join(timeout=60)
        self.process.kill()


def medrl(connection: Connection, setting: Setting) -> None:
    """A run of ``medrl train`` that waits for its turn at the end of each step, with the log of it still to be written:
    that is done beside the next step."""
    import rl.train
    from rl.launch import train

    class Turns(rl.train.Progress):
        def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
            assert values
            connection.send({"step": values["time/step_s"]})
            _wait(connection)

    rl.train.Progress = Turns  # type: ignore[misc]
    train(setting.run_config())


def bare(connection: Connection, setting: Setting) -> None:
    """An engine and a policy in one process: generate for the prompts of a step, update on a packed batch."""
    from rl.batch import train_sample
    from rl.collect import make_requests
    from rl.settings import engine_settings, training_sampling
    from rl.types import TrainBatch
    from rollouts.engine import VllmEngine
    from tests.bench.bare_generate import BareGenerate
    from tests.bench.learner import BareUpdate
    from tests.bench.setting import learner

    config = setting.run_config()
    trained = learner(setting.policy_path, config)
    engine = VllmEngine(engine_settings(config, str(setting.policy_path)))
    asked = make_requests(
        setting.tasks(),
        kind="train",
        step=0,
        first=0,
        num_samples=GROUP_SIZE,
        sampling=training_sampling(config),
        seed=0,
    )
    keys = [engine.add(request) for request in asked]
    while len(engine.answers) < len(keys):
        engine.step()
    groups = [engine.answers.pop(key) for key in keys]
    samples = tuple(
        train_sample(each, group=number, advantage=(-1.0) ** each.sample_index)
        for number, group in enumerate(groups)
        for each in group
    )
    loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    update = BareUpdate(trained, TrainBatch(samples=samples, loss_tokens=loss_tokens, policy_version=0))
    generate = BareGenerate(engine, asked)
    connection.send({})
    while _wait(connection):
        engine.drop_caches()
        began = time.perf_counter()
        generate()
        generated = time.perf_counter()
        update()
        connection.send({"generate": generated - began, "update": time.perf_counter() - generated})


def trl(connection: Connection, setting: Setting) -> None:
    """GRPOTrainer with vLLM; told whether to correct for the engine's logprobs, which costs it a forward pass."""
    from tests.bench.trl_with_vllm import make_trainer

    def next_turn(taken_s: float) -> bool:
        connection.send({"step": taken_s})
        order = _wait(connection)
        if order:
            trainer.vllm_importance_sampling_correction = order == "corrected"
        return bool(order)

    trainer = make_trainer(setting, vowels, next_turn)
    trainer.train()


def _wait(connection: Connection) -> Any:
    """The next order; False where there is none to come."""
    try:
        return connection.recv() or True
    except EOFError:
        return False


def measure(*, turns: int, quick: bool) -> Part:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, side_px=84 if quick else PICTURE_PX[250])
        setting = Setting(folder, policy("tiny" if quick else "medium"), turns)
        contestants: list[Contestant] = []
        try:
            for target in (medrl, bare, trl):  # one after the other: a start takes both cores
                contestants.append(Contestant(target, setting))
                contestants[-1].answer()
            return _measured(*contestants, turns=turns, quick=quick)
        finally:
            for contestant in contestants:
                contestant.dismiss()


def _measured(ours: Contestant, halves: Contestant, theirs: Contestant, *, turns: int, quick: bool) -> Part:
    parts: list[Mapping[str, float]] = []

    def both_halves() -> float:
        parts.append(halves.step())
        return sum(parts[-1].values())

    seconds = interleaved(
        {
            "medrl": lambda: ours.step()["step"],
            "bare generation + bare update": both_halves,
            "TRL": lambda: theirs.step("plain")["step"],
            "TRL, corrected": lambda: theirs.step("corrected")["step"],
        },
        turns=turns,
    )
    both = zip(seconds["medrl"], seconds["bare generation + bare update"], strict=True)
    orchestration = spread([(step_s - bare_s) / step_s for step_s, bare_s in both])
    trajectories = TASKS * GROUP_SIZE
    return Part(
        config={"policy": "tiny" if quick else "medium", "dtype": "float32", "threads": CORES, "tasks": TASKS}
        | {"group_size": GROUP_SIZE, "completion_tokens": COMPLETION_TOKENS, "max_staleness": 0},
        figures=[
            Figure(
                what="A step: trajectories/s over TRL's GRPOTrainer with vLLM",
                value=faster(seconds, ours="medrl", than="TRL"),
                aim=AIM,
                note="TRL without importance correction, which medrl has at no cost; TRL's colocated vLLM was mended",
            ),
            Figure(
                what="A step: trajectories/s over TRL's with importance correction, its default and medrl's",
                value=faster(seconds, ours="medrl", than="TRL, corrected"),
            ),
            Figure(
                what="A step: share that is neither bare generation nor bare update",
                value=orchestration,
                unit="",
                aim=ORCHESTRATION_AIM,
                better="lower",
            ),
            Figure(
                what="A step: trajectories/s",
                value=spread([trajectories / taken_s for taken_s in seconds["medrl"]]),
                unit="trajectories/s",
            ),
        ],
        tables=[
            seconds_table("Seconds of a step", seconds),
            seconds_table("Its bare halves", {name: [each[name] for each in parts[1:]] for name in parts[0]}),
        ],
    )
