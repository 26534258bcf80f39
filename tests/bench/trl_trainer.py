"""TRL's GRPOTrainer as a contestant: its own code on given trajectories, with the settings that suit it best.

It is spared generation: everything from the padded inputs to the optimizer step is its own.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from policies.vlm import load_policy
from rl.types import Task, TrainBatch
from rollouts.prompts import chat_messages
from tests.bench.harness import finish

ROWS_AT_A_TIME = {"cpu": (1, 2, 4, 8), "cuda": (2, 4, 8, 16, 32, 64)}
"""Micro-batches that are tried; on a CPU the small ones are the faster, on a GPU often the largest that fits."""


def conversation(task: Task) -> list[dict[str, str]]:
    """The chat of a task as TRL wants it; it places the images itself."""
    return [
        {"role": message["role"], "content": "".join(part.get("text", "") for part in message["content"])}
        for message in chat_messages(task)
    ]


def trl_rows(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    return [{"prompt": conversation(task), "images": [image.decode() for image in task.images]} for task in tasks]


def grpo_config(
    folder: Path, *, group_size: int, completion_tokens: int, device: str = "cpu", dtype: str = "float32", **fields: Any
) -> Any:
    """TRL's settings for the same algorithm: token-mean clipped surrogate, no reference, nothing logged or saved."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=device == "cpu",
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        num_generations=group_size,
        max_completion_length=completion_tokens,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        logging_steps=10**6,
        disable_tqdm=True,
        optim="adamw_torch_fused",
        **fields,
    )


class TrlUpdate:
    """One optimizer step of GRPOTrainer on the trajectories of ``batch``, as often as it is called.

    The inputs are built once and by its own code: padded prompts, the pictures of a group once per trajectory.
    """

    def __init__(
        self,
        policy_path: Path,
        batch: TrainBatch,
        tasks: Sequence[Task],
        *,
        learning_rate: float,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        from datasets import Dataset
        from trl.trainer import grpo_trainer

        warnings.simplefilter("ignore")  # about versions of vLLM, which is not used here
        group_size = len(batch.samples) // len(tasks)
        completion_tokens = max(len(s.token_ids) - s.prompt_length for s in batch.samples)
        model, processor = load_policy(str(policy_path), dtype=dtype)
        rows = [row for row in trl_rows(tasks) for _ in range(group_size)]
        self.module = grpo_trainer
        self.trainer = _given(batch)(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=grpo_config(
                policy_path.parent / "trl",
                group_size=group_size,
                completion_tokens=completion_tokens,
                per_device_train_batch_size=len(rows),
                learning_rate=learning_rate,
                device=device,
                dtype=dtype,
            ),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            processing_class=processor,
        )
        self.trainer.create_optimizer()
        model.train()
        self.inputs = self.trainer._generate_and_score_completions(rows)
        self.inputs["advantages"] = torch.tensor([sample.advantage for sample in batch.samples], device=device)
        self.grad_norm = 0.0
        self.device = device
        self.rows_at_a_time = self._fastest(len(rows))

    def __call__(self) -> None:
        self._step(self._micro_batches(self.rows_at_a_time))

    def _step(self, micro_batches: Sequence[Mapping[str, Any]]) -> None:
        trainer, model = self.trainer, self.trainer.model
        trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = len(micro_batches)
        for inputs in micro_batches:
            trainer.compute_loss(model, inputs, num_items_in_batch=inputs["num_items_in_batch"]).backward()
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def _micro_batches(self, rows_at_a_time: int) -> list[Mapping[str, Any]]:
        """The inputs cut as its own training loop cuts them."""
        parts = len(self.inputs["advantages"]) // rows_at_a_time
        cut = self.module.split_tensor_dict(self.module.split_pixel_values_by_grid(self.inputs), parts)
        return [self.module.unsplit_pixel_values_by_grid(part) for part in cut]

    def _fastest(self, rows: int) -> int:
        """The micro-batch that takes least time per row."""
        return min((size for size in ROWS_AT_A_TIME[self.device] if rows % size == 0), key=self._seconds_per_row)

    def _seconds_per_row(self, size: int) -> float:
        """Of one forward and backward, after one that warms up; infinite where the GPU has no room for it."""
        part = self._micro_batches(size)[0]
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.steps_per_generation = 1
        try:
            for _ in range(2):
                began = time.perf_counter()
                self.trainer.compute_loss(self.trainer.model, part).backward()
                finish(self.device)
                taken_s = time.perf_counter() - began
        except torch.OutOfMemoryError:
            taken_s = math.inf
        self.trainer.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.empty_cache()  # the next size has all the room that there is
        return taken_s / size


def _given(batch: TrainBatch) -> type:
    """GRPOTrainer that is handed its completions where it would generate them."""
    from trl import GRPOTrainer

    class Given(GRPOTrainer):
        def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
            prompt_ids = [sample.token_ids[: sample.prompt_length].tolist() for sample in batch.samples]
            completion_ids = [sample.token_ids[sample.prompt_length :].tolist() for sample in batch.samples]
            completions = [[{"role": "assistant", "content": ""}] for _ in batch.samples]
            images = [
                [part["image"] for message in prompt for part in message["content"] if part["type"] == "image"]
                for prompt in prompts
            ]
            return prompt_ids, completion_ids, None, completions, None, {}, images, []

    return Given
