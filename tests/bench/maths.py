"""Advantages and policy loss, as pure functions: against TRL's and verl's own code on 8,192 completions of 512 tokens.

The loss is timed with its backward pass and the metrics that each framework computes beside it. Completions are of 128
to 512 tokens; TRL and verl take them padded, medrl flat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rl.advantage import advantages
from rl.loss import LossSettings, policy_loss
from tests.bench.harness import Figure, Part, faster, interleaved, seconds_table, timed
from tests.bench.setting import CORES
from tests.bench.verl_package import FOLDER, install_verl
from tests.rl.test_loss_against_trl import trl_advantages, trl_loss

SAMPLES, TOKENS, GROUP_SIZE = 8192, 512, 8
AIM = 1.0

Contestants = dict[str, Callable[[], float]]


def measure(*, turns: int, quick: bool) -> Part:
    torch.set_num_threads(CORES)
    samples = SAMPLES // 16 if quick else SAMPLES
    batch = padded_batch(samples)
    rewards = np.random.default_rng(0).random((samples // GROUP_SIZE, GROUP_SIZE), dtype=np.float32)
    missing = install_verl()
    verl = None if missing else _verl()
    rounds = {
        "Policy loss, forward and backward": interleaved(losses(batch, verl), turns=turns),
        "Advantages, divided by the group's deviation": interleaved(estimates(rewards, verl), turns=turns),
    }
    return Part(
        config={"samples": samples, "tokens": TOKENS, "group_size": GROUP_SIZE, "threads": CORES, "dtype": "float32"},
        figures=[
            Figure(what=f"{what}: times as fast as {peer}", value=faster(seconds, ours="medrl", than=peer), aim=AIM)
            for what, seconds in rounds.items()
            for peer in list(seconds)[1:]
        ],
        tables=[seconds_table(what, seconds) for what, seconds in rounds.items()],
        notes=[missing] if missing else [],
    )


def padded_batch(samples: int) -> SimpleNamespace:
    """Logprobs [sample, token] as TRL wants them, and the mask of real tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(TOKENS // 4, TOKENS + 1, (samples,), generator=generator)
    old = -3 * torch.rand(samples, TOKENS, generator=generator)
    near = old + 0.1 * torch.randn(samples, TOKENS, generator=generator)
    return SimpleNamespace(
        mask=torch.arange(TOKENS) < lengths.unsqueeze(1),
        logprobs=near.requires_grad_(),
        old=old,
        rollout=old,
        ref=old,
        entropy=torch.zeros(samples, TOKENS),
        advantages=torch.randn(samples, generator=generator),
    )


def losses(batch: SimpleNamespace, verl: Any) -> Contestants:
    """The clipped surrogate, mean over all tokens, without correction."""
    mask, samples = batch.mask, len(batch.mask)
    logprobs = batch.logprobs.detach()[mask].requires_grad_()
    old, entropy = batch.old[mask], batch.entropy[mask]
    sample_ids = torch.arange(samples).unsqueeze(1).expand_as(mask)[mask]
    settings = LossSettings(correction="none")

    def ours() -> None:
        result = policy_loss(
            logprobs,
            old,
            rollout_logprobs=old,
            advantages=batch.advantages,
            sample_ids=sample_ids,
            global_tokens=len(logprobs),
            global_samples=samples,
            settings=settings,
            entropy=entropy,
        )
        result.loss.backward()

    found = {"medrl": timed(ours), "TRL": timed(lambda: trl_loss(batch)[0].backward())}
    if verl:
        fields = {"rollout_n": GROUP_SIZE, "ppo_micro_batch_size_per_gpu": 1, "clip_ratio_high": 0.28}
        config = verl.ActorConfig(strategy="fsdp", **fields)
        by_token = batch.advantages.unsqueeze(1).expand_as(mask)

        def theirs() -> None:
            loss, _ = verl.compute_policy_loss_vanilla(
                batch.old, batch.logprobs, by_token, mask.float(), "token-mean", config
            )
            loss.backward()

        found["verl"] = timed(theirs)
    return found


def estimates(rewards: np.ndarray, verl: Any) -> Contestants:
    """Rewards [group, sample] to advantages."""
    groups = list(rewards)
    found = {
        "medrl": timed(lambda: advantages(groups, scale="std")),
        "TRL": timed(lambda: trl_advantages(rewards[..., None], weights=[1.0])),
    }
    if verl:
        # One token a completion: verl's spreads over all of them, which is not what is compared here.
        column = torch.from_numpy(rewards.reshape(-1, 1))
        index, ones = np.repeat(np.arange(len(rewards)), GROUP_SIZE), torch.ones_like(column)
        found["verl"] = timed(lambda: verl.compute_grpo_outcome_advantage(column.clone(), ones, index))
        found["verl, vectorised"] = timed(
            lambda: verl.compute_grpo_vectorized_outcome_advantage(column.clone(), ones, index)
        )
    return found


def _verl() -> Any:
    sys.path.append(str(FOLDER))  # behind all that is installed
    from verl.trainer.ppo import core_algos

    return core_algos
