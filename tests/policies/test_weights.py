"""Which weights are handed out again, and by what all of them are known."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from policies.weights import Publisher, block_of

ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


def weights() -> dict[str, np.ndarray]:
    names = [f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.k_proj.weight", f"{MLP}.up_proj.weight", "lm_head.weight"]
    return {name: np.full(4, number, dtype=np.float32) for number, name in enumerate(names)}


def test_at_first_all_is_handed_out_and_then_what_changed_together_with_what_is_fused_with_it() -> None:
    publisher = Publisher()
    first, _ = publisher.changes(weights())
    assert first.keys() == weights().keys()
    moved = weights() | {f"{ATTENTION}.q_proj.weight": np.zeros(4, dtype=np.float32) - 1}
    changed, known = publisher.changes(moved)
    assert changed.keys() == {f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.k_proj.weight"}
    assert known.size_bytes == 2 * 4 * 4
    assert publisher.changes(moved)[0] == {}


def test_the_digest_is_that_of_all_weights_however_few_were_looked_at() -> None:
    publisher = Publisher()
    publisher.changes(weights())
    head = {"lm_head.weight": np.ones(4, dtype=np.float32)}
    _, known = publisher.changes(head)
    assert known.sha256 == Publisher().changes(weights() | head)[1].sha256
    assert known.sha256 != Publisher().changes(weights())[1].sha256


def test_what_is_handed_out_unseen_is_known_as_what_is_compared_and_counts_as_handed_out() -> None:
    publisher, comparing = Publisher(), Publisher()
    known = publisher.known(weights())
    _, compared = comparing.changes(weights())
    assert known == compared and known.size_bytes == 4 * 4 * 4
    head = {"lm_head.weight": np.ones(4, dtype=np.float32)}
    assert publisher.known(head) == comparing.changes(head)[1]
    assert publisher.known(head).size_bytes == 4 * 4  # though no bit of it changed
    assert publisher.changes(head)[0] == {}


def test_a_change_of_bits_that_compare_as_equal_is_a_change() -> None:
    publisher = Publisher()
    publisher.changes({"a.b.weight": np.array([0.0])})
    assert publisher.changes({"a.b.weight": np.array([-0.0])})[0].keys() == {"a.b.weight"}


def test_a_rank_that_hands_nothing_out_takes_part_in_gathering_and_holds_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    def full_weights(*_: Any, **__: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(4):
            assert not any(weight() is not None for weight in given)
            yield f"layers.{number}.linear.weight", remembered(torch.zeros(2))

    def remembered(weight: torch.Tensor) -> torch.Tensor:
        given.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr("policies.weights.full_weights", full_weights)
    assert Publisher().gather(torch.nn.Linear(1, 1), keep=False) == {}
    assert len(given) == 4


@pytest.mark.slow
def test_weights_are_moved_one_by_one_where_their_device_may_not_hold_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    def full_weights(*_: Any, **__: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(4):
            assert sum(weight() is not None for weight in given) <= 1
            weight = torch.zeros(2)
            given.append(weakref.ref(weight))
            yield f"layers.{number}.linear.weight", weight
            del weight

    monkeypatch.setattr("policies.weights.full_weights", full_weights)
    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", lambda _, weights: weights)
    gathered = Publisher().gather(torch.nn.Linear(1, 1), keep=True, device="meta")
    assert [weight.device.type for weight in gathered.values()] == ["meta"] * 4


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn"),
        ("model.layers.0.mlp.experts.3.gate_proj.weight", "model.layers.0.mlp.experts"),
        ("visual.blocks.1.attn.qkv.weight", "visual.blocks.1.attn"),
        ("visual.merger.mlp.0.weight", "visual.merger.mlp"),
        ("lm_head.weight", ""),
    ],
)
def test_a_block_holds_what_an_engine_may_have_fused(name: str, block: str) -> None:
    assert block_of(name) == block
