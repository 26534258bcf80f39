"""The policy that RL started from, frozen: what a divergence is measured from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from policies.packing import MicroBatch, MicroBatchBuilder
from policies.policy_model import PolicyModel
from rl.types import TrainSample


class FrozenReference:
    """Logprobs of the trained tokens of whole groups, each in passes of its own.

    So neither the rank, nor the time, nor the rest of the batch makes a difference to a bit: a group may be computed as
    soon as it is scored, while others are still being written. A pass is no collective.
    """

    def __init__(
        self, policy: PolicyModel, builder: MicroBatchBuilder, budget_tokens: int, *, device: torch.device
    ) -> None:
        self.policy = policy.eval().requires_grad_(False).to(device)
        self.builder, self.budget_tokens, self.device = builder, budget_tokens, device

    @torch.no_grad()
    def group_logprobs(self, samples: Sequence[TrainSample]) -> dict[str, np.ndarray]:
        """Float32 [loss_token] of every sample of one group, by trajectory id."""
        rows = self.builder.rows(samples)
        (passes,) = self.builder.plan(rows, ranks=1, budget_tokens=self.budget_tokens)
        found: dict[str, np.ndarray] = {}
        for own in passes:
            micro = self.builder.build([rows[index] for index in own]).to(self.device)
            parts = micro.by_sample(self.policy(micro)[0])
            found |= {samples[index].trajectory_id: part for index, part in zip(micro.indices, parts, strict=True)}
        return found

    def logprobs(self, micro: MicroBatch, samples: Sequence[TrainSample], known: dict[str, np.ndarray]) -> torch.Tensor:
        """Float32 [loss_token] of a pass over some of the ``samples``; whole groups that ``known`` lacks are added."""
        own = [samples[index] for index in micro.indices]
        for group in {sample.group for sample in own if sample.trajectory_id not in known}:
            known |= self.group_logprobs([sample for sample in samples if sample.group == group])
        return torch.from_numpy(np.concatenate([known[sample.trajectory_id] for sample in own])).to(self.device)
