"""Packing: the tensors of a pass, and equality with the plain path on real models, however a batch is cut."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from policies.packing import MicroBatch, MicroBatchBuilder
from rl.types import EncodedImage, TrainSample
from tests.samples import a_sample

SIZES = ("image_sizes", "image_grid_thw")
VOCABULARY = 200
"""Ids from 20 up to here are text to both tiny policies."""


class _Model:
    """What the builder asks of a model with ordinary positions."""

    class config:
        image_token_id = 9

    def forward(self, input_ids: Any) -> None: ...


BUILDER = MicroBatchBuilder(_Model(), None, kernel="sdpa")
GROUP = [a_sample([4, 5], advantage=1.0), a_sample([6, 7, 8], advantage=-1.0)]


def build(samples: Sequence[TrainSample]) -> MicroBatch:
    return BUILDER.build(BUILDER.rows(samples))


def test_a_packed_row_holds_the_prompt_once_and_restarts_positions_at_each_completion() -> None:
    micro = build(GROUP)
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert micro.model_inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert micro.targets.tolist() == [4, 5, 6, 7, 8]
    assert micro.predictors.tolist() == [2, 3, 2, 5, 6]  # the prompt's last token predicts both first tokens
    assert micro.sample_ids.tolist() == [0, 0, 1, 1, 1]
    assert micro.advantages.tolist() == [1.0, -1.0]


def test_groups_stand_one_after_the_other_without_padding() -> None:
    micro = build([*GROUP, a_sample([4], group=1, prompt=[2])])
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 2, 4]]
    assert micro.model_inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1]]
    assert micro.predictors.tolist() == [2, 3, 2, 5, 6, 8]


def test_what_completions_begin_with_in_common_stands_once_and_is_trained_for_each() -> None:
    micro = build([a_sample([4, 5]), a_sample([4, 6])])
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert micro.targets.tolist() == [4, 5, 4, 6]
    assert micro.predictors.tolist() == [2, 3, 2, 3]
    assert micro.sample_ids.tolist() == [0, 0, 1, 1]


def test_tokens_off_the_loss_mask_are_neither_predicted_nor_lost_from_the_context() -> None:
    mask = np.array([False, False, False, True, False, True])
    micro = build([a_sample([4, 5, 6], loss_mask=mask)])
    assert micro.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert micro.targets.tolist() == [4, 6]
    assert micro.predictors.tolist() == [2, 4]


def _single_turn(rng: np.random.Generator, processor: Any) -> list[TrainSample]:
    """Two to four completions of 1 to 12 tokens for each prompt: with one image, another shape, two, and none."""
    questions = [[_picture(112, 112)], [_picture(256, 61)], [_picture(90, 251), _picture(30, 41)], []]
    return [
        a_sample(
            _text(rng, 1, 13),
            prompt=_prompt_ids(processor, images),
            images=tuple(images),
            group=number,
            advantage=float(rng.normal()),
        )
        for number, images in enumerate(questions)
        for _ in range(rng.integers(2, 5))
    ]


def _multi_turn(rng: np.random.Generator, processor: Any) -> list[TrainSample]:
    """Completions that get images from a tool: after the same words or others, the same image, another, or none."""
    scan = _picture(112, 112)
    prompt, words = _prompt_ids(processor, [scan]), _text(rng, 3, 6)
    crops = [_picture(56, 56), _picture(56, 56, seed=1), _picture(120, 61)]
    turns = [
        [(words, [crops[0]])],
        [(words, [crops[0]]), (_text(rng, 1, 5), [crops[2]])],
        [(words, [crops[1]])],
        [(_text(rng, 2, 5), [crops[2], crops[0]])],
        [(words, [])],
    ]
    samples = [_conversation(rng, processor, prompt, scan, turns=turns[number], group=0) for number in range(5)]
    # In the second group all share the first crop too, so that the shared part reaches beyond an image.
    return samples + [_conversation(rng, processor, prompt, scan, turns=turns[0], group=1) for _ in range(3)]


def _conversation(
    rng: np.random.Generator, processor: Any, prompt: list[int], scan: EncodedImage, *, turns: Any, group: int
) -> TrainSample:
    completion: list[int] = []
    trained: list[bool] = [False] * len(prompt)
    for words, shown in turns:
        answer = _prompt_ids(processor, shown)
        completion += [*words, *answer]
        trained += [True] * len(words) + [False] * len(answer)
    last = _text(rng, 1, 8)
    return a_sample(
        completion + last,
        prompt=prompt,
        group=group,
        advantage=float(rng.normal()),
        loss_mask=np.array(trained + [True] * len(last)),
        images=(scan, *(image for _, shown in turns for image in shown)),
    )


def _text(rng: np.random.Generator, low: int, high: int) -> list[int]:
    ids: list[int] = rng.integers(20, VOCABULARY, size=rng.integers(low, high)).tolist()
    return ids


def _picture(width: int, height: int, *, seed: int = 0) -> EncodedImage:
    from rollouts.images import encode

    pixels = np.random.default_rng([width, seed]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels))


def _prompt_ids(processor: Any, images: Sequence[EncodedImage]) -> list[int]:
    """Ids with every image token expanded, as the engine returns them."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "Is the mass malignant?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    pictures = [image.decode() for image in images]
    ids: list[int] = processor(text=[text], images=pictures or None, add_special_tokens=False)["input_ids"][0]
    return list(ids)


