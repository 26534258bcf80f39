"""What the parts measure with: policies, tasks with pictures, trajectories of given lengths, an engine's settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.vlm import PRESETS, SeedVlmConfig, build_seed_vlm
from rl.config_schema import RunConfig
from rl.types import EncodedImage, Task, TrainBatch, TrainSample

OUT = Path("bench")
CORES = len(os.sched_getaffinity(0))

POLICIES = {
    # Wide enough that matrix products are what a step costs, small enough for a step of seconds on two cores.
    "medium": SeedVlmConfig(
        hidden_size=512,
        intermediate_size=2048,
        layers=6,
        heads=8,
        kv_heads=8,
        vision_hidden_size=192,
        vision_intermediate_size=512,
        vision_layers=3,
        vision_heads=3,
        max_image_px=896,
    ),
    "tiny": PRESETS["tiny"],
}
PICTURE_PX = {250: 392, 970: 840}
"""Sides of the pictures that make a prompt of so many tokens, by the policy ``medium``."""


def policy(name: str) -> Path:
    """The folder of a policy with random weights, built at the first call."""
    folder = (OUT / "policies" / name).resolve()
    if not (folder / "processor_config.json").exists():
        build_seed_vlm(POLICIES[name], folder, seed=0)
    return folder


def picture(seed: int, side_px: int) -> EncodedImage:
    from PIL import Image

    from rollouts.images import encode

    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((side_px, side_px)))


def picture_tasks(count: int, *, side_px: int) -> list[Task]:
    """Questions about one picture each, no two alike."""
    return [
        Task(
            id=f"task-{number}",
            question="Is the mass malignant?",
            answer={"type": "yes_no", "value": "yes"},
            images=(picture(number, side_px),),
        )
        for number in range(count)
    ]


def random_batch(tasks: Sequence[Task], processor: Any, *, group_size: int, completion_tokens: int) -> TrainBatch:
    """A group for each task, of completions that are random words of one length."""
    from rollouts.prompts import render_prompt

    rng = np.random.default_rng(0)
    vocabulary = sorted(set(range(len(processor.tokenizer))) - set(processor.tokenizer.all_special_ids))
    samples = []
    for group, task in enumerate(tasks):
        pictures = [image.decode() for image in task.images]
        text = render_prompt(task, processor)
        prompt = processor(text=[text], images=pictures or None, add_special_tokens=False)["input_ids"][0]
        for number in range(group_size):
            length = len(prompt) + completion_tokens
            completing = np.arange(length) >= len(prompt)
            samples.append(
                TrainSample(
                    trajectory_id=f"{task.id}/{number}",
                    group=group,
                    token_ids=np.array([*prompt, *rng.choice(vocabulary, completion_tokens)], dtype=np.int32),
                    prompt_length=len(prompt),
                    loss_mask=completing,
                    rollout_logprobs=np.where(completing, -6.0, np.nan).astype(np.float32),
                    advantage=float(rng.normal()),
                    images=task.images,
                )
            )
    return TrainBatch(samples=tuple(samples), loss_tokens=len(samples) * completion_tokens, policy_version=0)


def run_config(*, packing: bool = True, micro_batch_tokens: int = 4096) -> RunConfig:
    """A run in float32 on the CPU with every core given to whichever actor has its turn."""
    config = RunConfig()
    config.policy.dtype = "float32"
    config.learner.threads = config.rollouts.threads = CORES
    config.learner.packing = packing
    config.learner.micro_batch_tokens = micro_batch_tokens
    return config


def learner(policy_path: Path, config: RunConfig) -> Any:
    """A learner of one rank in this process."""
    import socket

    import torch

    from policies.worker import LearnerWorker
    from rl.settings import learner_settings, loss_function

    os.environ["OMP_NUM_THREADS"] = str(config.learner.threads)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = LearnerWorker(0, 1)
    worker.build(learner_settings(config, str(policy_path)), loss_function(config), host="127.0.0.1", port=port)
    torch.set_num_threads(config.learner.threads)
    return worker.learner
