"""Generation: tokens/s through a rollout worker and its pool, against bare ``vllm.LLM.generate`` of the same engine.

Both ask for the same prompts with the same sampling parameters and seeds, with empty caches. The worker's time begins
and ends in the driver, so that rendering prompts, Ray, and making trajectories are in it; the bare call is given its
prompts ready-made and is timed beside the engine. A rollout has one turn, so several are not measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from rl.types import SamplingParams
from rollouts.engine import GenerationRequest
from rollouts.worker import RolloutWorker
from tests.bench.harness import Figure, Part, faster, interleaved, seconds_table, spread
from tests.bench.setting import CORES, PICTURE_PX, picture_tasks, policy, run_config

TASKS, GROUP_SIZE, COMPLETION_TOKENS = 16, 8, 64
AIM = 0.95


class MeasuredWorker(RolloutWorker):
    """A rollout worker that can also be passed by."""

    def bare(self, requests: Sequence[GenerationRequest]) -> tuple[float, int]:
        """Seconds and tokens of ``LLM.generate`` alone."""
        prompts = [self.engine._prompt(request.task) for request in requests]
        sampling = [self.engine._sampling_params(request) for request in requests]
        began = time.perf_counter()
        outputs = self.engine.llm.generate(prompts, sampling, use_tqdm=False)
        taken_s = time.perf_counter() - began
        return taken_s, sum(len(each.token_ids) for output in outputs for each in output.outputs)


def requests(count: int, *, side_px: int) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=COMPLETION_TOKENS)
    tasks = picture_tasks(count, side_px=side_px)
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
    asked = requests(2 if quick else TASKS, side_px=84 if quick else PICTURE_PX[250])
    config = run_config()
    settings = engine_settings(config, str(policy(name)))
    with ray_session(config.ray, cpus_needed=1), asyncio.Runner() as runner:
        environment = {"env_vars": actor_environment(CORES)}
        worker = ray.remote(MeasuredWorker).options(num_cpus=1, runtime_env=environment).remote(settings)
        pool = RolloutPool([worker], timeout_s=600)
        tokens: dict[str, int] = {}

        def through_the_pool() -> float:
            runner.run(pool.drop_caches())
            began = time.perf_counter()
            tokens["worker"] = runner.run(_generate(pool, asked))
            return time.perf_counter() - began

        def bare() -> float:
            runner.run(pool.drop_caches())
            taken_s, tokens["bare"] = ray.get(worker.bare.remote(asked))
            return float(taken_s)

        seconds = interleaved({"worker": through_the_pool, "bare LLM.generate": bare}, turns=turns)
    ratio = faster(seconds, ours="worker", than="bare LLM.generate")
    rates = [tokens["worker"] / taken_s for taken_s in seconds["worker"]]
    return Part(
        config={"policy": name, "dtype": "float32", "threads": CORES, "tasks": len(asked), "group_size": GROUP_SIZE}
        | {"completion_tokens": COMPLETION_TOKENS, "max_num_seqs": settings.max_num_seqs},
        figures=[
            Figure(
                what="Single turn: tokens/s through the worker over bare LLM.generate",
                value=ratio,
                aim=AIM,
                note=f"{tokens['worker']:,} tokens, bare {tokens['bare']:,}",
            ),
            Figure(what="Single turn: tokens/s through the worker", value=spread(rates), unit="tokens/s"),
        ],
        tables=[seconds_table("Seconds of a call", seconds)],
        notes=["Several turns are not measured: a rollout has one."],
    )


async def _generate(pool: Any, asked: Sequence[GenerationRequest]) -> int:
    return sum([sum(each.length_tokens for each in group) async for group in pool.generate(asked)])
