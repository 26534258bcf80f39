"""What a rank of the learner holds, and where, without a DeepSpeed engine."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from policies.learner import Learner
from policies.packing import MicroBatchBuilder
from tests.policies.test_packing import GROUP, _Model


def a_learner(*, rank: int = 0, **parts: Any) -> Learner:
    learner = object.__new__(Learner)
    vars(learner).update(rank=rank, ranks=1, settings=SimpleNamespace(micro_batch_tokens=100), **parts)
    return learner


@pytest.mark.parametrize("kernel", ["sdpa", None])
def test_the_passes_of_an_update_wait_in_the_memory_of_the_host(kernel: Any) -> None:
    builder = MicroBatchBuilder(_Model(), None, kernel=kernel)
    learner = a_learner(builder=builder, device=torch.device("meta"))
    (micro,) = learner._minibatch(list(enumerate(GROUP))).micros
    assert micro.input_ids.device == micro.targets.device == torch.device("cpu")


def test_a_rank_that_does_not_write_the_policy_does_not_keep_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    def full_weights(_: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(4):
            assert sum(weight() is not None for weight in given) <= 1
            weight = torch.zeros(2)
            given.append(weakref.ref(weight))
            yield f"layers.{number}.weight", weight
            del weight

    monkeypatch.setattr("policies.learner.full_weights", full_weights)
    engine = SimpleNamespace(module=SimpleNamespace(model=torch.nn.Linear(1, 1)))
    a_learner(rank=1, engine=engine).save_policy(tmp_path / "policy")
    assert len(given) == 4
    assert not list(tmp_path.iterdir())
