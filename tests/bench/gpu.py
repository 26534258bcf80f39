"""`make bench-gpu`: the learner on a GPU, packed with flex, flash and SDPA attention, against its plain path and TRL.

One optimizer step on the same trajectories of the same policy, turn by turn, in bfloat16; and the memory that each
takes at its peak. Before anything is timed the kernels' logprobs must agree with the plain path's.
``python -m tests.bench.gpu --device cpu --quick`` tries out whether it runs, where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from policies.vlm import SeedVlmConfig, build_seed_vlm
from tests.bench.harness import QUICK_TURNS, TURNS, Figure, Part, Table, faster, interleaved, seconds_table, timed
from tests.bench.setting import OUT, PICTURE_PX, learner, picture_tasks, policy, random_batch, run_config

GROUPS, GROUP_SIZE, COMPLETION_TOKENS = 8, 8, 64
KERNELS = {"cuda": ("flex", "flash", "sdpa"), "cpu": ("sdpa",)}
LARGE = SeedVlmConfig(
    hidden_size=2048,
    intermediate_size=5632,
    layers=22,
    heads=16,
    kv_heads=4,
    vision_hidden_size=1024,
    vision_intermediate_size=4096,
    vision_layers=12,
    vision_heads=16,
    max_image_px=896,
)
"""About 1.2 billion weights: a step of it keeps a GPU busy."""
MOST_APART = {"bfloat16": 0.1, "float32": 1e-4}
"""How far a logprob may be off the plain path's."""


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=list(KERNELS), default="cuda")
    parser.add_argument("--quick", action="store_true", help="little sizes, few turns: whether it runs at all")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --quick tries out whether it runs")
    part = measure_on(asked.device, turns=QUICK_TURNS if asked.quick else TURNS, quick=asked.quick)
    print("\n".join(_lines(part)))
    OUT.mkdir(exist_ok=True)
    (OUT / "gpu.json").write_text(json.dumps(part.as_json(), indent=1))
    print(f"written to {OUT / 'gpu.json'}")


def _lines(part: Part) -> Iterator[str]:
    yield f"{part.config}"
    for figure in part.figures:
        value = figure.value
        yield f"{figure.what}: {value.median:.2f} times as fast ({value.low:.2f} to {value.high:.2f})"
    for table in part.tables:
        yield f"{table.title}: {' | '.join(table.columns)}"
        for row in table.rows:
            yield "  " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)


def measure_on(device: str, *, turns: int, quick: bool) -> Part:
    import torch

    figures: list[Figure] = []
    tables: list[Table] = []
    for prompt_tokens in [250] if quick else sorted(PICTURE_PX):
        measured = Measured(device, quick=quick, side_px=84 if quick else PICTURE_PX[prompt_tokens])
        title = f"Prompts of {measured.batch.samples[0].prompt_length} tokens"
        tables.append(measured.agreement())
        if device == "cuda":
            tables.append(measured.memory())
        seconds = interleaved(measured.contestants(), turns=turns)
        figures += [
            Figure(what=f"{title}: {name} over {peer}", value=faster(seconds, ours=name, than=peer))
            for name in measured.packed
            for peer in ("plain", "TRL")
        ]
        tables.append(seconds_table(f"{title}: seconds of a step", seconds))
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    config = {"device": name, "dtype": measured.dtype, "group_size": GROUP_SIZE, "completion_tokens": COMPLETION_TOKENS}
    return Part(config=config, figures=figures, tables=tables)


class Measured:
    """One learner that attends in each of the ways by turns, and TRL's trainer with a copy of its policy."""

    def __init__(self, device: str, *, quick: bool, side_px: int) -> None:
        from tests.bench.trl_trainer import TrlUpdate

        self.device = device
        self.dtype = "bfloat16" if device == "cuda" else "float32"
        config = run_config(micro_batch_tokens=16_384)
        config.policy.dtype = self.dtype
        config.learner.gpus_per_rank = float(device == "cuda")
        config.learner.zero_stage = 1
        path = policy("tiny") if quick else _large()
        tasks = picture_tasks(2 if quick else GROUPS, side_px=side_px)
        self.learner = learner(path, config)
        self.batch = random_batch(
            tasks, self.learner.processor, group_size=GROUP_SIZE, completion_tokens=COMPLETION_TOKENS
        )
        rate = config.learner.learning_rate
        self.trl = TrlUpdate(path, self.batch, tasks, learning_rate=rate, device=device, dtype=self.dtype)
        self.packed = {f"packed, {kernel}": kernel for kernel in KERNELS[device]}

    def contestants(self) -> dict[str, Callable[[], float]]:
        return {name: timed(step) for name, step in self._steps().items()}

    def agreement(self) -> Table:
        """How far each kernel's logprobs are off the plain path's. Raises RuntimeError where that is too far."""
        self._attend(None)
        plain = self.learner.logprobs(self.batch.samples)
        rows = []
        for name, kernel in self.packed.items():
            self._attend(kernel)
            found = self.learner.logprobs(self.batch.samples)
            apart = max(float(np.abs(found[place] - plain[place]).max()) for place in plain)
            if not apart <= MOST_APART[self.dtype]:
                raise RuntimeError(f"{name}: logprobs are off the plain path's by {apart:.3g} on {self.device}")
            rows.append((name, apart))
        return Table(title="Largest difference of a logprob from the plain path's", columns=("", "nats"), rows=rows)

    def memory(self) -> Table:
        """What a step takes on the GPU beyond the weights and optimizers that stand there before it."""
        import torch

        rows = []
        for name, step in self._steps().items():
            step()  # what is compiled or allocated once
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            rows.append((name, (torch.cuda.max_memory_allocated() - before) / 1e6))
        return Table(title="Memory of a step at its peak", columns=("", "MB"), rows=rows)

    def _steps(self) -> dict[str, Callable[[], None]]:
        named = {**self.packed, "plain": None}
        steps: dict[str, Callable[[], None]] = {name: self._step(kernel) for name, kernel in named.items()}
        return steps | {"TRL": self._waited(self.trl)}

    def _step(self, kernel: Any) -> Callable[[], None]:
        def update() -> None:
            self._attend(kernel)
            self.learner.update(self.batch)

        return self._waited(update)

    def _waited(self, step: Callable[[], object]) -> Callable[[], None]:
        """A GPU works on after the call has returned."""
        import torch

        def waited() -> None:
            step()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return waited

    def _attend(self, kernel: Any) -> None:
        from policies.attention import use_packed_attention

        model = self.learner.engine.module.model
        self.learner.builder.kernel = kernel
        if kernel is None:
            model.config.get_text_config()._attn_implementation = "sdpa"
        else:
            use_packed_attention(model)


def _large() -> Path:
    folder = (OUT / "policies" / "large").resolve()
    if not (folder / "processor_config.json").exists():
        build_seed_vlm(LARGE, folder, seed=0)
    return folder


if __name__ == "__main__":
    main()
