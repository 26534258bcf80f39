"""`make bench-gpu`: the learner on a GPU, packed with flex, flash and SDPA attention, against its plain path and TRL.

One optimizer step on the same trajectories of the same policy, turn by turn, in bfloat16; and the memory that each
takes at its peak. TRL runs as many rows at a time as suit it best, and the plain path as many; TRL is spared the copy
of the weights in float32 that the learner's optimizer keeps. A kernel that this GPU does not run is named and left out,
and before anything is timed the others' logprobs must agree with the plain path's.
``python -m tests.bench.gpu --device cpu --quick`` tries out whether it runs, where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from policies.vlm import SeedVlmConfig, build_seed_vlm
from rl.types import Task
from tests.bench.harness import (
    QUICK_TURNS,
    TURNS,
    Figure,
    Part,
    Table,
    faster,
    finish,
    interleaved,
    seconds_table,
    timed,
)
from tests.bench.setting import OUT, PICTURE_PX, learner, picture_tasks, policy, random_batch, run_config

GROUPS, GROUP_SIZE, COMPLETION_TOKENS = 8, 8, 64
KERNELS = {"cuda": ("flex", "flash", "sdpa"), "cpu": ("sdpa",)}
PACKED_TOKENS = 16_384
WIDTHS = {2048: 64, 1024: 20, 512: 0}
"""Hidden sizes of the policy (1.2 billion weights in the first), and the GB of a GPU that both trainers of it take."""
DTYPES = {"cuda": "bfloat16", "cpu": "float32"}
MOST_APART = {"bfloat16": 0.1, "float32": 1e-4}
"""How far a logprob may be off the plain path's."""


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=list(KERNELS), default="cuda")
    parser.add_argument("--quick", action="store_true", help="little sizes, few turns: whether it runs at all")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU (medrl doctor says why); --device cpu --quick tries out whether it runs")
    part = measure_on(asked.device, turns=QUICK_TURNS if asked.quick else TURNS, quick=asked.quick)
    print("\n".join(_lines(part)))
    OUT.mkdir(exist_ok=True)
    (OUT / "gpu.json").write_text(json.dumps(part.as_json(), indent=1))
    print(f"written to {OUT / 'gpu.json'}")


def _lines(part: Part) -> Iterator[str]:
    yield ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in part.config.items())
    yield from part.notes
    for figure in part.figures:
        value = figure.value
        yield f"{figure.what}: {value.median:.2f} times as fast ({value.low:.2f} to {value.high:.2f}); {figure.note}"
    for table in part.tables:
        yield f"{table.title}: {' | '.join(table.columns)}"
        for row in table.rows:
            yield "  " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)


def measure_on(device: str, *, turns: int, quick: bool) -> Part:
    import torch

    figures: list[Figure] = []
    tables: list[Table] = []
    missing = {kernel: why_missing(kernel, device) for kernel in KERNELS[device]}
    kernels = [kernel for kernel, why in missing.items() if not why]
    path = policy("tiny") if quick else _policy_that_fits(device)
    trained = _learner(path, device)
    for prompt_tokens in [250] if quick else sorted(PICTURE_PX):
        tasks = picture_tasks(2 if quick else GROUPS, side_px=84 if quick else PICTURE_PX[prompt_tokens])
        measured = Measured(trained, path, tasks, device=device, kernels=kernels)
        title = f"Prompts of {measured.batch.samples[0].prompt_length} tokens"
        tables.append(measured.agreement())
        if device == "cuda":
            tables.append(measured.memory())
        seconds = interleaved(measured.contestants(), turns=turns)
        figures += [
            Figure(
                what=f"{title}: {name} over {peer}",
                value=faster(seconds, ours=name, than=peer),
                note=f"{peer} with {measured.trl.rows_at_a_time} rows at a time",
            )
            for name in measured.packed
            for peer in ("plain", "TRL")
        ]
        tables.append(seconds_table(f"{title}: seconds of a step", seconds))
        del measured  # its trainer, before the next one is built
        gc.collect()
    config = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "policy": path.name,
        "dtype": DTYPES[device],
        "group_size": GROUP_SIZE,
        "completion_tokens": COMPLETION_TOKENS,
        **{package: version(package) for package in ("torch", "transformers", "trl")},
    }
    notes = [f"{kernel} does not run here: {why}" for kernel, why in missing.items() if why]
    return Part(config=config, figures=figures, tables=tables, notes=notes)


