"""The DeepSpeed engine around the policy: AdamW, ZeRO, clipping, precision."""

from __future__ import annotations

from typing import Any

import torch

from policies.contract import LearnerSettings
from policies.policy_model import PolicyModel


def deepspeed_engine(policy: PolicyModel, settings: LearnerSettings) -> Any:
    """An engine that trains what of ``policy`` takes a gradient; weights alone decay, neither biases nor norms."""
    import deepspeed

    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.adam_betas,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=optimizer, model_parameters=trained, config=_config(settings)
    )
    return engine


def _config(settings: LearnerSettings) -> dict[str, Any]:
    """The engine's config. Accumulation borders are set by hand, since the number of passes varies by step."""
    in_bfloat16 = settings.dtype == "bfloat16"
    # Where gradients are summed in bfloat16, what the later ones of many passes add is rounded away: of 512 equal parts
    # three quarters arrive. Below stage 2 DeepSpeed sums in no other type.
    zero: dict[str, Any] = {"stage": max(settings.zero_stage, 2 if in_bfloat16 else 0)}
    if settings.offload_optimizer and settings.zero_stage:  # a replay may hold all of it in one place
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": in_bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
    }
