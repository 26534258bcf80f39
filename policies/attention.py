"""Attention over a packed row: every group a tree, its shared prefix the trunk, its completions the branches.

A token sees what stands before it in the trunk and in its own branch. Three kernels compute the same function:

``sdpa``   the trunk by causal attention, the branches of a tree as one batch over [trunk; branch]; any device.
``flex``   PyTorch's flex attention with a block mask that skips what no token sees; CUDA, any dtype.
``flash``  PyTorch's variable-length flash attention, the trunk's keys gathered for every branch; CUDA, 16-bit floats.

None holds a matrix of row x row. Scores are never kept by flex, flash and the CPU's kernel; what ``sdpa`` and
``flash`` hold beyond the row itself are the keys and values of [trunk; branch] for every branch, as the plain path
does, and ``flex`` holds one flag per 128 x 128 tokens.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rl.errors import PolicyError

Kernel = Literal["sdpa", "flex", "flash"]
NAME = "medrl_packed"
"""What transformers knows `_attend` by."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One group in a packed row: lengths in tokens of its shared prefix and of what each sample has beyond it."""

    trunk: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.trunk + sum(self.branches)


class PackedAttention(ABC):
    """Attention over trees that stand one after the other in a row.

    Built once per micro-batch and called by every layer of the decoder.
    """

    def __init__(self, trees: tuple[Tree, ...], device: torch.device | str) -> None:
        self.trees = trees

    def to(self, device: torch.device | str) -> PackedAttention:
        """The same on ``device``."""
        return type(self)(self.trees, device)

    @abstractmethod
    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """[1, head, token, channel] each (fewer heads in ``key`` and ``value``) to [1, token, head, channel]."""


def packed_attention(trees: Sequence[Tree], *, kernel: Kernel) -> PackedAttention:
    """Attention over ``trees`` by ``kernel``, on the CPU until it is moved."""
    return _KERNELS[kernel](tuple(trees), "cpu")


def use_packed_attention(model: Any) -> None:
    """Make the decoder of a transformers model attend as the ``packed`` argument of its forward pass says.

    The vision tower keeps its own attention. Raises PolicyError for a decoder that computes something else than full
    causal attention: of a window, of a state that runs along the row, or of images seen as a whole, it would lose or
    mix up what belongs to other completions, and say nothing.
    """
    from transformers import AttentionInterface

    text = model.config.get_text_config()
    if other := _beside_full_attention(text):
        raise PolicyError(
            f"learner.packing must be false for a policy of the type {model.config.model_type}: its decoder has "
            f"{', '.join(other)}, and packed rows take full causal attention in every layer"
        )
    AttentionInterface.register(NAME, _attend)
    text._attn_implementation = NAME


def _beside_full_attention(text: Any) -> list[str]:
    """What a decoder's config asks for that is not full causal attention."""
    layers = getattr(text, "layer_types", None)
    other = sorted(set(layers or ()) - {"full_attention"})
    settings = ["attn_logit_softcapping", "use_bidirectional_attention", *([] if layers else ["sliding_window"])]
    return other + [f"{name}={value}" for name in settings if (value := getattr(text, name, None))]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedAttention,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    return packed.attend(module, query, key, value, scaling), None


class _Sdpa(PackedAttention):
    """Two calls per tree. Branches are padded to the longest of their tree, at their ends, which no token sees."""

    def __init__(self, trees: tuple[Tree, ...], device: torch.device | str) -> None:
        super().__init__(trees, device)
        self.branches = []
        start = 0
        for tree in trees:
            self.branches.append(_PaddedBranches(tree, start + tree.trunk, device))
            start += tree.length

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        outputs = []
        start = 0
        for tree, branches in zip(self.trees, self.branches, strict=True):
            trunk = slice(start, start + tree.trunk)
            q, k, v = (states[:, :, trunk] for states in (query, key, value))
            outputs.append(_attention(q, k, v, scale=scale, is_causal=True).transpose(1, 2)[0])
            if branches.longest:
                q, own_k, own_v = (branches.pad(states) for states in (query, key, value))
                k, v = (
                    torch.cat([shared.expand(len(q), -1, -1, -1), own], dim=2)
                    for shared, own in ((k, own_k), (v, own_v))
                )
                outputs.append(branches.unpad(_attention(q, k, v, scale=scale, attn_mask=branches.mask)))
            start += tree.length
        return torch.cat(outputs)[None]


