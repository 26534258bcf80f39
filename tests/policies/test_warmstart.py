from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from policies.vlm import load_policy
from policies.warmstart import IGNORED, Example, _Collator, warm_start
from rl.types import EncodedImage
from rollouts.cytology import load_cytology, warmstart_tasks
from rollouts.prompts import render_prompt


def a_picture(width: int, height: int) -> EncodedImage:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "purple").save(content, format="PNG")
    return EncodedImage(content=content.getvalue(), width=width, height=height)


def a_row(prompt: str, completion: str, *images: EncodedImage) -> dict[str, Any]:
    return {"prompt_text": prompt, "images": list(images), "completion_text": completion}


@pytest.fixture(scope="module")
def processor(tiny_policy: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_policy)


def test_the_loss_is_on_the_completion_and_the_end_of_the_turn_alone(processor: Any) -> None:
    rows = [
        a_row("[IMG]radius 17.9 um:", "high", a_picture(28, 28)),
        a_row("texture:", "low\n<answer>no</answer>"),
        a_row("[IMG] and [IMG]", "yes", a_picture(56, 28), a_picture(28, 84)),
    ]
    batch = _Collator(processor)(rows)
    learned = [processor.tokenizer.decode(labels[labels != IGNORED]) for labels in batch["labels"]]
    assert learned == ["high<seed:eos>", "low\n<answer>no</answer><seed:eos>", "yes<seed:eos>"]


def test_each_row_reads_as_prompt_then_completion_with_its_images_expanded(processor: Any) -> None:
    """28 pixels are one image token: 2 wide gives two and their end, 3 tall three rows, each with its end."""
    rows = [
        a_row("[IMG]a:", "b", a_picture(28, 56)),
        a_row("[IMG]-[IMG]c:", "d", a_picture(56, 28), a_picture(28, 84)),
    ]
    batch = _Collator(processor)(rows)
    texts = [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert texts == [
        "[IMG][IMG_BREAK][IMG][IMG_END]a:b<seed:eos>",
        "[IMG][IMG][IMG_END]-[IMG][IMG_BREAK][IMG][IMG_BREAK][IMG][IMG_END]c:d<seed:eos>",
    ]
    assert batch["image_sizes"].tolist() == [[56, 28], [28, 56], [84, 28]]


def test_padding_stands_on_the_right_and_is_never_attended_to_nor_learned(processor: Any) -> None:
    batch = _Collator(processor)([a_row("a:", "b"), a_row("a b c d:", "e")])
    short = batch["attention_mask"][0]
    length = int(short.sum())
    assert short.tolist() == [1] * length + [0] * (len(short) - length)
    assert length < len(short)
    assert (batch["input_ids"][0, length:] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][0, length:] == IGNORED).all()


@pytest.mark.slow
def test_the_loss_of_a_batch_is_that_of_its_rows_alone(tiny_policy: Path) -> None:
    """Summed over completion tokens, and computed from one row at a time, without any padding."""
    model, processor = load_policy(str(tiny_policy))
    stream = warmstart_tasks(load_cytology("train")[:24], labelled_share=0.5, seed=0)
    rows = [a_row(render_prompt(task, processor), text, *task.images) for task, text in itertools.islice(stream, 4)]
    collate = _Collator(processor)

    def summed(rows: list[dict[str, Any]]) -> float:
        batch = collate(rows)
        with torch.no_grad():
            return float(model(**batch).loss * (batch["labels"] != IGNORED).sum())

    assert summed(rows) == pytest.approx(sum(summed([row]) for row in rows), rel=1e-5)


def test_a_policy_with_three_dimensional_positions_learns_from_the_same_rows(tiny_qwen: Path) -> None:
    """The marks of the image tokens must cover prompt and completion, or the model refuses the batch."""
    model, processor = load_policy(str(tiny_qwen))
    stream = warmstart_tasks((), labelled_share=0.0, seed=0)
    rows = [a_row(render_prompt(task, processor), text, *task.images) for task, text in itertools.islice(stream, 2)]
    batch = _Collator(processor)(rows)
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    assert int(batch["mm_token_type_ids"].sum()) == int((batch["input_ids"] == processor.image_token_id).sum()) > 0
    assert torch.isfinite(model(**batch).loss)


def cytology_examples(processor: Any) -> Callable[[], Iterator[Example]]:
    def examples() -> Iterator[Example]:
        for task, completion in warmstart_tasks(load_cytology("train")[:24], labelled_share=0.1, seed=0):
            yield render_prompt(task, processor), task.images, completion

    return examples


def train(policy: Path, out: Path, processor: Any, *, steps: int) -> dict[str, float]:
    return warm_start(
        cytology_examples(processor),
        str(policy),
        out,
        steps=steps,
        batch_size=4,
        learning_rate=3e-3,
        seed=0,
        log=out.with_suffix(".jsonl"),
    )


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_leave_a_policy_that_loads(
    tiny_policy: Path, tmp_path: Path, processor: Any
) -> None:
    measured = train(tiny_policy, tmp_path / "warm", processor, steps=12)
    logged = [json.loads(line) for line in (tmp_path / "warm.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == list(range(1, 13))
    assert measured["loss"] == logged[-1]["loss"] < 0.8 * logged[0]["loss"]

    before, _ = load_policy(str(tiny_policy))
    after, _ = load_policy(str(tmp_path / "warm"))
    frozen = [n for (n, a), b in zip(after.named_parameters(), before.parameters(), strict=True) if torch.equal(a, b)]
    assert frozen == []
    assert {path.name for path in tiny_policy.iterdir()} == {path.name for path in (tmp_path / "warm").iterdir()}


@pytest.mark.slow
def test_the_same_seed_learns_the_same_weights(tiny_policy: Path, tmp_path: Path, processor: Any) -> None:
    for name in ("first", "second"):
        train(tiny_policy, tmp_path / name, processor, steps=3)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
