"""The maths, number by number, against TRL's own trainer.

Its loss is called on a bare object. Its advantages and its rollout correction are computed in the middle of a method
that generates, so those lines of its source are run by themselves.
"""

import functools
import inspect
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rewards.combine import length_shaping
from rl.advantage import advantages, per_reward_advantages
from rl.loss import LossSettings, policy_loss

pytestmark = pytest.mark.slow  # importing the trainer takes ten seconds

MAX_TOKENS = 12
SEEDS = range(5)


def padded_batch(seed, *, spread=0.5):
    """Random rows [sample, token] of different lengths, the mask of real tokens, and garbage where it is false."""
    generator = torch.Generator().manual_seed(seed)
    samples, width = 6, MAX_TOKENS - 2
    lengths = torch.randint(1, width + 1, (samples,), generator=generator)
    lengths[0] = width
    mask = torch.arange(width) < lengths.unsqueeze(1)
    mask[0, 4:6] = False  # tokens that a tool wrote, in the middle of a completion
    old = -3 * torch.rand(samples, width, generator=generator) - 0.05

    def near_old():
        return old + spread * torch.randn(samples, width, generator=generator)

    return SimpleNamespace(
        mask=mask,
        logprobs=near_old().requires_grad_(),
        old=old,
        rollout=near_old(),
        ref=near_old(),
        entropy=(3 * torch.rand(samples, width, generator=generator)).requires_grad_(),
        advantages=torch.randn(samples, generator=generator),
    )


def trl_loss(batch, **fields):
    """TRL's ``GRPOTrainer._compute_loss`` with what its constructor would have set, and no model behind it."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokens, samples = int(batch.mask.sum()), len(batch.mask)
    trainer = object.__new__(GRPOTrainer)
    defaults = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "max_completion_length": MAX_TOKENS,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "entropy_coef": 0.0,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "aux_loss_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "model": SimpleNamespace(training=True),
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "accelerator": SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        "_metrics": {"train": _Metrics()},
    }
    for name, value in (defaults | fields).items():
        setattr(trainer, name, value)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (batch.logprobs, batch.entropy, None)
    rows = torch.zeros(samples, 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": rows,
        "prompt_mask": rows,
        "completion_ids": torch.zeros_like(batch.mask, dtype=torch.int64),
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.ref,
        "importance_sampling_ratio": getattr(batch, "trl_correction", None),
        "num_items_in_batch": torch.tensor(tokens),
    }
    return trainer._compute_loss(None, inputs), trainer._metrics["train"]


class _Metrics(dict):
    def __missing__(self, name):
        self[name] = []
        return self[name]


def our_loss(batch, **fields):
    samples = torch.arange(len(batch.mask)).unsqueeze(1).expand_as(batch.mask)
    return policy_loss(
        batch.logprobs[batch.mask],
        batch.old[batch.mask],
        rollout_logprobs=batch.rollout[batch.mask],
        ref_logprobs=batch.ref[batch.mask],
        entropy=batch.entropy[batch.mask],
        advantages=batch.advantages,
        sample_ids=samples[batch.mask],
        global_tokens=int(batch.mask.sum()),
        global_samples=len(batch.mask),
        settings=LossSettings(**({"correction": "none"} | fields)),
    )


def assert_same(ours, theirs, *leaves):
    """The same loss, and the same gradient of it, to 1e-6."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    our_gradients = torch.autograd.grad(ours, leaves)
    their_gradients = torch.autograd.grad(theirs, leaves)
    for our_gradient, their_gradient in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-6, atol=1e-6)


AGGREGATIONS = [
    ("grpo", {"aggregation": "sequence_mean"}),
    ("dapo", {"aggregation": "token_mean"}),
    ("bnpo", {"aggregation": "token_mean"}),
    ("dr_grpo", {"aggregation": "constant", "max_tokens": MAX_TOKENS}),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("loss_type", "fields"), AGGREGATIONS)
