"""A policy that calls a tool: a very small one that has learnt one conversation by heart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.types import Message, Task

CALLS = 8  # none of these conversations has more


def policy_that_says(
    turns: Sequence[str], out: Path, *, task: Task, tools: Mapping[str, Any], max_images: int = 4, steps: int = 100
) -> Path:
    """Build a policy that writes these turns when it is asked ``task``, and reads what the tools answer to them."""
    from transformers import AutoProcessor

    from policies.vlm import SeedVlmConfig, build_seed_vlm
    from policies.warmstart import Example, warm_start
    from rollouts.prompts import render_prompt, render_results
    from rollouts.tools.config import build_tools
    from rollouts.tools.tool import Scene
    from rollouts.tools.toolbox import Toolbox, ToolLimits

    sizes = SeedVlmConfig(hidden_size=128, intermediate_size=256, layers=2, vision_hidden_size=64, vision_layers=1)
    built = build_seed_vlm(sizes, out / "random", seed=0)
    processor = AutoProcessor.from_pretrained(built)
    limits = ToolLimits(calls=CALLS, images=max_images, image_pixels=1 << 22, timeout_s=5.0)
    toolbox = Toolbox(build_tools(tools), limits)
    said, images = render_prompt(task, processor, tools=toolbox.declarations), task.images
    conversation: list[Example] = []
    for number, turn in enumerate(turns):
        conversation.append((said, images, turn))
        calls = toolbox.begin(turn, Scene(task=task, images=images), made=number)
        if calls:
            answers = calls.answers()
            results = [Message(text=each.call.result, images=each.images, role="tool") for each in answers]
            said += turn + render_results(task, results, processor, tools=toolbox.declarations)
            images += tuple(image for each in answers for image in each.images)

    def examples() -> Iterator[Example]:
        while True:
            yield from conversation

    fitted = out / "fitted"
    batch = len(conversation)
    warm_start(
        examples, str(built), fitted, steps=steps, batch_size=batch, learning_rate=3e-3, seed=0, log=out / "log.jsonl"
    )
    return fitted
