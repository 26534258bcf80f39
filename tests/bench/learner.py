"""The learner: one optimizer step on groups about pictures, against bare PyTorch, its own plain path, and TRL.

All take the same trajectories of the same policy in float32 on all cores, in one process, turn by turn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rl.types import Task, TrainBatch
from tests.bench.harness import Figure, Part, Table, Turns, faster, interleaved, seconds_table, spread, timed
from tests.bench.setting import CORES, PICTURE_PX, learner, picture_tasks, policy, random_batch, run_config

GROUPS, GROUP_SIZE, COMPLETION_TOKENS = 2, 8, 64
AIMS = {250: 3.0, 970: 5.0}  # times as fast as TRL, by the tokens of the prompt
LEARNING_RATE = 1e-6
MATMUL = (2048, 512, 2048)  # what a layer of the policy multiplies


def measure(*, turns: int, quick: bool) -> Part:
    torch.set_num_threads(CORES)
    figures: list[Figure] = []
    tables: list[Table] = []
    lengths = [250] if quick else list(AIMS)
    for prompt_tokens in lengths:
        tasks = picture_tasks(GROUPS, side_px=PICTURE_PX[prompt_tokens] if not quick else 84)
        measured = Measured("tiny" if quick else "medium", tasks)
        seconds = interleaved(measured.contestants(), turns=turns)
        title = f"Prompts of {measured.prompt_tokens} tokens"
        figures += measured.figures(title, seconds, aim=AIMS[prompt_tokens])
        tables.append(seconds_table(f"{title}: seconds of a step", seconds))
    config = {
        "policy": "tiny" if quick else "medium",
        "dtype": "float32",
        "threads": CORES,
        "groups": GROUPS,
        "group_size": GROUP_SIZE,
        "completion_tokens": COMPLETION_TOKENS,
    }
    return Part(config=config, figures=figures, tables=tables)


class Measured:
    """The contestants on one set of tasks, and what their times say."""

    def __init__(self, policy_name: str, tasks: Sequence[Task]) -> None:
        from tests.bench.trl_trainer import TrlUpdate

        path = policy(policy_name)
        self.packed = learner(path, _config(packing=True))
        self.batch = random_batch(
            tasks, self.packed.processor, group_size=GROUP_SIZE, completion_tokens=COMPLETION_TOKENS
        )
        self.prompt_tokens = self.batch.samples[0].prompt_length
        self.bare = BareUpdate(self.packed, self.batch)
        self.trl = TrlUpdate(path, self.batch, tasks, learning_rate=LEARNING_RATE)
        longest = self.prompt_tokens + COMPLETION_TOKENS
        self.plain = learner(path, _config(packing=False, micro_batch_tokens=self.trl.rows_at_a_time * longest))
        self.grad_norm = 0.0

    def contestants(self) -> dict[str, Callable[[], float]]:
        left, right = torch.randn(MATMUL[0], MATMUL[1]), torch.randn(MATMUL[1], MATMUL[2])
        return {
            "medrl": timed(self.update),
            "bare PyTorch": timed(self.bare),
            "medrl, plain": timed(lambda: self.plain.update(self.batch)),
            "TRL": timed(self.trl),
            "50 matrix products": timed(lambda: [left @ right for _ in range(50)]),
        }

    def update(self) -> None:
        self.grad_norm = self.packed.update(self.batch).grad_norm

    def figures(self, title: str, seconds: Turns, *, aim: float) -> list[Figure]:
        agree = abs(self.grad_norm - self.trl.grad_norm) / self.grad_norm
        least = least_flops(self.packed.engine.module.model, self.bare, self.batch)
        peak = [50 * 2 * MATMUL[0] * MATMUL[1] * MATMUL[2] / taken_s for taken_s in seconds["50 matrix products"]]
        shares = [least / taken_s / rate for taken_s, rate in zip(seconds["medrl"], peak, strict=True)]
        rows = self.trl.rows_at_a_time
        return [
            Figure(
                what=f"{title}: trajectories/s over bare PyTorch's on the same packed batch",
                value=faster(seconds, ours="medrl", than="bare PyTorch"),
                aim=0.9,
            ),
            Figure(
                what=f"{title}: trajectories/s over TRL's GRPOTrainer (loss, backward, step)",
                value=faster(seconds, ours="medrl", than="TRL"),
                aim=aim,
                note=f"TRL with {rows} rows at a time, its fastest; gradient norms differ by {agree:.1e}",
            ),
            Figure(
                what=f"{title}: trajectories/s over learner.packing=false",
                value=faster(seconds, ours="medrl", than="medrl, plain"),
                note=f"which is given {rows} rows at a time as well",
            ),
            Figure(
                what=f"{title}: the least time that its FLOPs could take, as a share of its own",
                value=spread(shares),
                unit="",
                note=f"{least / 1e9:,.1f} GFLOP at {spread(peak).median / 1e9:,.0f} GFLOP/s of plain matrix products",
            ),
        ]


def _config(*, packing: bool, micro_batch_tokens: int = 4096) -> Any:
    config = run_config(packing=packing, micro_batch_tokens=micro_batch_tokens)
    config.learner.learning_rate = LEARNING_RATE
    config.loss.rollout_correction.mode = "none"  # TRL is spared it as well
    return config


class BareUpdate:
    """What is left of an update where nothing is around it: forward, log-softmax, backward, clip, AdamW."""

    def __init__(self, trained: Any, batch: TrainBatch) -> None:
        self.micros = trained._minibatch(list(enumerate(batch.samples))).micros  # tensors: building them is not bare
        self.model = copy.deepcopy(trained.engine.module.model)
        self.loss_tokens = batch.loss_tokens
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def __call__(self) -> None:
        for micro in self.micros:
            self.loss(micro).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, micro: Any) -> torch.Tensor:
        inputs = {**micro.model_inputs, **micro.vision_inputs}
        hidden = self.model.model(input_ids=micro.input_ids, use_cache=False, **inputs).last_hidden_state
        logits = self.model.get_output_embeddings()(hidden.flatten(0, 1)[micro.predictors])
        logprobs = logits.log_softmax(-1).gather(1, micro.targets[:, None])[:, 0]
        ratios = (logprobs - logprobs.detach()).exp()
        return -(micro.advantages[micro.sample_ids] * ratios).sum() / self.loss_tokens


def least_flops(model: Any, bare: BareUpdate, batch: TrainBatch) -> float:
    """FLOPs of a step that reads every prompt once and every completion once, and whose backward is twice its forward.

    Matrix products are counted while the packed batch runs; attention by the pairs that a causal tree has.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for micro in bare.micros:
            bare.loss(micro)
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in counted.items() if str(operation).split(".")[-1] in _PRODUCTS)
    text, vision = model.config.text_config, model.config.vision_config
    pairs = sum(_pairs(batch, group) for group in {sample.group for sample in batch.samples})
    patches = [
        (image.width // vision.patch_size) * (image.height // vision.patch_size)
        for sample in {sample.group: sample for sample in batch.samples}.values()
        for image in sample.images
    ]
    decoder = 4 * text.num_attention_heads * text.head_dim * pairs * text.num_hidden_layers
    tower = 4 * vision.hidden_size * sum(count**2 for count in patches) * vision.num_hidden_layers
    return 3.0 * (products + decoder + tower)


_PRODUCTS = {"mm", "addmm", "convolution"}


def _pairs(batch: TrainBatch, group: int) -> int:
    """How many (query, key) pairs a group has: causal within the prompt, and from each completion to both."""
    samples = [sample for sample in batch.samples if sample.group == group]
    prompt = samples[0].prompt_length
    lengths = [len(sample.token_ids) - prompt for sample in samples]
    return prompt * (prompt + 1) // 2 + sum(length * prompt + length * (length + 1) // 2 for length in lengths)