def test_clipped_losses_equal_trl(loss_type, fields, level, seed):
    batch = padded_batch(seed)
    theirs, _ = trl_loss(batch, loss_type=loss_type, importance_sampling_level=level)
    assert_same(our_loss(batch, importance=level, **fields).loss, theirs, batch.logprobs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_cispo_equals_trl(level, seed):
    # TRL names the upper bound of the weight itself and has no lower one
    batch = padded_batch(seed)
    theirs, _ = trl_loss(batch, loss_type="cispo", epsilon_high=1.3, importance_sampling_level=level)
    ours = our_loss(batch, objective="cispo", importance=level, clip_low=1.0, clip_high=0.3)
    assert_same(ours.loss, theirs, batch.logprobs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("loss_type", "fields"), AGGREGATIONS)
def test_kl_to_the_reference_equals_trl(loss_type, fields, seed):
    batch = padded_batch(seed)
    theirs, metrics = trl_loss(batch, loss_type=loss_type, beta=0.3)
    ours = our_loss(batch, kl_coef=0.3, **fields)
    assert_same(ours.loss, theirs, batch.logprobs)
    assert ours.sums["kl_ref"].item() / ours.tokens == pytest.approx(metrics["kl"][0], rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("loss_type", "fields"), AGGREGATIONS)
def test_the_entropy_bonus_equals_trl(loss_type, fields, seed):
    batch = padded_batch(seed)
    theirs, metrics = trl_loss(batch, loss_type=loss_type, _entropy_bonus_enabled=True, entropy_coef=0.2)
    ours = our_loss(batch, entropy_coef=0.2, **fields)
    assert_same(ours.loss, theirs, batch.logprobs, batch.entropy)
    assert ours.policy_term.item() == pytest.approx(metrics["policy_loss"][0], abs=1e-6)
    assert ours.sums["entropy"].item() / ours.tokens == pytest.approx(metrics["entropy"][0], rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_dual_clip_equals_trl(seed):
    # TRL caps the ratio itself at delta: the same where delta > 1 + epsilon_high
    batch = padded_batch(seed, spread=0.9)
    options = SimpleNamespace(delta=1.5, use_bias_correction_kl=False, steps_per_generation=1)
    theirs, _ = trl_loss(batch, args=options)
    ours = our_loss(batch, dual_clip=1.5)
    assert ours.sums["dual_clip_fraction"] > 0
    assert_same(ours.loss, theirs, batch.logprobs)


@functools.cache
def trl_lines(first, last):
    """The lines of TRL's generation from the one that holds ``first`` up to the one before ``last``, and its names."""
    from trl.trainer import grpo_trainer

    source = inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions)
    start = source.rindex("\n", 0, source.index(first)) + 1
    end = source.rindex("\n", 0, source.index(last, start))
    return compile(textwrap.dedent(source[start:end]), grpo_trainer.__file__, "exec"), vars(grpo_trainer)


def run_trl_lines(first, last, **names):
    lines, around = trl_lines(first, last)
    names = around | names
    exec(lines, names)
    return names


def trl_rollout_weights(batch, *, mode, level, cap):
    return run_trl_lines(
        " mask = completion_mask if tool_mask is None",
        "# Compute the per-token log probabilities for the reference model",
        self=SimpleNamespace(
            vllm_importance_sampling_mode=f"{level}_{mode}",
            vllm_importance_sampling_clip_min=None,
            vllm_importance_sampling_clip_max=cap,
        ),
        tool_mask=None,
        completion_mask=batch.mask.long(),
        old_per_token_logps=batch.old,
        sampling_per_token_logps=batch.rollout,
    )["vllm_importance_sampling_ratio"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("importance", ["token", "sequence"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_rollout_correction_equals_trl(mode, level, importance, seed):
    batch = padded_batch(seed)
    batch.trl_correction = trl_rollout_weights(batch, mode=mode, level=level, cap=1.4)
    switches = {"use_vllm": True, "vllm_importance_sampling_correction": True}
    theirs, _ = trl_loss(batch, beta=0.1, importance_sampling_level=importance, **switches)
    fields = {"correction": mode, "correction_level": level, "correction_cap": 1.4}
    batch.rollout = batch.rollout.masked_fill(~batch.mask, torch.nan)
    assert_same(our_loss(batch, kl_coef=0.1, importance=importance, **fields).loss, theirs, batch.logprobs)


@pytest.mark.parametrize("seed", SEEDS)
def test_clip_fractions_equal_trl(seed):
    batch = padded_batch(seed)
    _, metrics = trl_loss(batch)
    ours = our_loss(batch)
    low, high = (ours.sums[f"clip_{name}_fraction"].item() / ours.tokens for name in ("low", "high"))
    assert low + high > 0
    assert low == pytest.approx(metrics["clip_ratio/low_mean"][0], abs=1e-6)
    assert high == pytest.approx(metrics["clip_ratio/high_mean"][0], abs=1e-6)


def trl_advantages(rewards, *, weights, aggregation="sum_then_normalize", scale="group"):
    """``rewards`` [group, sample, reward] → advantages [group, sample]."""
    groups, samples, count = rewards.shape
    flat = torch.tensor(rewards.reshape(-1, count))
    return run_trl_lines(
        'if self.multi_objective_aggregation == "sum_then_normalize"',
        "# Unscorable completions (every reward func returned None) carry",
        self=SimpleNamespace(
            multi_objective_aggregation=aggregation,
            scale_rewards=scale,
            reward_weights=torch.tensor(weights),
            reward_funcs=[None] * count,
        ),
        rewards_per_func=flat,
        unscorable_mask=flat.isnan().all(dim=1),
        num_generations=samples,
        device="cpu",
    )["advantages"].view(groups, samples)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("scale", "trl_scale"), [("std", "group"), ("none", "none"), ("batch", "batch")])
def test_advantages_equal_trl(scale, trl_scale, seed):
    rewards = np.random.default_rng(seed).random((4, 8), dtype=np.float32)
    theirs = trl_advantages(rewards[..., None], weights=[1.0], scale=trl_scale)
    np.testing.assert_allclose(advantages(list(rewards), scale=scale), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_per_reward_advantages_equal_trl(seed):
    rewards = np.random.default_rng(seed).random((4, 8, 3), dtype=np.float32)
    rewards[1, 2:4, 0] = np.nan  # a scorer that abstained on two trajectories
    weights = [1.0, 0.5, 0.25]
    theirs = trl_advantages(rewards, weights=weights, aggregation="normalize_then_sum")
    np.testing.assert_allclose(per_reward_advantages(list(rewards), weights), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length_tokens", [0, 79, 80, 81, 99, 100, 101])
def test_length_shaping_equals_trl(length_tokens):
    from trl.rewards import get_soft_overlong_punishment

    (theirs,) = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)([[0] * length_tokens])
    assert length_shaping(length_tokens, penalty=1.0, soft_tokens=80, max_tokens=100) == pytest.approx(theirs)
