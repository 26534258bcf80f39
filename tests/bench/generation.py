"""Generation: tokens/s through a rollout worker and its pool, against bare ``vllm.LLM.generate`` of the same engine.

Both ask for the same prompts with the same sampling parameters, with empty caches. The worker's time begins and ends in
the driver, so that rendering prompts, Ray, and making trajectories are in it; the bare calls are given their prompts
ready-made and are timed beside the engine. In several turns the bare engine gets one call for each turn, of all texts
that go on, which waits for the longest of them; the worker begins a turn as soon as the one before it has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl.types import Message, SamplingParams
from rollouts.engine import GenerationRequest, VllmEngine
from rollouts.worker import RolloutWorker
from tests.bench.bare_generate import BareGenerate
from tests.bench.harness import Figure, Part, Table, faster, interleaved, seconds_table, spread
from tests.bench.setting import CORES, PICTURE_PX, picture_tasks, policy, run_config

TASKS, GROUP_SIZE, COMPLETION_TOKENS = 16, 8, 64
AIM = 0.95
FOLLOW_UPS = ("Are you sure? Look at the image again.", "Then give your final answer.")


class MeasuredWorker(RolloutWorker):
    """A rollout worker that can also be passed by."""

    def bare(self, requests: Sequence[GenerationRequest]) -> tuple[float, int]:
        """Seconds and tokens of ``LLM.generate`` alone."""
        assert isinstance(self.engine, VllmEngine)
        generate = BareGenerate(self.engine, requests)
        began = time.perf_counter()
        tokens = generate()
        return time.perf_counter() - began, tokens


def requests(count: int, *, side_px: int, follow_ups: Sequence[str]) -> list[GenerationRequest]:
    """With follow-ups a turn ends with the letter y, about one token in twenty of a policy with random weights."""
    sampling = SamplingParams(max_tokens=COMPLETION_TOKENS, stop=("y",) if follow_ups else ())
    told = tuple(Message(text=text) for text in follow_ups)
    tasks = [replace(task, follow_ups=told) for task in picture_tasks(count, side_px=side_px)]
    return [
        GenerationRequest(id=task.id, task=task, num_samples=GROUP_SIZE, seed=1000 * number, sampling=sampling)
        for number, task in enumerate(tasks)
    ]


def measure(*, turns: int, quick: bool) -> Part:
    import ray

    from rl.cluster import actor_environment, ray_session
    from rl.settings import engine_settings
    from rollouts.pool import RolloutPool

    name = "tiny" if quick else "medium"
    count, side_px = (2, 84) if quick else (TASKS, PICTURE_PX[250])
    config = run_config()
    settings = engine_settings(config, str(policy(name)))
    with ray_session(config.ray, cpus_needed=1):
        environment = {"env_vars": actor_environment(CORES)}
        worker = ray.remote(MeasuredWorker).options(num_cpus=1, runtime_env=environment).remote(settings)
        pool = RolloutPool([worker], timeout_s=600)
        single = requests(count, side_px=side_px, follow_ups=())
        several = requests(count, side_px=side_px, follow_ups=FOLLOW_UPS)
        found = [
            _measured("Single turn", single, pool=pool, worker=worker, turns=turns),
            _measured("Several turns", several, pool=pool, worker=worker, turns=turns),
        ]
    return Part(
        config={"policy": name, "dtype": "float32", "threads": CORES, "tasks": count, "group_size": GROUP_SIZE}
        | {"completion_tokens": COMPLETION_TOKENS, "max_num_seqs": settings.max_num_seqs},
        figures=[figure for figures, _ in found for figure in figures],
        tables=[table for _, table in found],
    )


def _measured(
    kind: str, asked: Sequence[GenerationRequest], *, pool: Any, worker: Any, turns: int
) -> tuple[list[Figure], Table]:
    """The worker's rate over that of the bare engine, and alone; the seconds that both are made of."""
    import ray

    tokens: dict[str, int] = {}

    def through_the_pool() -> float:
        runner.run(pool.drop_caches())
        began = time.perf_counter()
        tokens["worker"], tokens["turns"] = runner.run(_generate(pool, asked))
        return 1000 * (time.perf_counter() - began) / tokens["worker"]

    def bare() -> float:
        runner.run(pool.drop_caches())
        taken_s, tokens["bare"] = ray.get(worker.bare.remote(asked))
        return float(1000 * taken_s / tokens["bare"])

    with asyncio.Runner() as runner:
        seconds = interleaved({"worker": through_the_pool, "bare LLM.generate": bare}, turns=turns)
    per_trajectory = tokens["turns"] / (len(asked) * GROUP_SIZE)
    ratio = Figure(
        what=f"{kind}: tokens/s through the worker over bare LLM.generate",
        value=faster(seconds, ours="worker", than="bare LLM.generate"),
        aim=AIM,
        note=f"{tokens['worker']:,} tokens in {per_trajectory:.1f} turns each, bare {tokens['bare']:,}",
    )
    rates = spread([1000 / each for each in seconds["worker"]])
    rate = Figure(what=f"{kind}: tokens/s through the worker", value=rates, unit="tokens/s")
    return [ratio, rate], seconds_table(f"Seconds for a thousand tokens: {kind.lower()}", seconds)


async def _generate(pool: Any, asked: Sequence[GenerationRequest]) -> tuple[int, int]:
    """Tokens that were written, and in how many turns."""
    written = [each async for group in pool.generate(asked) for each in group]
    return sum(each.length_tokens for each in written), sum(len(each.turns) for each in written)