class _PaddedBranches:
    """Takes the branches of a tree out of a row, and puts them back."""

    def __init__(self, tree: Tree, start: int, device: torch.device | str) -> None:
        self.longest = max(tree.branches, default=0)
        lengths = torch.tensor(tree.branches, device=device)
        within = torch.arange(self.longest, device=device)
        self.real = within < lengths[:, None]
        starts = start + lengths.cumsum(0) - lengths
        self.places = torch.where(self.real, starts[:, None] + within, start)
        # A token sees the whole trunk and its branch up to itself: padding, at the end, is seen by padding alone.
        keys = tree.trunk + self.longest
        self.mask = torch.ones(self.longest, keys, dtype=torch.bool, device=device).tril(tree.trunk)

    def pad(self, states: Tensor) -> Tensor:
        """[1, head, token, channel] of the row to [branch, head, token, channel]."""
        return states[0][:, self.places].transpose(0, 1)

    def unpad(self, states: Tensor) -> Tensor:
        """[branch, head, token, channel] to [token, head, channel], in the order of the row."""
        return states.transpose(1, 2)[self.real]


class _Flex(PackedAttention):
    """One call per row, by a block mask."""

    def __init__(self, trees: tuple[Tree, ...], device: torch.device | str) -> None:
        super().__init__(trees, device)
        self.device = torch.device(device)

    @functools.cached_property
    def block_mask(self) -> Any:
        """Made by the first layer, where it is used: the CPU, on which rows are put together, would count its blocks in
        a mask of row x row."""
        from torch.nn.attention.flex_attention import create_block_mask

        lengths = torch.tensor([tree.length for tree in self.trees])
        tree_of = torch.arange(len(self.trees)).repeat_interleave(lengths).to(self.device)
        parts = [part for tree in self.trees for part in (tree.trunk, *tree.branches)]
        branch_numbers = torch.cat([torch.arange(1 + len(tree.branches)) for tree in self.trees])  # 0 is the trunk
        branch_of = branch_numbers.repeat_interleave(torch.tensor(parts)).to(self.device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (branch_of[key] == 0) | (branch_of[key] == branch_of[query])
            return (key <= query) & (tree_of[key] == tree_of[query]) & own

        total = int(lengths.sum())
        make = torch.compile(create_block_mask) if self.device.type == "cuda" else create_block_mask
        # Compiled, it never holds the mask of row x row that it counts the blocks of.
        return make(sees, None, None, total, total, device=self.device)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        from transformers.integrations.flex_attention import flex_attention_forward

        return flex_attention_forward(module, query, key, value, self.block_mask, scaling=scale)[0]


class _Flash(PackedAttention):
    """One call per row: a segment of queries for every trunk and branch, and the keys that its last token sees."""

    def __init__(self, trees: tuple[Tree, ...], device: torch.device | str) -> None:
        super().__init__(trees, device)
        queries, keys = [], []
        start = 0
        for tree in trees:
            trunk = torch.arange(start, start + tree.trunk)
            start += tree.trunk
            queries.append(tree.trunk)
            keys.append(trunk)
            for length in filter(None, tree.branches):
                queries.append(length)
                keys.append(torch.cat([trunk, torch.arange(start, start + length)]))
                start += length
        self.key_places = torch.cat(keys).to(device)
        self.longest_query, self.longest_key = max(queries), max(map(len, keys))
        self.query_borders = _borders(queries).to(device)
        self.key_borders = _borders([len(places) for places in keys]).to(device)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        attended = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1)[self.key_places],
            value[0].transpose(0, 1)[self.key_places],
            self.query_borders,
            self.key_borders,
            self.longest_query,
            self.longest_key,
            scale=scale,
            window_size=(-1, 0),  # causal, aligned at the last query and the last key of a segment
            enable_gqa=True,
        )
        assert isinstance(attended, Tensor)  # a tuple only where the logsumexp is asked for
        return attended[None]


_KERNELS: dict[Kernel, Callable[..., PackedAttention]] = {"sdpa": _Sdpa, "flex": _Flex, "flash": _Flash}


def _borders(lengths: Sequence[int]) -> Tensor:
    """Int32 [segment + 1], where each segment starts and the last one ends."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, **mask: Any) -> Tensor:
    return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True, **mask)
