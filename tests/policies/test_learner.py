"""The learner on real DeepSpeed engines in Ray actors: ranks, ZeRO stages, LoRA, mini-batches, exact continuation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.contract import Anchors, LearnerSettings
from rl.types import TrainBatch, TrainSample
from tests.learners import with_learner
from tests.samples import a_sample

pytestmark = pytest.mark.slow

IMAGE_TOKENS = [3, 4, 5]
"""Of the built-in tokenizer: a piece of an image, the end of its row, the end of the image."""


@pytest.fixture(scope="module")
def settings(tiny_policy: Path) -> LearnerSettings:
    return LearnerSettings(
        policy_path=str(tiny_policy),
        dtype="float32",
        seed=0,
        trust_remote_code=False,
        gradient_checkpointing=False,
        lora_rank=0,
        lora_alpha=16.0,
        lora_target_modules=("q_proj", "v_proj"),
        with_reference=False,
        entropy_gradient=False,
        temperature=1.0,
        zero_stage=0,
        offload_optimizer=False,
        learning_rate=1e-3,
        warmup_steps=0,
        decay_steps=0,
        weight_decay=0.0,
        adam_betas=(0.9, 0.999),
        max_grad_norm=0.5,
        minibatches=1,
        micro_batch_tokens=400,
        packing=True,
        attention="sdpa",
        on_gpu=False,
    )


@pytest.fixture(scope="module")
def batch(tiny_policy: Path) -> TrainBatch:
    """Five groups of two to four completions about five real cases, with images."""
    from transformers import AutoProcessor

    from rollouts.cytology import load_cytology
    from rollouts.prompts import render_prompt

    processor = AutoProcessor.from_pretrained(tiny_policy)
    rng = np.random.default_rng(0)
    samples = []
    for group, task in enumerate(load_cytology("train")[:5]):
        pictures = [image.decode() for image in task.images]
        prompt = processor(text=[render_prompt(task, processor)], images=pictures, add_special_tokens=False)
        for _ in range(rng.integers(2, 5)):
            completion = rng.integers(20, 300, size=rng.integers(3, 30)).tolist()
            samples.append(
                a_sample(
                    completion,
                    prompt=prompt["input_ids"][0],
                    images=task.images,
                    group=group,
                    advantage=float(rng.normal()),
                )
            )
    return TrainBatch(
        samples=tuple(samples), loss_tokens=sum(int(s.loss_mask.sum()) for s in samples), policy_version=0
    )


@pytest.fixture(scope="module")
def wide_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of whose layers ZeRO 3 gathers weights as they are needed: it keeps those of up to 100,000 elements whole."""
    from policies.vlm import SeedVlmConfig, build_seed_vlm

    sizes = SeedVlmConfig(
        hidden_size=256,
        intermediate_size=512,
        layers=1,
        vision_hidden_size=256,
        vision_intermediate_size=512,
        vision_layers=1,
    )
    return build_seed_vlm(sizes, tmp_path_factory.mktemp("policies") / "wide", seed=0)


def without_images(sample: TrainSample) -> TrainSample:
    """The same completion about the last 20 tokens of its question."""
    start = sample.prompt_length - 20
    kept = {name: getattr(sample, name)[start:] for name in ("token_ids", "loss_mask", "rollout_logprobs")}
    return dataclasses.replace(sample, prompt_length=20, images=(), **kept)


def with_its_image_again(sample: TrainSample) -> TrainSample:
    """The same after a turn of three tokens, after which the image was shown once more."""
    prompt = sample.token_ids[: sample.prompt_length]
    shown = prompt[np.isin(prompt, IMAGE_TOKENS)]
    completion = [20, 21, 22, *shown, *sample.token_ids[sample.prompt_length :]]
    told = (np.arange(len(completion)) >= 3) & (np.arange(len(completion)) < 3 + len(shown))
    return a_sample(
        completion,
        prompt=prompt.tolist(),
        loss_mask=np.concatenate([np.zeros(len(prompt), dtype=bool), ~told]),
        images=sample.images * 2,
        advantage=sample.advantage,
    )


