"""Two small runs with all that a page can show, and a server over them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.metrics import MetricsLog
from rl.types import (
    EncodedImage,
    Evidence,
    Group,
    Measurement,
    Score,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    ToolCall,
    Unscored,
)
from rl.view.index import TrajectoryIndex
from rl.view.runs import find_runs
from rl.view.server import ViewServer
from rollouts.log import LoggedStep, write_step
from tests.samples import a_task, a_trajectory

ATTACK = '<script>window.owned=1</script>"\'><img src=x onerror="window.owned=1">'
TRACE = "<think>radius 17.9 high; texture 12.0 low</think><answer>yes</answer>"
WIDTH, HEIGHT = 64, 32


def an_image() -> EncodedImage:
    encoded = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "plum").save(encoded, "PNG")
    return EncodedImage(content=encoded.getvalue(), width=WIDTH, height=HEIGHT, source="plum.png")


def scored(task: Task, index: int, reward: float, *, text: str = TRACE, refuted: int = 0) -> ScoredTrajectory:
    """One whose first claim is refuted where ``refuted`` is not 0."""
    verdict = "refuted" if refuted else "supported"
    claim = Evidence(
        claim="radius 17.9 high", verdict=verdict, start=7, end=23, source="record.radius", note="as cited"
    )
    facts = Score(reward, reason="one claim", evidence=(claim,), metrics={"claims": 1, verdict: 1})
    answer = Score(float(reward > 0.5), reason="read the answer block")
    trajectory = a_trajectory(
        text,
        id=f"{task.id}/{index}",
        task=task,
        sample_index=index,
        finish_reason="length" if index == 1 else "stop",
        tool_calls=(ToolCall(name="zoom", arguments={"by": 2}, result="closer"),) if index == 0 else (),
    )
    records = {
        name: ScoreRecord(scorer=name, version="v1", outcome="scored", score=score, inputs="8e2b")
        for name, score in (("answer", answer), ("facts", facts))
    }
    return ScoredTrajectory(trajectory=trajectory, reward=reward, scores=records, correct=reward > 0.5)


def a_case(name: str) -> Task:
    return a_task(
        name,
        question=f"Is the mass of {name} malignant?",
        images=(an_image(),),
        record={"radius": Measurement(value=17.9, unit="um", reading="high")},
        stratum="yes",
    )


def a_training_step(step: int, *rewards: float, name: str = "case") -> LoggedStep:
    """A group of one task with these rewards, the last with a refuted claim, beside one that stayed unscored."""
    task = a_case(f"{name}-{step}")
    group = [scored(task, index, reward, refuted=index == len(rewards) - 1) for index, reward in enumerate(rewards)]
    failed = ScoreRecord(scorer="judge", version="v1", outcome="failed", reason="no answer within 30 s")
    lost = Unscored(
        trajectory=a_trajectory(TRACE, id=f"{task.id}/{len(rewards)}", task=task, sample_index=len(rewards)),
        scores={"judge": failed},
        reason="judge failed",
    )
    ids = [item.trajectory.id for item in group]
    return LoggedStep(
        step=step,
        groups=[Group(task=task, scored=tuple(group), unscored=(lost,))],
        advantages={id: reward - 0.5 for id, reward in zip(ids, rewards, strict=True)},
        learner_logprobs={id: np.array([-0.5, -0.75], np.float32) for id in ids},
        messages={task.id: [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]}]},
    )


def an_attack() -> LoggedStep:
    """A held-out step whose every text tries to leave its place."""
    task = replace(
        a_task(ATTACK, question=ATTACK, system=ATTACK, answer={"value": ATTACK}, stratum=ATTACK),
        record={ATTACK: Measurement(value=1.0, unit=ATTACK, reading=ATTACK)},
        extra={ATTACK: ATTACK},
    )
    spot = Evidence(claim=ATTACK, verdict="refuted", start=9, end=30, source=ATTACK, note=ATTACK)
    score = Score(0.75, reason=ATTACK, evidence=(spot,), metrics={"claims": 1, "refuted": 1})
    record = ScoreRecord(scorer=ATTACK, version=ATTACK, outcome="scored", score=score)
    trajectory = a_trajectory(
        f"<think>{ATTACK}</think><answer>{ATTACK}</answer>",
        id=ATTACK,
        task=task,
        tool_calls=(ToolCall(name=ATTACK, arguments={ATTACK: ATTACK}, result=ATTACK, ok=False),),
    )
    item = ScoredTrajectory(trajectory=trajectory, reward=0.75, scores={ATTACK: record})
    messages = {task.id: [{"role": ATTACK, "content": ATTACK}]}
    return LoggedStep(step=0, groups=[Group(task=task, scored=(item,))], kind="eval", messages=messages)


def a_box() -> LoggedStep:
    """Asked for a box in an image of 64x32 pixels: the key is the left half, the answer the right one."""
    key = {"type": "box", "value": [0, 0, 32, 32]}
    task = replace(a_case("box"), answer=key, reference={"regions": [{"box": [16, 8, 48, 24], "label": "mass"}]})
    text = "<think>A mass at [16, 8, 32, 16].</think><answer>[32, 0, 64, 32]</answer>"
    item = scored(task, 0, 0.0, text=text, refuted=1)
    return LoggedStep(step=4, groups=[Group(task=task, scored=(item,))], kind="eval")


def make_runs(folder: Path) -> dict[str, Path]:
    """``first`` has rewards 0, 0.25, 0.5, 1 at step 1, 0.75 and 0.875 at step 2, and held-out ones; ``second`` has
    0.125 and 0.625 at step 1. Every training step has one that stayed unscored besides."""
    first, second = folder / "first", folder / "second"
    for step in (a_training_step(1, 0.0, 0.25, 0.5, 1.0), a_training_step(2, 0.75, 0.875), an_attack(), a_box()):
        write_step(first, step)
    write_step(second, a_training_step(1, 0.125, 0.625, name="other"))
    for run, gain in ((first, 0.1), (second, 0.2)):
        with MetricsLog(run / "metrics.jsonl") as log:
            for step in range(4):
                log.record(step, {"reward/mean": gain * step, "loss/entropy": 2.0 / (step + 1)})
    config = {"rewards": {"scorers": {"facts": {"use": "hallucination", "weight": 0.5}}}}
    (first / "config.yaml").write_text(json.dumps(config))
    return find_runs([first, second])


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """To be read only."""
    return make_runs(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="session")
def server(runs: dict[str, Path]) -> Iterator[ViewServer]:
    with serving(ViewServer(TrajectoryIndex(runs), host="127.0.0.1", port=0)) as server:
        yield server


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[ViewServer]:
    """A server over runs that a test may change."""
    with serving(ViewServer(TrajectoryIndex(make_runs(tmp_path)), host="127.0.0.1", port=0)) as server:
        yield server


class serving:
    """A server that answers while the block runs."""

    def __init__(self, server: ViewServer) -> None:
        self.server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> ViewServer:
        self._thread.start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
