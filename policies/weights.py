"""Weights out of the learner: gathered from their shards, adapters merged, under the names of the checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from policies.contract import Weights

ADAPTER = "default"
_ADAPTER_WEIGHT = re.compile(r"\.lora_.*")
_NUMBER = re.compile(r"\.\d+$")


def full_weights(
    model: torch.nn.Module, *, blocks: Collection[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight whole, by the name that it has in the model without adapters, one at a time.

    ``blocks`` leaves out those of all others (see `block_of`). A collective under ZeRO-3: every rank must iterate to
    the end. Tied weights come once. LoRA adapters are merged into a copy (``W + scale · B A``), so that the base
    weights never drift by merging and unmerging.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, parameter in model.named_parameters():
        plain = _plain_name(name)
        if "lora_" in name or (blocks is not None and block_of(plain) not in blocks):
            continue
        owner = name.rpartition(".base_layer.")[0]
        adapted = layers.get(owner) if name.endswith(".base_layer.weight") else None
        factors = [factor for key, factor in adapted.named_parameters() if "lora_" in key] if adapted else []
        with _gathered([parameter, *factors]), torch.no_grad():
            weight = parameter.detach().clone()
            if adapted is not None:
                weight += adapted.get_delta_weight(ADAPTER).to(weight.dtype)
        yield plain, weight


def trained_blocks(model: torch.nn.Module) -> set[str]:
    """The blocks of the model that training changes: with adapters those that hold one, else all of them."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {block_of(_plain_name(_ADAPTER_WEIGHT.sub(".weight", name))) for name in trained}


def block_of(name: str) -> str:
    """The weights that an engine may have fused, and then takes together only: those of one attention, one MLP, all
    experts of a layer. ``….self_attn`` for ``….self_attn.q_proj.weight``."""
    return _NUMBER.sub("", name.rpartition(".")[0].rpartition(".")[0])


def checkpoint_weights(
    model: torch.nn.Module, *, blocks: Collection[str] | None = None, device: torch.device | str | None = None
) -> dict[str, torch.Tensor]:
    """All weights, or those of ``blocks``, named as ``save_pretrained`` writes and vLLM loads them.

    They are moved to ``device`` one by one, or stay where they are. A collective, like `full_weights`.
    """
    from transformers.core_model_loading import revert_weight_conversion

    whole = {name: weight.to(device or weight.device) for name, weight in full_weights(model, blocks=blocks)}
    named: dict[str, torch.Tensor] = revert_weight_conversion(base_model(model), whole)
    return named


def host_arrays(weights: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies in the host's memory. bfloat16 has no numpy type and is handed over as its bits, uint16."""
    return {name: _host_array(weight) for name, weight in weights.items()}


class Publisher:
    """Remembers what engines were given of the weights, so that they are given only what changed since."""

    def __init__(self) -> None:
        self.digests: dict[str, bytes] = {}
        self.gathered = False

    def gather(
        self, model: torch.nn.Module, *, keep: bool, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """All weights the first time, then those that training may have changed; a collective of all ranks.

        A rank that does not ``keep`` them takes part and holds one at a time; for ``device`` see `checkpoint_weights`.
        """
        blocks = trained_blocks(model) if self.gathered else None
        self.gathered = True
        if keep:
            return checkpoint_weights(model, blocks=blocks, device=device)
        deque(full_weights(model, blocks=blocks), maxlen=0)
        return {}

    def changes(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Weights]:
        """Those of ``arrays`` that lie in a block of which a bit changed since the last call, and what the weights are
        known by: those of all calls, each as it was last."""
        before = self.digests
        known = self.known(arrays)
        blocks = {block_of(name) for name in arrays if self.digests[name] != before.get(name)}
        changed = {name: array for name, array in arrays.items() if block_of(name) in blocks}
        return changed, replace(known, size_bytes=sum(array.nbytes for array in changed.values()))

    def known(self, arrays: Mapping[str, np.ndarray]) -> Weights:
        """What the weights are known by, where all of ``arrays`` are handed out."""
        self.digests = self.digests | _digests(arrays)
        whole = hashlib.sha256(b"".join(self.digests[name] for name in sorted(self.digests)))
        return Weights(size_bytes=sum(array.nbytes for array in arrays.values()), sha256=whole.hexdigest())


def _digests(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Name, type and shape of every array, and the SHA-256 of its bytes, taken on a thread of its own."""

    def hashed(name: str) -> bytes:
        array = np.ascontiguousarray(arrays[name])
        described = f"{name} {array.dtype} {array.shape}\n".encode()
        return described + hashlib.sha256(array.data.cast("B")).digest()

    with ThreadPoolExecutor() as threads:
        return dict(zip(arrays, threads.map(hashed, arrays), strict=True))


def base_model(model: Any) -> Any:
    """The transformers model under a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain_name(name: str) -> str:
    """The name that a parameter has in the model without adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _host_array(weight: torch.Tensor) -> np.ndarray:
    weight = weight.detach().cpu().contiguous()
    return (weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight).numpy()


def _gathered(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    """ZeRO-3 keeps a shard of each parameter on each rank; inside the context they are whole."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)
