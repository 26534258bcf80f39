"""The receiving end, inside a vLLM worker process, of weights that are published by way of the host.

Importing this module registers vLLM's weight-transfer backend ``tensors``, which takes new weights as host tensors,
under the names of the checkpoint, and loads them through vLLM's own layer-wise reload: packed and quantised layers are
rebuilt, layers that nothing came for stay, the engine is not restarted. What the engine has fused (the projections of
one attention, of one MLP) must come together. The engine imports it in each of its processes by naming `WeightReceiver`
as its worker extension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "tensors"


@dataclass
class TensorInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: tensors arrive with the call."""


@dataclass
class TensorUpdateInfo(WeightTransferUpdateInfo):
    """Weights by checkpoint name, on the host."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class TensorTransferEngine(WeightTransferEngine[TensorInitInfo, TensorUpdateInfo]):
    """Loads weights that were handed over as tensors."""

    init_info_cls = TensorInitInfo
    update_info_cls = TensorUpdateInfo

    def init_transfer_engine(self, init_info: TensorInitInfo) -> None:
        """Nothing to set up."""

    def shutdown(self) -> None:
        """Nothing to release."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: TensorUpdateInfo) -> None:
        self.model.load_weights(update_info.tensors.items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type != "cpu":
            return
        # On the CPU a linear layer computes with a packed copy of its weight. A head that is tied to the embedding has
        # no weight of its own to load, so the reload leaves its packed copy at the old version.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, TensorTransferEngine)


class WeightReceiver:
    """Worker extension; its only purpose is that every vLLM worker process imports this module."""
