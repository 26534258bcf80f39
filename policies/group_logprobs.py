"""Logprobs of whole groups, each in passes of its own: what is known of a group as soon as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from policies.packing import MicroBatch, MicroBatchBuilder
from policies.policy_model import PolicyModel
from rl.types import TrainSample


class GroupLogprobs:
    """Logprobs of trained tokens under a policy that is whole on this rank: a pass is no collective.

    Neither the rank, nor the time, nor the rest of the batch makes a difference to a bit: a group may be computed as
    soon as it is scored, while others are still being written. ``under`` is entered for it, where the policy is meant
    in another state than it is trained in.
    """

    def __init__(
        self,
        policy: PolicyModel,
        builder: MicroBatchBuilder,
        budget_tokens: int,
        *,
        device: torch.device,
        under: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.policy, self.builder, self.budget_tokens, self.device = policy, builder, budget_tokens, device
        self.under = under

    @torch.no_grad()
    def of_group(self, samples: Sequence[TrainSample]) -> dict[str, np.ndarray]:
        """Float32 [loss_token] of every sample of one group, by trajectory id."""
        rows = self.builder.rows(samples)
        (passes,) = self.builder.plan(rows, ranks=1, budget_tokens=self.budget_tokens)
        found: dict[str, np.ndarray] = {}
        for own in passes:
            micro = self.builder.build([rows[index] for index in own]).to(self.device)
            with self.under():
                logprobs, _ = self.policy(micro)
            parts = micro.by_sample(logprobs)
            found |= {samples[index].trajectory_id: part for index, part in zip(micro.indices, parts, strict=True)}
        return found

    def of_pass(self, micro: MicroBatch, samples: Sequence[TrainSample], known: dict[str, np.ndarray]) -> torch.Tensor:
        """Float32 [loss_token] of a pass over some of the ``samples``; whole groups that ``known`` lacks are added."""
        own = [samples[index] for index in micro.indices]
        for group in {sample.group for sample in own if sample.trajectory_id not in known}:
            known |= self.of_group([sample for sample in samples if sample.group == group])
        return torch.from_numpy(np.concatenate([known[sample.trajectory_id] for sample in own])).to(self.device)
