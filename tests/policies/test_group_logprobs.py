"""Whatever is beside it in the batch, and whenever it is asked for, a group gets the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from policies.attention import use_packed_attention
from policies.group_logprobs import GroupLogprobs
from policies.packing import MicroBatchBuilder
from policies.policy_model import PolicyModel
from policies.vlm import load_policy
from rl.types import TrainSample
from tests.samples import a_sample

pytestmark = pytest.mark.slow


def samples() -> list[TrainSample]:
    """Three groups of three completions."""
    rng = np.random.default_rng(0)
    return [
        a_sample(rng.integers(20, 300, size=rng.integers(3, 20)).tolist(), prompt=[7, 8, 9 + group], group=group)
        for group in range(3)
        for _ in range(3)
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_a_group_alone_or_with_others_early_or_late_has_the_same_logprobs(packing: bool, tiny_policy: Path) -> None:
    model, processor = load_policy(str(tiny_policy))
    if packing:
        use_packed_attention(model)
    builder = MicroBatchBuilder(model.model, processor, kernel="sdpa" if packing else None)
    policy = PolicyModel(model, temperature=1.0, entropy_gradient=False)
    by_group = GroupLogprobs(policy, builder, 8192, device=torch.device("cpu"))
    batch = samples()
    early: dict[str, np.ndarray] = {}
    for group in (2, 0, 1):
        early |= by_group.of_group([sample for sample in batch if sample.group == group])
    rows = builder.rows(batch)
    for budget in (8192, 40):  # all in one pass, then a few rows in each
        (passes,) = builder.plan(rows, ranks=1, budget_tokens=budget)
        for own in passes:
            micro = builder.build([rows[index] for index in own])
            late = by_group.of_pass(micro, batch, {})
            assert torch.equal(late, by_group.of_pass(micro, batch, dict(early)))
            with torch.no_grad():
                together = policy(micro)[0]  # in the passes of the update itself: the same but for rounding
            np.testing.assert_allclose(late.numpy(), together.numpy(), atol=1e-5)