@pytest.mark.parametrize("otherwise", [without_images, with_its_image_again])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_ranks_keep_in_step_when_one_sees_no_image_or_sees_one_twice(
    settings: LearnerSettings,
    batch: TrainBatch,
    wide_policy: Path,
    otherwise: Callable[[TrainSample], TrainSample],
    zero_stage: int,
    ray_session: Any,
) -> None:
    group = [sample for sample in batch.samples if sample.group == 0]
    samples = (*group, *(dataclasses.replace(otherwise(sample), group=1) for sample in group))
    loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    apart = TrainBatch(samples=samples, loss_tokens=loss_tokens, policy_version=0)  # a group for each of two ranks
    wide = dataclasses.replace(settings, policy_path=str(wide_policy))
    sharded = dataclasses.replace(wide, zero_stage=zero_stage)
    assert_same(run(sharded, apart, ranks=2, ray=ray_session), run(wide, apart, ranks=1, ray=ray_session))


@dataclasses.dataclass
class Outcome:
    """What two updates on the same batch gave."""

    first: dict[str, float]
    second: dict[str, float]
    logprobs: list[np.ndarray]
    weights: dict[str, np.ndarray]


def run(settings: LearnerSettings, batch: TrainBatch, *, ranks: int, ray: Any, **loss: Any) -> Outcome:
    """Two updates on ``ranks`` learner actors, which end with it."""

    async def updates(group: Any) -> Outcome:
        first = await group.update(batch)
        second = await group.update(batch)
        reference, described = await group.weights()
        weights = {name: array.copy() for name, array in (await reference).items()}
        assert described.size_bytes == sum(array.nbytes for array in weights.values())
        return Outcome(dict(first.stats), dict(second.stats), list(first.logprobs), weights)

    return with_learner(updates, settings, ranks=ranks, ray=ray, **loss)


