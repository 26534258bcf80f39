"""Attention over packed rows: each kernel against a softmax over the whole row with the tree's mask."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from policies.attention import Kernel, Tree, packed_attention, use_packed_attention
from rl.errors import PolicyError

HEADS, KEY_HEADS, CHANNELS = 4, 2, 32
trees = st.lists(
    st.builds(Tree, st.integers(1, 20), st.lists(st.integers(0, 9), max_size=4).map(tuple)), min_size=1, max_size=3
)


class _Training:
    training = True


def states(length: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, heads, length, CHANNELS, generator=generator, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def tree_mask(trees: list[Tree]) -> Tensor:
    """Bool [token, token], written token by token: the path from the root of its tree to a token is what it sees."""
    paths: list[list[int]] = []
    for tree in trees:
        start = len(paths)
        trunk = list(range(start, start + tree.trunk))
        paths += [trunk[: number + 1] for number in range(tree.trunk)]
        for branch in tree.branches:
            start = len(paths)
            paths += [trunk + list(range(start, start + number + 1)) for number in range(branch)]
    mask = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for token, seen in enumerate(paths):
        mask[token, seen] = True
    return mask


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """[1, token, head, channel], in float64."""
    key, value = (part.double().repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in (key, value))
    scores = query.double() @ key.transpose(2, 3) / math.sqrt(CHANNELS)
    return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ value).transpose(1, 2)


def attend(trees: list[Tree], inputs: list[Tensor], *, kernel: Kernel) -> Tensor:
    return packed_attention(trees, kernel=kernel).attend(_Training(), *inputs, CHANNELS**-0.5)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(trees=trees)
def test_sdpa_and_its_gradients_equal_a_softmax_over_the_whole_row(trees: list[Tree]) -> None:
    inputs = states(sum(tree.length for tree in trees))
    got, wanted = attend(trees, inputs, kernel="sdpa"), dense_attention(*inputs, tree_mask(trees))
    torch.testing.assert_close(got, wanted.float(), atol=1e-5, rtol=1e-5)
    weight = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).reshape(wanted.shape)
    gradients = torch.autograd.grad((got * weight.float()).sum(), inputs)
    for gradient, expected in zip(gradients, torch.autograd.grad((wanted * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_block_mask_of_flex_attention_lets_through_what_the_tree_does() -> None:
    trees = [Tree(150, (40, 0, 3)), Tree(20, (7,))]
    inputs = [part.detach() for part in states(220)]  # on the CPU flex attention has no backward pass
    wanted = dense_attention(*inputs, tree_mask(trees)).float()
    torch.testing.assert_close(attend(trees, inputs, kernel="flex"), wanted, atol=1e-5, rtol=1e-5)


def test_the_segments_of_flash_attention_are_the_paths_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself needs CUDA: here each segment is a causal softmax, aligned at its end as it promises."""

    def segments(
        query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, *longest: int, **options: Any
    ) -> Tensor:
        assert options == {"scale": CHANNELS**-0.5, "window_size": (-1, 0), "enable_gqa": True}
        assert starts.dtype == key_starts.dtype == torch.int32
        spans = [list(itertools.pairwise(borders.tolist())) for borders in (starts, key_starts)]
        assert longest == tuple(max(end - start for start, end in part) for part in spans)
        outputs = []
        for (q0, q1), (k0, k1) in zip(*spans, strict=True):
            mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
            parts = (query[q0:q1], key[k0:k1], value[k0:k1])
            outputs.append(dense_attention(*(part.transpose(0, 1)[None] for part in parts), mask)[0])
        return torch.cat(outputs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", segments)
    trees = [Tree(15, (4, 0, 3)), Tree(1, ()), Tree(2, (7,))]
    inputs = states(32)
    wanted = dense_attention(*inputs, tree_mask(trees))
    torch.testing.assert_close(attend(trees, inputs, kernel="flash"), wanted)


class _LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "text", "reason"),
    [
        ("gemma3", {"sliding_window": 512}, "sliding_attention"),
        ("qwen3_5", {}, "linear_attention"),
        ("idefics2", {"model_type": "mistral", "sliding_window": 4096}, "sliding_window=4096"),
        ("paligemma", {"model_type": "gemma"}, "use_bidirectional_attention=True"),
    ],
)
def test_a_decoder_of_more_than_full_causal_attention_is_refused(
    model_type: str, text: dict[str, Any], reason: str
) -> None:
    from transformers import AutoConfig

    model = SimpleNamespace(config=AutoConfig.for_model(model_type, text_config=text))
    with pytest.raises(PolicyError, match=f"learner.packing must be false .* {model_type}: its decoder has {reason}"):
        use_packed_attention(model)


@pytest.mark.parametrize("kernel", ["sdpa", "flex", "flash"])
def test_no_mask_of_the_row_is_made_where_rows_are_put_together(kernel: Kernel) -> None:
    trees = [Tree(100, (20,) * 8)] * 10
    with _LargestTensor() as seen:
        packed_attention(trees, kernel=kernel)
    # 2,600 tokens, of which flash gathers the 100 + 8 x (100 + 20) keys of each tree
    assert seen.elements <= 10 * (100 + 8 * 120) < 2600**2


@pytest.mark.slow
def test_memory_grows_with_the_row_and_not_with_its_square() -> None:
    largest = []
    for groups in (4, 16):
        trees = [Tree(100, (20,) * 8)] * groups
        inputs = states(260 * groups)
        with _LargestTensor() as seen:
            attend(trees, inputs, kernel="sdpa").sum().backward()
        largest.append(seen.elements)
    # four times the row: four times its output, HEADS x CHANNELS a token, where a mask of the row has 16 times as many
    assert largest[1] == 4 * largest[0] == 16 * 260 * HEADS * CHANNELS < (16 * 260) ** 2