def _learner(path: Path, device: str) -> Any:
    config = run_config(micro_batch_tokens=PACKED_TOKENS)
    config.policy.dtype = DTYPES[device]
    config.learner.gpus_per_rank = float(device == "cuda")
    config.learner.zero_stage = 1
    return learner(path, config)


def why_missing(kernel: Any, device: str) -> str:
    """Why a kernel does not run forward and backward on ``device``; empty where it does."""
    import torch

    from policies.attention import Tree, packed_attention

    tree = Tree(24, (16, 8))
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query, key, value = (
        torch.randn(1, heads, tree.length, 64, device=device, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)
    )
    try:
        attention = packed_attention([tree], kernel=kernel).to(device)
        attention.attend(SimpleNamespace(training=True), query, key, value, None).sum().backward()
        finish(device)
    except (ImportError, RuntimeError) as error:  # what is compiled raises a RuntimeError too
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""


class Measured:
    """A learner that attends in each of the ways by turns, and TRL's trainer with a copy of its policy."""

    def __init__(self, trained: Any, path: Path, tasks: Sequence[Task], *, device: str, kernels: Sequence[str]) -> None:
        from tests.bench.trl_trainer import TrlUpdate

        self.device, self.learner = device, trained
        self.batch = random_batch(tasks, trained.processor, group_size=GROUP_SIZE, completion_tokens=COMPLETION_TOKENS)
        rate = trained.settings.learning_rate
        self.trl = TrlUpdate(path, self.batch, tasks, learning_rate=rate, device=device, dtype=DTYPES[device])
        self.packed = {f"packed, {kernel}": kernel for kernel in kernels}

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
            if not apart <= MOST_APART[DTYPES[self.device]]:
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
        title = f"Memory of a step at its peak, plain and TRL with {self.trl.rows_at_a_time} rows at a time"
        return Table(title=title, columns=("", "MB"), rows=rows)

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
        def waited() -> None:
            step()
            finish(self.device)

        return waited

    def _attend(self, kernel: Any) -> None:
        """Make the learner what one is that was built with this kernel, or with ``learner.packing=false`` for None."""
        from policies.attention import use_packed_attention
        from policies.packing import MicroBatchBuilder

        model = self.learner.engine.module.model
        self.learner.builder = MicroBatchBuilder(model.model, self.learner.processor, kernel=kernel)
        tokens = PACKED_TOKENS
        if kernel is None:
            model.config.get_text_config()._attn_implementation = "sdpa"
            tokens = self.trl.rows_at_a_time * len(self.batch.samples[0].token_ids)
        else:
            use_packed_attention(model)
        self.learner.settings = replace(self.learner.settings, micro_batch_tokens=tokens)


def _policy_that_fits(device: str) -> Path:
    """The widest policy that this GPU has room for, with random weights."""
    import torch

    room_gb = torch.cuda.get_device_properties(0).total_memory / 1e9 if device == "cuda" else 0.0
    width = next(width for width, needed_gb in WIDTHS.items() if room_gb >= needed_gb)
    folder = (OUT / "policies" / f"width-{width}").resolve()
    if not (folder / "processor_config.json").exists():
        build_seed_vlm(_wide_policy(width), folder, seed=0)
    return folder


def _wide_policy(width: int) -> SeedVlmConfig:
    """Of the depth of a policy of some billion weights, and of any width that is a multiple of 512."""
    return SeedVlmConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        layers=22,
        heads=width // 128,
        kv_heads=width // 512,
        vision_hidden_size=width // 2,
        vision_intermediate_size=2 * width,
        vision_layers=12,
        vision_heads=width // 128,
        max_image_px=896,
    )


if __name__ == "__main__":
    main()
