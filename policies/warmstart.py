"""Supervised fine-tuning before RL, by TRL's `SFTTrainer`: the policy learns the form of a trace from examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from policies.vlm import load_policy
from rl.types import EncodedImage

Example = tuple[str, Sequence[EncodedImage], str]
"""A rendered prompt with unexpanded image placeholders, its images, and the completion to learn."""

IGNORED = -100  # transformers' label of a token without loss


def warm_start(
    examples: Callable[[], Iterator[Example]],
    policy_path: str,
    out: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    log: Path,
) -> dict[str, float]:
    """Fine-tune the policy at ``policy_path`` on the completions of ``examples`` and save it to ``out``.

    ``examples`` starts an endless stream, the same at every call. The loss is the mean over completion tokens and the
    end of the turn; the learning rate warms up over a tenth of the steps and decays to zero along a cosine. ``log``
    gets a line of JSON with ``step`` and ``loss`` (nats per token) every hundredth of the way. Returns the last
    ``loss`` and ``seconds``.
    """
    from datasets import IterableDataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    model, processor = load_policy(policy_path)
    arguments = SFTConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=max(1, steps // 100),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=IterableDataset.from_generator(_rows, gen_kwargs={"examples": examples}),
        data_collator=_Collator(processor),
        processing_class=processor,
        callbacks=[_loss_log(log)],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    for part in (model, processor):
        part.save_pretrained(out)
    last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    return {"loss": float(last), "seconds": float(result.metrics["train_runtime"])}


def _rows(examples: Callable[[], Iterator[Example]]) -> Iterator[dict[str, Any]]:
    """The examples as rows; the key ``images`` says that they are a vision data set."""
    for prompt, images, completion in examples():
        yield {"prompt_text": prompt, "images": list(images), "completion_text": completion}


def _loss_log(path: Path) -> Any:
    """A callback of the trainer that appends every logged loss to a file."""
    from transformers import TrainerCallback

    path.write_text("")

    class LossLog(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                with path.open("a") as file:
                    file.write(json.dumps({"step": state.global_step, "loss": float(logs["loss"])}) + "\n")

    return LossLog()


class _Collator:
    """Examples to padded tensors: the processor expands the images of the prompts, completions follow unchanged."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pictures = [[image.decode() for image in row["images"]] for row in rows]
        inputs = dict(
            self.processor(
                text=[row["prompt_text"] for row in rows],
                images=pictures if any(pictures) else None,
                add_special_tokens=False,
                padding=True,
                return_tensors="pt",
            )
        )
        kept = inputs.pop("attention_mask").bool()
        prompt_ids = [row[mask].tolist() for row, mask in zip(inputs.pop("input_ids"), kept, strict=True)]
        completions = [row["completion_text"] + self.tokenizer.eos_token for row in rows]
        completion_ids = self.tokenizer(completions, add_special_tokens=False)["input_ids"]
        padded = _padded(prompt_ids, completion_ids, pad_id=self.tokenizer.pad_token_id)
        if "mm_token_type_ids" in inputs:  # Qwen's three-dimensional positions are counted from it
            padded["mm_token_type_ids"] = (padded["input_ids"] == self.processor.image_token_id).int()
        return inputs | padded


def _padded(prompts: Sequence[list[int]], completions: Sequence[list[int]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels`` [sample, token]; no loss on prompts and padding."""
    longest = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(prompts), longest), pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    attention_mask = torch.zeros_like(input_ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
        attention_mask[row, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
