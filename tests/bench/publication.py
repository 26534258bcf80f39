"""Publication: new weights from the learner's actor into the engine's, against the least that it could take.

The least is a plain copy of the same bytes and the engine's own load of weights that lie ready. Beyond it a publication
gathers the weights, merges adapters, takes a digest of all that changed, and goes through Ray's object store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rl.config_schema import RunConfig
from tests.bench.harness import Figure, Part, faster, interleaved, seconds_table, spread
from tests.bench.setting import CORES, picture_tasks, policy, random_batch, run_config

AIM = 0.5  # as fast as copy and load together: it may take twice their time
LORA_RANK = 16


def measure(*, turns: int, quick: bool) -> Part:
    from rl.cluster import cpus_needed, ray_session

    name = "tiny" if quick else "medium"
    full, lora = run_config(), run_config()
    lora.policy.lora.rank = LORA_RANK
    full.ray.object_store_mb = lora.ray.object_store_mb = 1024
    figures, tables = [], []
    with ray_session(full.ray, cpus_needed=2 * cpus_needed(full)), asyncio.Runner() as runner:
        for title, config in (("All weights", full), (f"LoRA on {', '.join(lora.policy.lora.target_modules)}", lora)):
            measured = Measured(runner, config, name)
            seconds = interleaved(measured.contestants(), turns=turns)
            measured.close()
            sent, whole = measured.sent_mb, measured.whole_mb
            figures += [
                Figure(
                    what=f"{title}: publication against a copy of the same bytes plus the engine's own load",
                    value=faster(seconds, ours="publication", than="copy and load"),
                    aim=AIM,
                    note=f"{sent:.0f} MB of {whole:.0f} MB went out",
                ),
                Figure(what=f"{title}: publication", value=spread(seconds["publication"]), unit="s"),
            ]
            tables.append(seconds_table(f"{title}: seconds", seconds))
    return Part(config={"policy": name, "dtype": "float32", "threads": CORES}, figures=figures, tables=tables)


class Measured:
    """A learner's actor and an engine's, whose weights change before every turn."""

    def __init__(self, runner: asyncio.Runner, config: RunConfig, policy_name: str) -> None:
        from transformers import AutoProcessor

        from rl.cluster import start_learner, start_rollout_pool
        from rl.settings import engine_settings, learner_settings, loss_function

        path = str(policy(policy_name))
        self.run: Callable[[Any], Any] = runner.run
        self.pool = start_rollout_pool(engine_settings(config, path), config.rollouts)
        settings, loss = learner_settings(config, path), loss_function(config)
        self.learner = self.run(start_learner(settings, config.learner, loss))
        self.run(self.pool.ready())
        processor = AutoProcessor.from_pretrained(path)
        self.batch = random_batch(picture_tasks(1, side_px=56), processor, group_size=2, completion_tokens=8)
        self.version = 0
        self.reference, first = self.run(self.publish())
        self.whole_mb = first.size_bytes / 1e6
        self.publication()

    def contestants(self) -> dict[str, Callable[[], float]]:
        return {"publication": self.publication, "copy and load": self.copy_and_load}

    async def publish(self) -> tuple[Any, Any]:
        self.version += 1
        arrays, weights = await self.learner.weights()
        await self.pool.load_weights(arrays, version=self.version)
        return arrays, weights

    def publication(self) -> float:
        self.run(self.learner.update(self.batch))
        began = time.perf_counter()
        self.reference, weights = self.run(self.publish())
        taken_s = time.perf_counter() - began
        self.sent_mb = weights.size_bytes / 1e6
        return taken_s

    def copy_and_load(self) -> float:
        import ray

        arrays = ray.get(self.reference)
        began = time.perf_counter()
        copies = [np.copy(array) for array in arrays.values()]
        copied_s = time.perf_counter() - began
        assert len(copies) == len(arrays)
        began = time.perf_counter()
        self.run(self.pool.load_weights(self.reference, version=self.version))
        return copied_s + time.perf_counter() - began

    def close(self) -> None:
        import ray

        for worker in (*self.learner.workers, *self.pool.workers):
            ray.kill(worker)
