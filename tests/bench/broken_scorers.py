"""What a broken scorer costs the others: of 64 scores some hang, spin or take their process with them.

The same for two well-known frameworks, with their own code: TRL's reward call, and verl's manager of parallel scores.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.config import ConfiguredScorer
from rewards.scorer import Score, Scorer, Trajectory
from rewards.service import RewardService
from rl.types import ScoredTrajectory, Unscored
from tests.bench.harness import Figure, Part, Table, spread
from tests.bench.verl_package import FOLDER, install_verl
from tests.samples import a_trajectory

SCORES = 64
BROKEN = (1, 6, 16)
DEADLINE_S = 5.0
WORK_S = 0.05  # what an innocent score takes
VERL_WORK_S = 1.0  # the same at verl, whose 64 processes run at once: all must be at work when the crash comes
PATIENCE_S = 20.0  # for a framework that has no deadline of its own


@dataclass(frozen=True, kw_only=True)
class Foreign(Scorer):
    """Does what the text says; runs in processes of its own."""

    async def score(self, trajectory: Trajectory) -> Score:
        match trajectory.text:
            case "hang":
                time.sleep(3600)
            case "spin":
                while True:
                    pass
            case "exit":
                os._exit(3)
        time.sleep(WORK_S)
        return Score(1.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of 64 scores: how many there are, when the last innocent one came, and when all were settled."""

    scored: int
    innocent_s: float
    all_s: float


def measure(*, turns: int, quick: bool) -> Part:
    deadline_s = 1.0 if quick else DEADLINE_S
    rows = asyncio.run(medrl_rows(BROKEN[1:2] if quick else BROKEN, deadline_s=deadline_s))
    following = [{"innocent": SCORES, "scored": row["next batch scored"]} for row in rows]
    peers = [*trl_rows(("fine", "exit") if quick else ("fine", "raise", "exit", "hang"))]
    missing = install_verl()
    if not missing:
        peers += verl_rows((1, 6))
    return Part(
        config={"scores": SCORES, "deadline_s": deadline_s, "work_s": WORK_S, "patience_s": PATIENCE_S},
        figures=[
            Figure(
                what="Broken scorers: innocent trajectories that lose their score, at most",
                value=spread([float(max(row["innocent"] - row["scored"] for row in [*rows, *following]))]),
                unit="",
                aim=0,
                better="lower",
            ),
            Figure(
                what="Broken scorers: the next batch is late by, at most",
                value=spread([max(row["next batch late s"] for row in rows)]),
                unit="s",
                aim=deadline_s,
                better="lower",
                note=f"the deadline is {deadline_s:g} s",
            ),
        ],
        tables=[
            Table(
                title=f"medrl: of {SCORES} scores some are broken",
                columns=tuple(rows[0]),
                rows=[tuple(row.values()) for row in rows],
            ),
            Table(title="The same elsewhere", columns=("", "what came of it"), rows=peers),
        ],
        notes=[missing] if missing else [],
    )


async def medrl_rows(counts: Sequence[int], *, deadline_s: float) -> list[dict[str, Any]]:
    scorers = (ConfiguredScorer(name="foreign", scorer=Foreign(), isolated=True, timeout_s=deadline_s),)
    rows: list[dict[str, Any]] = []
    with RewardService(scorers) as service:
        await _batch(service, "fine", 0)
        sound = await _batch(service, "fine", 0)
        for fault in ("hang", "spin", "exit"):
            for count in counts:
                first = await _batch(service, fault, count)
                following = await _batch(service, "fine", 0)
                rows.append(
                    {
                        "": f"{count} {fault}",
                        "innocent": SCORES - count,
                        "scored": first.scored,
                        "innocent late s": first.innocent_s - sound.innocent_s,
                        "batch late s": first.all_s - sound.all_s,
                        "next batch scored": following.scored,
                        "next batch late s": following.all_s - sound.all_s,
                    }
                )
    return rows


async def _batch(service: RewardService, fault: str, count: int) -> Batch:
    began = time.perf_counter()
    innocent_s = 0.0

    async def one(trajectory: Trajectory) -> ScoredTrajectory | Unscored:
        nonlocal innocent_s
        outcome = await service.score(trajectory)
        if trajectory.text == "fine":
            innocent_s = max(innocent_s, time.perf_counter() - began)
        return outcome

    outcomes = await asyncio.gather(
        *(one(a_trajectory(text, id=f"{i}/0")) for i, text in enumerate(texts(fault, count)))
    )
    scored = sum(isinstance(outcome, ScoredTrajectory) for outcome in outcomes)
    return Batch(scored, innocent_s, time.perf_counter() - began)