@functools.cache
def _policy(path: Path) -> Any:
    from policies.vlm import load_policy

    return load_policy(str(path))


@pytest.fixture(params=["tiny_policy", "tiny_qwen", "tiny_qwen3"])
def policy(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A Seed-style VLM, and two with three-dimensional positions: the model and its processor."""
    model, processor = _policy(request.getfixturevalue(request.param))
    yield model, processor
    model.gradient_checkpointing_disable()


Loss = Callable[[torch.Tensor, torch.Tensor, MicroBatch, Sequence[TrainSample]], torch.Tensor]


def _weighted(logprobs: torch.Tensor, entropy: torch.Tensor, micro: MicroBatch, samples: Any) -> torch.Tensor:
    """A loss that weighs every token of a sample differently."""
    weight = torch.cat([torch.linspace(-1, 1, int((micro.sample_ids == i).sum())) for i in range(len(micro.indices))])
    return (logprobs * (weight + micro.advantages[micro.sample_ids])).sum()


def _update(
    policy: Any,
    samples: Sequence[TrainSample],
    *,
    packing: bool,
    loss: Loss = _weighted,
    ranks: int = 1,
    budget_tokens: int = 10**6,
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Logprobs by place and the gradient summed over all passes of all ranks, which take their turns."""
    from policies.attention import use_packed_attention
    from policies.policy_model import PolicyModel

    model, processor = policy
    model.config.get_text_config()._attn_implementation = "sdpa"
    if packing:
        use_packed_attention(model)
    model.zero_grad()
    builder = MicroBatchBuilder(model.model, processor, kernel="sdpa" if packing else None)
    rows = builder.rows(samples)
    by_place = {}
    for passes in builder.plan(rows, ranks=ranks, budget_tokens=budget_tokens):
        for chosen in filter(None, passes):
            micro = builder.build([rows[index] for index in chosen])
            logprobs, entropy = PolicyModel(model, temperature=1.0, entropy_gradient=True)(micro)
            loss(logprobs, entropy, micro, samples).backward()
            by_place |= {place: logprobs[micro.sample_ids == i].detach() for i, place in enumerate(micro.indices)}
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return by_place, gradient


def _assert_same(got: Any, wanted: Any) -> None:
    assert got[0].keys() == wanted[0].keys()
    for place, logprobs in wanted[0].items():
        torch.testing.assert_close(got[0][place], logprobs, atol=1e-5, rtol=0)
    difference = (got[1] - wanted[1]).norm() / wanted[1].norm()
    assert math.isfinite(difference) and difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("trajectories", [_single_turn, _multi_turn])
def test_packed_logprobs_and_gradients_equal_the_plain_ones(policy: Any, trajectories: Any) -> None:
    for seed in range(3):
        samples = trajectories(np.random.default_rng(seed), policy[1])
        plain = _update(policy, samples, packing=False)
        packed = _update(policy, samples, packing=True)
        assert set(packed[0]) == set(range(len(samples)))
        _assert_same(packed, plain)


@pytest.mark.slow
def test_an_image_runs_through_the_vision_tower_once_wherever_it_stands(policy: Any) -> None:
    model, processor = policy
    samples = _multi_turn(np.random.default_rng(0), processor)
    packed = MicroBatchBuilder(model.model, processor, kernel="sdpa")
    micro = packed.build(packed.rows(samples))
    # In order: the scan, which the first group shares; crops 0, 0 and 2, 1, 2 and 0, none; then the scan and crop 0,
    # which all of the second group share.
    assert micro.image_places == (0, 1, 1, 2, 3, 2, 1, 0, 1)
    assert [len(sizes) for name, sizes in micro.vision_inputs.items() if name in ("image_sizes", "image_grid_thw")] == [
        4
    ]
    plain = MicroBatchBuilder(model.model, processor, kernel=None)
    one_by_one = plain.build(plain.rows(samples))
    assert one_by_one.image_places is None  # the model puts each where its tokens are
    every = sum(len(sample.images) for sample in samples)
    assert [len(sizes) for name, sizes in one_by_one.vision_inputs.items() if name in SIZES] == [every]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_a_row_that_is_run_for_company_changes_nothing_but_that_it_runs(policy: Any, packing: bool) -> None:
    from policies.attention import use_packed_attention
    from policies.policy_model import PolicyModel
    from policies.rows import untrained_row

    model, processor = policy
    model.config.get_text_config()._attn_implementation = "sdpa"
    if packing:
        use_packed_attention(model)
    rng = np.random.default_rng(0)
    builder = MicroBatchBuilder(model.model, processor, kernel="sdpa" if packing else None)
    trained = builder.rows([a_sample(_text(rng, 4, 9), prompt=_prompt_ids(processor, []), group=0)])
    others = builder.rows(_single_turn(rng, processor))
    found = []
    for rows in (trained, [*trained, untrained_row(others)]):
        model.zero_grad()
        micro = builder.build(rows)
        assert (len(micro.advantages), micro.indices) == (1, (0,))
        logprobs, entropy = PolicyModel(model, temperature=1.0, entropy_gradient=True)(micro)
        (logprobs.sum() + entropy.sum()).backward()
        found.append((logprobs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (alone, without), (beside, gradients) = found
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)
    vision = gradients.keys() - without.keys()
    assert {name for name, _ in model.named_parameters() if "visual" in name or "vision" in name} <= vision
    assert not any(gradients[name].any() for name in vision)  # zeros, for the sums over ranks
    for name, gradient in without.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_checkpointed_activations_change_nothing(policy: Any) -> None:
    samples = _multi_turn(np.random.default_rng(0), policy[1])
    kept = _update(policy, samples, packing=True)
    policy[0].train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy[0].enable_input_require_grads()
    _assert_same(_update(policy, samples, packing=True), kept)


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_an_update_is_the_same_on_one_two_and_four_ranks_and_in_small_passes(policy: Any, aggregation: Any) -> None:
    from rl.loss import LossSettings, policy_loss

    def loss(logprobs: Any, entropy: Any, micro: MicroBatch, samples: Sequence[TrainSample]) -> torch.Tensor:
        return policy_loss(
            logprobs,
            logprobs.detach(),
            rollout_logprobs=micro.rollout_logprobs,
            advantages=micro.advantages,
            sample_ids=micro.sample_ids,
            global_tokens=sum(int(sample.loss_mask.sum()) for sample in samples),
            global_samples=len(samples),
            ref_logprobs=None,
            entropy=entropy,
            settings=LossSettings(aggregation=aggregation, entropy_coef=0.01),
        ).loss

    samples = _single_turn(np.random.default_rng(0), policy[1])
    whole = _update(policy, samples, packing=True, loss=loss)
    for ranks, budget_tokens in [(1, 60), (2, 10**6), (4, 60)]:
        _assert_same(_update(policy, samples, packing=True, loss=loss, ranks=ranks, budget_tokens=budget_tokens), whole)
    _assert_same(_update(policy, samples, packing=False, loss=loss, ranks=2, budget_tokens=200), whole)


@pytest.mark.slow
def test_the_tokens_of_an_image_see_one_another_where_the_model_has_them_do_so() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from policies.policy_model import PolicyModel

    image = 19
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 64, "head_dim": 16, "num_key_value_heads": 1, "initializer_range": 0.5}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, image_token_index=image, mm_tokens_per_image=4)
    )
    builder = MicroBatchBuilder(model.model, None, kernel=None)
    # The image's own embeddings stand for what the vision tower would make of it: the mask is all that is looked at.
    sample = a_sample([20, 21, 22], prompt=[1, image, image, image, image, 2])
    logprobs, _ = PolicyModel(model, temperature=1.0, entropy_gradient=False)(builder.build(builder.rows([sample])))
    ids = torch.from_numpy(sample.token_ids)[None].long()
    logits = model(input_ids=ids, token_type_ids=(ids == image).long()).logits[0]
    expected = logits.log_softmax(-1)[[5, 6, 7], [20, 21, 22]]
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(model(input_ids=ids).logits[0], logits, atol=0.1), "the marks must make a difference"