@pytest.fixture(scope="module")
def one_rank(settings: LearnerSettings, batch: TrainBatch, ray_session: Any) -> Outcome:
    return run(settings, batch, ranks=1, ray=ray_session)


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    for got, wanted in ((outcome.first, expected.first), (outcome.second, expected.second)):
        assert got.keys() == wanted.keys()
        for name in ("total", "policy", "entropy", "kl_old", "ratio_mean", "grad_norm"):
            assert got[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name
    for got_part, wanted_part in zip(outcome.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(got_part, wanted_part, atol=2e-5)
    assert outcome.weights.keys() == expected.weights.keys()
    for name, weight in outcome.weights.items():
        # Two steps move a weight by up to 2e-3, and Adam divides by the gradient, however near to rounding it is.
        np.testing.assert_allclose(weight, expected.weights[name], atol=5e-5, err_msg=name)


def test_one_rank_makes_the_update_that_plain_torch_makes(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome
) -> None:
    import torch

    from policies.packing import MicroBatchBuilder
    from policies.policy_model import PolicyModel
    from policies.vlm import load_policy

    model, processor = load_policy(settings.policy_path)
    policy = PolicyModel(model, temperature=1.0, entropy_gradient=False)
    builder = MicroBatchBuilder(model.model, processor, kernel=None)
    micro = builder.build(builder.rows(batch.samples))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        logprobs, _ = policy(micro)
        # On-policy the ratio is 1, and the gradient of the clipped surrogate is that of advantage x logprob.
        loss = -(torch.exp(logprobs - logprobs.detach()) * micro.advantages[micro.sample_ids]).sum() / len(logprobs)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
    assert [one_rank.first["grad_norm"], one_rank.second["grad_norm"]] == pytest.approx(norms, rel=1e-4)
    assert norms[0] > 0.5, "the test wants the clipping at work"
    state = model.state_dict()
    for name in ("model.language_model.layers.0.self_attn.q_proj.weight", "lm_head.weight"):
        published = one_rank.weights[_checkpoint_name(one_rank.weights, name)]
        np.testing.assert_allclose(published, state[name].numpy(), atol=2e-5)


def _checkpoint_name(weights: dict[str, np.ndarray], name: str) -> str:
    ending = name.removeprefix("model.language_model.")
    return next(candidate for candidate in weights if candidate.endswith(ending) and "vision" not in candidate)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_make_the_update_of_one(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any, zero_stage: int
) -> None:
    outcome = run(dataclasses.replace(settings, zero_stage=zero_stage), batch, ranks=2, ray=ray_session)
    assert_same(outcome, one_rank)


def test_the_plain_path_with_checkpointed_activations_makes_the_same_update(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any
) -> None:
    plain = dataclasses.replace(settings, packing=False, gradient_checkpointing=True, zero_stage=1)
    assert_same(run(plain, batch, ranks=1, ray=ray_session), one_rank)


def test_bfloat16_stays_near_float32(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any
) -> None:
    outcome = run(dataclasses.replace(settings, dtype="bfloat16", zero_stage=1), batch, ranks=1, ray=ray_session)
    assert outcome.first["grad_norm"] == pytest.approx(one_rank.first["grad_norm"], rel=0.05)
    assert {array.dtype for array in outcome.weights.values()} == {np.dtype(np.uint16)}
    for got, wanted in zip(outcome.logprobs, one_rank.logprobs, strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.15)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_of_many_passes_in_bfloat16_none_is_rounded_away(
    settings: LearnerSettings, ray_session: Any, zero_stage: int
) -> None:
    """Each of the passes adds the same, so that all of them together make the gradient of one."""
    alike = [
        a_sample([20 + place, 21, 22], prompt=range(40, 56), group=group, advantage=advantage)
        for group in range(256)
        for place, advantage in enumerate((1.0, -0.5))
    ]
    one, all_alike = (
        TrainBatch(samples=tuple(part), loss_tokens=3 * len(part), policy_version=0) for part in (alike[:2], alike)
    )
    low = dataclasses.replace(settings, dtype="bfloat16", micro_batch_tokens=22, zero_stage=zero_stage)
    expected, got = (run(low, batch, ranks=1, ray=ray_session).first["grad_norm"] for batch in (one, all_alike))
    assert got == pytest.approx(expected, rel=0.01)


def test_lora_trains_adapters_and_publishes_them_merged_while_the_reference_stays(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any
) -> None:
    lora = dataclasses.replace(settings, lora_rank=4, with_reference=True, learning_rate=1e-2, zero_stage=1)
    outcome = run(lora, batch, ranks=1, ray=ray_session, kl_coef=0.1)
    assert outcome.weights.keys() == one_rank.weights.keys()
    assert outcome.first["kl_ref"] == pytest.approx(0.0, abs=1e-9)  # adapters start at zero
    assert outcome.second["kl_ref"] > 1e-6
    changed = {name for name, array in outcome.weights.items() if not np.array_equal(array, _initial(settings)[name])}
    assert changed and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def _initial(settings: LearnerSettings) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(settings.policy_path) / "model.safetensors")


def test_later_minibatches_are_off_policy_and_measured_against_the_policy_that_wrote(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any
) -> None:
    outcome = run(dataclasses.replace(settings, minibatches=2), batch, ranks=1, ray=ray_session)
    assert outcome.first["kl_old"] > 1e-6  # zero where every token is on-policy
    assert one_rank.first["kl_old"] == 0.0
    for got, wanted in zip(outcome.logprobs, one_rank.logprobs, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)  # logged are those before the first step


@pytest.mark.parametrize("adapters", [0, 4])
def test_what_is_asked_for_of_a_group_before_the_update_changes_no_bit_of_it(
    adapters: int, settings: LearnerSettings, batch: TrainBatch, ray_session: Any
) -> None:
    shape = dataclasses.replace(
        settings, lora_rank=adapters, with_reference=True, minibatches=2, zero_stage=2, learning_rate=1e-2
    )

    async def updates(group: Any, *, early: bool) -> dict[str, np.ndarray]:
        for _ in range(2):
            known = Anchors()
            for number in (3, 0, 4, 2, 1) if early else ():
                found = await group.anchors([sample for sample in batch.samples if sample.group == number])
                known = Anchors(reference=known.reference | found.reference, before=known.before | found.before)
            if early:
                assert len(known.reference) == len(known.before) == len(batch.samples)
            await group.update(batch, known=known)
        reference, _ = await group.weights()
        return {name: array.copy() for name, array in (await reference).items()}

    made = [
        with_learner(functools.partial(updates, early=early), shape, ranks=2, ray=ray_session, kl_coef=0.1)
        for early in (True, False)
    ]
    assert all(np.array_equal(made[0][name], weight) for name, weight in made[1].items())


def test_a_restored_learner_goes_on_bit_for_bit(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any, tmp_path: Path
) -> None:
    async def one_update_and_save(group: Any) -> None:
        await group.update(batch)
        await group.save(tmp_path / "learner")

    async def restore_and_update(group: Any) -> dict[str, np.ndarray]:
        await group.load(tmp_path / "learner")
        await group.update(batch)
        reference, _ = await group.weights()
        return {name: array.copy() for name, array in (await reference).items()}

    with_learner(one_update_and_save, settings, ranks=1, ray=ray_session)
    resumed = with_learner(restore_and_update, settings, ranks=1, ray=ray_session)
    assert all(np.array_equal(resumed[name], weight) for name, weight in one_rank.weights.items())


@pytest.mark.parametrize(
    ("written", "read", "dtype"),
    [
        ((2, "2, offloaded"), (1, "0"), "float32"),
        ((1, "0"), (2, "3, offloaded"), "float32"),
        ((2, "3"), (1, "1, offloaded"), "bfloat16"),
    ],
)
def test_a_checkpoint_goes_on_with_other_ranks_at_another_stage(
    settings: LearnerSettings,
    batch: TrainBatch,
    ray_session: Any,
    tmp_path: Path,
    written: tuple[int, str],
    read: tuple[int, str],
    dtype: str,
) -> None:
    """To the bit when it is read, and up to the rounding of the sums after a further update; wherever the optimizer's
    state lies."""

    async def weights(group: Any) -> dict[str, np.ndarray]:
        reference, _ = await group.weights()
        return {name: array.copy() for name, array in (await reference).items()}

    async def update_save_update(group: Any) -> list[dict[str, np.ndarray]]:
        await group.update(batch)
        await group.save(tmp_path / "learner")
        saved = await weights(group)
        await group.update(batch)
        return [saved, await weights(group)]

    async def load_and_update(group: Any) -> list[dict[str, np.ndarray]]:
        await group.load(tmp_path / "learner")
        loaded = await weights(group)
        await group.update(batch)
        return [loaded, await weights(group)]

    def shaped(placed: str) -> LearnerSettings:
        stage, _, where = placed.partition(", ")
        return dataclasses.replace(settings, zero_stage=int(stage), offload_optimizer=bool(where), dtype=dtype)

    expected = with_learner(update_save_update, shaped(written[1]), ranks=written[0], ray=ray_session)
    got = with_learner(load_and_update, shaped(read[1]), ranks=read[0], ray=ray_session)
    for name, weight in expected[0].items():
        assert np.array_equal(got[0][name], weight), name
    for name, weight in expected[1].items():
        np.testing.assert_allclose(_float32(got[1][name]), _float32(weight), atol=2e-5 if dtype == "float32" else 4e-3)
    moved = [name for name in expected[0] if not np.array_equal(got[0][name], got[1][name])]
    assert len(moved) > len(expected[0]) / 2, "the second update must have changed the weights"


def _float32(array: np.ndarray) -> np.ndarray:
    """bfloat16 comes as its bits."""
    return array if array.dtype != np.uint16 else (array.astype(np.uint32) << 16).view(np.float32)


def test_the_parts_of_a_gradient_add_up_to_the_one_that_was_taken(
    settings: LearnerSettings, batch: TrainBatch, one_rank: Outcome, ray_session: Any
) -> None:
    from rl.loss import LossSettings, policy_loss

    mirrored = dataclasses.replace(
        batch, samples=tuple(dataclasses.replace(sample, advantage=-sample.advantage) for sample in batch.samples)
    )
    loss = functools.partial(policy_loss, settings=LossSettings(correction="none"))

    async def gradients(group: Any) -> Any:
        return await group.gradients(batch, by_sample=True, variants=[(batch, loss), (mirrored, loss)])

    found = with_learner(gradients, settings, ranks=1, ray=ray_session)
    assert found.norm == pytest.approx(one_rank.first["grad_norm"], rel=1e-5)
    assert sum(part.dot for part in found.samples) == pytest.approx(found.norm**2, rel=1e-4)
    same, opposite = (variant.dot / (variant.norm * found.norm) for variant in found.variants)
    assert same == pytest.approx(1.0, abs=1e-6)
    assert opposite == pytest.approx(-1.0, abs=1e-6)  # on-policy no bound is met: the gradient is linear in advantages