def texts(fault: str, count: int) -> list[str]:
    """The faults evenly among the innocents."""
    places = set(range(0, SCORES, SCORES // count)[:count]) if count else set()
    return [fault if index in places else "fine" for index in range(SCORES)]


_TRL = """
import os, sys, time
from types import SimpleNamespace as Has
from trl import GRPOTrainer

def reward(completions, **kwargs):
    faults = {"hang": lambda: time.sleep(3600), "exit": lambda: os._exit(3), "raise": lambda: 1 / 0}
    return [faults[text]() if text in faults else 1.0 for text in completions]

class Broken(GRPOTrainer):
    def __init__(self):
        self.accelerator = Has(device="cpu", is_main_process=True)
        self.reward_funcs, self.reward_processing_classes, self.reward_func_names = [reward], [None], ["reward"]
        self.environments, self.args, self.state = None, Has(report_to=[]), Has(global_step=0)

texts = sys.argv[1:]
rewards = Broken()._calculate_rewards([{"prompt": "p"}] * len(texts), ["p"] * len(texts), texts, [[1]] * len(texts))
print(int(rewards.isfinite().sum()), "of", len(texts), "have a reward", flush=True)
"""


def trl_rows(faults: Sequence[str]) -> Iterator[tuple[str, str]]:
    """TRL's own call of a reward function that is written as its documentation has it; 1 of 64 is broken.

    The first fault is none: how long that takes is how long it takes to start.
    """
    patience_s = 300.0
    for fault in faults:
        began = time.perf_counter()
        said = _run(_TRL, *texts(fault, int(fault != "fine")), patience_s=patience_s)
        if fault == "fine":
            patience_s = 2 * (time.perf_counter() - began) + PATIENCE_S
        yield f"TRL {_version('trl')}, GRPOTrainer._calculate_rewards: {_broken(fault, 1)}", said


_VERL = """
import sys, time, os
from types import SimpleNamespace as Has
import numpy as np, torch
from verl import DataProto
from verl.workers.reward_manager.prime import PrimeRewardManager

work_s, texts = float(sys.argv[1]), sys.argv[2:]

def reward(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "exit":
        os._exit(3)
    time.sleep(work_s)
    return 1.0

tokens = torch.ones(len(texts), 1, dtype=torch.long)
known = {"reward_model": [{"ground_truth": ""}] * len(texts), "data_source": ["made up"] * len(texts)}
batch = DataProto.from_dict(
    tensors={"prompts": tokens, "responses": tokens},
    non_tensors={name: np.array(values, dtype=object) for name, values in known.items()},
)
manager = PrimeRewardManager(Has(batch_decode=lambda ids, **_: texts), num_examine=0, compute_score=reward)
scores = manager.verify(batch)
innocent = [score for score, text in zip(scores, texts) if text == "fine"]
print(f"{innocent.count(0.0)} of {len(innocent)} innocent scores are set to 0", flush=True)
"""


def verl_rows(counts: Sequence[int]) -> Iterator[tuple[str, str]]:
    """verl's manager that scores in parallel processes; a hang it would wait 300 s for.

    A crash breaks the pool: what was done before keeps its score, all else is set to 0.
    """
    for count in (0, *counts):
        said = _run(_VERL, str(VERL_WORK_S), *texts("exit", count), patience_s=300.0, PYTHONPATH=str(FOLDER))
        yield f"verl 0.9.1, PrimeRewardManager: {_broken('exit' if count else 'fine', count)}", said


def _broken(fault: str, count: int) -> str:
    return "none broken" if fault == "fine" else f"{count} of {SCORES} {fault}"


def _run(script: str, *arguments: str, patience_s: float, **environment: str) -> str:
    """The last line that a script prints, and how it ended."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, env=os.environ | environment)
    except subprocess.TimeoutExpired:
        return "no score for any; there is no deadline"
    last = (ran.stdout.strip() or ran.stderr.strip() or "no score for any").splitlines()[-1]
    return last if ran.returncode == 0 else f"{last} (exit status {ran.returncode})"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
