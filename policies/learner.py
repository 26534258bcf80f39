"""The learner: a DeepSpeed engine over the policy, on one rank.

Loss and gradient are means over the *global* count of trained tokens (or samples), so that neither the number of
ranks nor the cut into micro-batches changes the update.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.attention import use_packed_attention
from policies.contract import Anchors, Gradient, Gradients, LearnerSettings, RankUpdate, Weights
from policies.deepspeed_engine import deepspeed_engine
from policies.group_logprobs import GroupLogprobs
from policies.learner_state import load_state, save_state
from policies.logprobs import chunk_count
from policies.packing import MicroBatch, MicroBatchBuilder
from policies.policy_model import HEAD_CHUNK_TOKENS, PolicyModel
from policies.rows import Row, has_images, untrained_row
from policies.schedule import scheduled_share
from policies.vlm import load_policy
from policies.weights import Publisher, base_model, full_weights, host_arrays
from rl.errors import LearnerError
from rl.types import TrainBatch, TrainSample

LossFunction = Callable[..., Any]
"""`rl.loss.policy_loss` with its settings bound: see there for what it takes and returns."""


class Learner:
    """Updates the policy on one rank; all ranks are called alike, since most of its methods are collectives."""

    def __init__(self, settings: LearnerSettings, loss: LossFunction, *, rank: int, ranks: int) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.loss, self.rank, self.ranks = settings, loss, rank, ranks
        self.device = torch.device("cuda", 0) if settings.on_gpu else torch.device("cpu")
        model, self.processor = load_policy(
            settings.policy_path,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
        )
        if settings.packing:
            use_packed_attention(model)
        self.builder = MicroBatchBuilder(
            model.model, self.processor, kernel=settings.attention if settings.packing else None
        )
        frozen = copy.deepcopy(model) if settings.with_reference and not settings.lora_rank else None
        self.engine = deepspeed_engine(self._trainable(model), settings)
        self.reference, self.before = self._reference(frozen), self._before()
        self.steps = 0
        self.publisher = Publisher()

    def update(self, batch: TrainBatch, *, known: Anchors | None = None) -> RankUpdate:
        """One optimizer step per mini-batch; ``known`` has what `anchors` gave for some groups already.

        Raises LearnerError where the loss is not finite.
        """
        minibatches = [self._minibatch(placed) for placed in self._cut(batch.samples)]
        totals = _Totals()
        reference, before = (dict(known.reference), dict(known.before)) if known else ({}, {})
        # After the first optimizer step the others are off-policy: what they compare with is computed beforehand.
        old = [
            [
                self._old_logprobs(micro, minibatch.samples, before) if minibatch is not minibatches[0] else None
                for micro in minibatch.micros
            ]
            for minibatch in minibatches
        ]
        for minibatch, old_logprobs in zip(minibatches, old, strict=True):
            learning_rate = self._set_learning_rate()
            for micro, old_of_micro in zip(minibatch.micros, old_logprobs, strict=True):
                new = self._backward(micro, old_of_micro, minibatch, totals, reference)
                if micro.weight:
                    totals.logprobs |= minibatch.by_place(micro, new if old_of_micro is None else old_of_micro)
                    number = totals.passes * self.ranks + self.rank
                    totals.micro_batches |= {minibatch.places[index]: number for index in micro.indices}
                totals.passes += 1
            grad_norm = self._step()
        return RankUpdate(
            shares={name: value / len(minibatches) for name, value in totals.shares.items()},
            sums=totals.sums,
            maxima=totals.maxima,
            tokens=totals.tokens,
            logprobs=totals.logprobs,
            micro_batches=totals.micro_batches,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
        )

    def logprobs(self, samples: Sequence[TrainSample]) -> dict[int, np.ndarray]:
        """Logprobs of the trained tokens of this rank's share, by place in ``samples``; no gradient."""
        minibatch = self._minibatch(list(enumerate(samples)))
        found: dict[int, np.ndarray] = {}
        for micro in minibatch.micros:
            new = self._detached_logprobs(micro)
            if micro.weight:
                found |= minibatch.by_place(micro, new)
        return found

    def anchors(self, samples: Sequence[TrainSample]) -> Anchors:
        """What the next update will compare one group with, as far as no other rank takes part in it."""
        return Anchors(
            reference=self.reference.of_group(samples) if self.reference else {},
            before=self.before.of_group(samples) if self.before else {},
        )

    def gradients(
        self, batch: TrainBatch, *, by_sample: bool, variants: Sequence[tuple[TrainBatch, LossFunction]]
    ) -> Gradients:
        """The gradient that ``batch`` has under the current weights, and how others lie to it; nothing is updated.

        ``by_sample`` adds the part of every sample, ``variants`` the gradients of other batches under other losses. It
        is that of one optimizer step over the whole batch, all its tokens on-policy, before clipping. Raises
        LearnerError for a learner whose weights are sharded.
        """
        if self.ranks > 1 or self.settings.zero_stage:
            raise LearnerError("gradients are taken apart by a learner of one rank at ZeRO stage 0 alone")
        whole = self._gradient(batch, batch.samples, self.loss)

        def beside(part: TrainBatch, samples: Sequence[TrainSample], loss: LossFunction) -> Gradient:
            gradient = self._gradient(part, samples, loss)
            return Gradient(norm=math.sqrt(_dot(gradient, gradient)), dot=_dot(gradient, whole))

        return Gradients(
            norm=math.sqrt(_dot(whole, whole)),
            samples=[beside(batch, [sample], self.loss) for sample in batch.samples] if by_sample else [],
            variants=[beside(other, other.samples, loss) for other, loss in variants],
        )

    def weights(self) -> tuple[dict[str, np.ndarray] | None, Weights | None]:
        """The weights that changed since the last call by checkpoint name, and what all of them are known by; on rank
        0 alone, the others only take part in gathering.

        The first call, and the first after `load`, gives all. With adapters no later one looks at what they leave.
        """
        # A policy that is sharded because no device holds it whole is put together in the memory of the host.
        gathered = self.publisher.gather(self.engine.module.model, keep=self.rank == 0, device="cpu")
        return self.publisher.changes(host_arrays(gathered)) if self.rank == 0 else (None, None)

    def gather(self) -> dict[str, torch.Tensor]:
        """The weights that training may have changed, by checkpoint name, whole and on the device; see `weights`.

        Rank 0 gets them; the others take part."""
        return self.publisher.gather(self.engine.module.model, keep=self.rank == 0)

    def save_policy(self, folder: Path) -> None:
        """Write the policy, adapters merged, as a plain ``save_pretrained`` folder with its processor."""
        model = self.engine.module.model
        weights = {name: weight.cpu() for name, weight in full_weights(model) if self.rank == 0}
        if self.rank == 0:
            base_model(model).save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)

    def save(self, folder: Path) -> None:
        """Write this rank's share of weights and optimizer, and the step count, into ``folder``."""
        save_state(self.engine, folder, rank=self.rank)
        if self.rank == 0:
            (folder / "learner.json").write_text(json.dumps({"steps": self.steps}))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote: exactly, and with other ranks or another ZeRO stage up to the rounding of
        their sums. Raises CheckpointError where it was written for another model."""
        load_state(self.engine, folder)
        self.publisher = Publisher()
        self.steps = json.loads((folder / "learner.json").read_text())["steps"]

    def _trainable(self, model: Any) -> PolicyModel:
        settings = self.settings
        if settings.lora_rank:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(
                model,
                LoraConfig(
                    r=settings.lora_rank,
                    lora_alpha=settings.lora_alpha,
                    target_modules=list(settings.lora_target_modules),
                ),
            )
        if settings.gradient_checkpointing:
            base_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base_model(model).enable_input_require_grads()
        model.train()
        return PolicyModel(model, temperature=settings.temperature, entropy_gradient=settings.entropy_gradient)

    def _reference(self, frozen: Any) -> GroupLogprobs | None:
        """Of the policy that RL started from, where a rank can compute it alone: a frozen copy, or the base under the
        adapters unless it is sharded."""
        if frozen is not None:
            policy = PolicyModel(frozen, temperature=self.settings.temperature, entropy_gradient=False)
            return self._group_logprobs(policy.eval().requires_grad_(False).to(self.device))
        if self.settings.with_reference and self.settings.zero_stage < 3:
            return self._group_logprobs(self.engine.module, under=self.engine.module.model.disable_adapter)
        return None

    def _before(self) -> GroupLogprobs | None:
        """Of the policy before an update of several optimizer steps, where a rank can compute it alone."""
        alone = self.settings.minibatches > 1 and self.settings.zero_stage < 3
        return self._group_logprobs(self.engine.module) if alone else None

    def _group_logprobs(self, policy: PolicyModel, **under: Any) -> GroupLogprobs:
        return GroupLogprobs(policy, self.builder, self.settings.micro_batch_tokens, device=self.device, **under)

    def _cut(self, samples: Sequence[TrainSample]) -> list[list[tuple[int, TrainSample]]]:
        """Cut the batch at group borders into ``minibatches`` parts; each sample keeps its place in the batch."""
        groups = sorted({sample.group for sample in samples})
        parts = [set(part) for part in np.array_split(groups, self.settings.minibatches) if len(part)]
        return [[(place, sample) for place, sample in enumerate(samples) if sample.group in part] for part in parts]

    def _minibatch(self, placed: Sequence[tuple[int, TrainSample]]) -> _MiniBatch:
        """This rank's passes over the samples of one optimizer step, in the host's memory: images are large."""
        samples = [sample for _, sample in placed]
        rows = self.builder.rows(samples)
        plan = self.builder.plan(rows, ranks=self.ranks, budget_tokens=self.settings.micro_batch_tokens)
        return _MiniBatch(
            micros=[self._build(rows, passes) for passes in zip(*plan, strict=True)],
            samples=samples,
            places=[place for place, _ in placed],
            loss_tokens=sum(row.loss_tokens for row in rows),
        )

    def _build(self, rows: Sequence[Row], passes: Sequence[tuple[int, ...]]) -> MicroBatch:
        """This rank's micro-batch of one pass, given which rows every rank runs in it.

        Each runs the same modules, that the collectives of sharded weights and gradients meet: a rank without work runs
        some row, and one without images beside one that has some runs one that has, too.
        """
        idle = [min(rows, key=lambda row: row.length)]
        shares = [[rows[index] for index in share] or idle for share in passes]
        own = shares[self.rank]
        if not has_images(own) and any(map(has_images, shares)):
            own = [*own, untrained_row(rows)]
        tokens = max(sum(row.loss_tokens for row in share) for share in shares)
        return self.builder.build(
            own,
            head_chunks=chunk_count(tokens, chunk_tokens=HEAD_CHUNK_TOKENS),
            weight=float(bool(passes[self.rank])),
        )

    def _backward(
        self,
        micro: MicroBatch,
        old_logprobs: torch.Tensor | None,
        minibatch: _MiniBatch,
        totals: _Totals,
        reference: dict[str, np.ndarray],
    ) -> torch.Tensor:
        """Accumulate the gradient of one pass; returns its logprobs, detached."""
        last = micro is minibatch.micros[-1]
        micro = micro.to(self.device)
        logprobs, entropy = self.engine(micro)
        result = self.loss(
            logprobs,
            logprobs.detach() if old_logprobs is None else old_logprobs,
            rollout_logprobs=micro.rollout_logprobs,
            advantages=micro.advantages,
            sample_ids=micro.sample_ids,
            global_tokens=minibatch.loss_tokens,
            global_samples=len(minibatch.places),
            ref_logprobs=self._reference_logprobs(micro, minibatch.samples, reference),
            entropy=entropy,
        )
        if not torch.isfinite(result.loss):
            raise LearnerError(
                f"the loss is {result.loss.item()} in optimizer step {self.steps + 1}; look at the trajectories of the "
                f"run's last logged step for logprobs that are not finite, then lower learner.learning_rate"
            )
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; the loss is this rank's share of a global mean, which adds up.
        self.engine.backward(result.loss * (self.ranks * micro.weight), scale_wrt_gas=False)
        if not last:
            self.engine.step()
        if micro.weight:
            totals.add(result)
        return logprobs.detach()

    def _step(self) -> float:
        """Take the optimizer step; returns the gradient's norm before clipping."""
        plain = self.settings.zero_stage == 0 and self.settings.dtype == "float32"
        if plain:  # the one mode in which DeepSpeed clips but reports no norm
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()
        self.steps += 1
        norm = norm if plain else float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise LearnerError(
                f"the norm of the gradient is {norm} in optimizer step {self.steps} though the loss is finite; look at "
                f"the run's last logged step for ratios that overflow, then lower learner.learning_rate"
            )
        return norm

    def _gradient(
        self, batch: TrainBatch, samples: Sequence[TrainSample], loss: LossFunction
    ) -> tuple[torch.Tensor, ...]:
        """What ``samples`` add to the gradient of ``batch``: float32, one tensor per trained parameter."""
        trained = [parameter for parameter in self.engine.module.parameters() if parameter.requires_grad]
        total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in trained]
        known: dict[str, np.ndarray] = {}
        for micro in self._minibatch(list(enumerate(samples))).micros:
            micro = micro.to(self.device)
            logprobs, entropy = self.engine.module(micro)
            share = loss(
                logprobs,
                logprobs.detach(),
                rollout_logprobs=micro.rollout_logprobs,
                advantages=micro.advantages,
                sample_ids=micro.sample_ids,
                global_tokens=batch.loss_tokens,
                global_samples=len(batch.samples),
                ref_logprobs=self._reference_logprobs(micro, samples, known),
                entropy=entropy,
            ).loss
            parts = torch.autograd.grad(share, trained, allow_unused=True)
            for whole, part in zip(total, parts, strict=True):
                if part is not None:
                    whole += part
        return tuple(total)

    def _set_learning_rate(self) -> float:
        rate = self.settings.learning_rate * scheduled_share(
            self.steps + 1, warmup_steps=self.settings.warmup_steps, decay_steps=self.settings.decay_steps
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def _detached_logprobs(self, micro: MicroBatch) -> torch.Tensor:
        return self.engine(micro.to(self.device))[0]

    def _old_logprobs(
        self, micro: MicroBatch, samples: Sequence[TrainSample], known: dict[str, np.ndarray]
    ) -> torch.Tensor:
        """Logprobs under the weights of now, which an optimizer step is about to change."""
        return self.before.of_pass(micro, samples, known) if self.before else self._detached_logprobs(micro)

    @torch.no_grad()
    def _reference_logprobs(
        self, micro: MicroBatch, samples: Sequence[TrainSample], known: dict[str, np.ndarray]
    ) -> torch.Tensor | None:
        """Logprobs under the policy that RL started from. The vision tower runs again: a frozen copy has its own, and
        adapters may sit in it."""
        if not self.settings.with_reference:
            return None
        if self.reference:
            return self.reference.of_pass(micro, samples, known)
        with self.engine.module.model.disable_adapter():
            return self.engine(micro)[0]


def _dot(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Summed in float64: the parts of a gradient add up to the whole."""
    return sum(float(torch.dot(a.double().flatten(), b.double().flatten())) for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class _MiniBatch:
    """The passes of this rank within one optimizer step, and counts that are global to it."""

    micros: list[MicroBatch]
    samples: list[TrainSample]
    places: list[int]
    loss_tokens: int

    def by_place(self, micro: MicroBatch, values: torch.Tensor) -> dict[int, np.ndarray]:
        """Cut flat [loss_token] values into one array per sample, by the sample's place in the batch."""
        return {self.places[index]: part for index, part in zip(micro.indices, micro.by_sample(values), strict=True)}


class _Totals:
    """Sums, maxima, logprobs and places of samples over the passes of an update."""

    def __init__(self) -> None:
        self.shares = {"total": 0.0, "policy": 0.0}
        self.sums: dict[str, float] = {}
        self.maxima: dict[str, float] = {}
        self.logprobs: dict[int, np.ndarray] = {}
        self.micro_batches: dict[int, int] = {}
        self.tokens = self.passes = 0

    def add(self, result: Any) -> None:
        self.tokens += result.tokens
        self.shares["total"] += float(result.loss)
        self.shares["policy"] += float(result.policy_term)
        for name, value in result.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        for name, value in result.maxima.items():
            self.maxima[name] = max(self.maxima.get(name, -math.inf), float(value))
