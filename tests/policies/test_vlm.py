from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from policies.tokenizer import TRACE_TAGS, train_tokenizer
from policies.vlm import (
    PRESETS,
    SeedVlmConfig,
    _switch_off_dropout,
    build_seed_vlm,
    check_policy,
    load_policy,
    vllm_architectures,
)
from rl.errors import PolicyError
from rl.types import EncodedImage, SamplingParams, Trajectory
from rollouts.cytology import load_cytology, reference_trace
from rollouts.engine import EngineSettings, GenerationRequest, VllmEngine
from rollouts.prompts import render_prompt


@functools.cache
def tokenizer() -> Any:
    return train_tokenizer(1024)


def tokens(text: str) -> list[str]:
    return [tokenizer().decode([token]) for token in tokenizer()(text, add_special_tokens=False).input_ids]


def test_the_parts_are_those_of_a_seed_style_vlm(tiny_policy: Path) -> None:
    from transformers import AutoModelForImageTextToText

    config = AutoModelForImageTextToText.from_pretrained(tiny_policy).config
    assert config.vision_config.model_type == "pixtral"  # native resolution, 2D rotary positions
    assert config.spatial_merge_size == 2
    assert config.text_config.model_type == "seed_oss"


def test_the_same_seed_builds_the_same_weights_and_another_seed_others(tiny_policy: Path, tmp_path: Path) -> None:
    weights = (tiny_policy / "model.safetensors").read_bytes()
    assert (build_seed_vlm("tiny", tmp_path / "again", seed=0) / "model.safetensors").read_bytes() == weights
    assert (build_seed_vlm("tiny", tmp_path / "other", seed=1) / "model.safetensors").read_bytes() != weights


def test_every_weight_is_reached_by_the_gradient(tiny_policy: Path) -> None:
    model, processor = load_policy(str(tiny_policy))
    model(**inputs(processor, reference_trace(load_cytology("eval")[0], conclusion="benign"))).logits.sum().backward()
    unreached = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert unreached == []


def inputs(processor: Any, completion: str) -> Any:
    task = load_cytology("eval")[0]
    text = render_prompt(task, processor) + completion
    return processor(
        text=[text],
        images=[[image.decode() for image in task.images]],
        add_special_tokens=False,
        return_tensors="pt",
    )


def test_the_patch_merger_starts_as_the_mean_of_two_by_two_patches(tiny_policy: Path) -> None:
    """Against an average over a grid of 4 × 6 patches that is laid out by hand: rows of patches, row by row."""
    model, _ = load_policy(str(tiny_policy))
    hidden = model.config.vision_config.hidden_size
    patches = torch.randn(4, 6, hidden)
    expected = patches.reshape(2, 2, 3, 2, hidden).mean(dim=(1, 3)).reshape(6, hidden)
    merger = model.model.multi_modal_projector.patch_merger
    merged = merger(patches.reshape(24, hidden), torch.tensor([[4 * 14, 6 * 14]]))
    torch.testing.assert_close(merged, expected, atol=1e-6, rtol=0)


def test_a_thumbnail_alone_in_a_batch_is_seen(tiny_policy: Path) -> None:
    """28 × 28 pixels, one token of the model, are enlarged to two rows of two tokens."""
    content = io.BytesIO()
    Image.new("RGB", (28, 28), "purple").save(content, format="PNG")
    picture = EncodedImage(content=content.getvalue(), width=28, height=28).decode()
    assert picture.size == (56, 56)
    model, processor = load_policy(str(tiny_policy))
    batch = processor(text=["[IMG]?"], images=[[picture]], add_special_tokens=False, return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()


@pytest.mark.parametrize(
    ("width", "height", "image_tokens"),
    [(112, 112, 4 * 5), (140, 84, 3 * 6), (28, 280, 10 * 2), (896, 448, 8 * 17)],
    ids=["square", "wide", "tall", "scaled-to-448"],
)
def test_images_keep_their_resolution_up_to_the_limit(
    tiny_policy: Path, width: int, height: int, image_tokens: int
) -> None:
    """One token per 28 × 28 pixels and one more at the end of each row."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_policy)
    batch = processor(text=["[IMG]"], images=[[Image.new("RGB", (width, height))]], add_special_tokens=False)
    assert len(batch["input_ids"][0]) == image_tokens


def test_dropout_is_off_whatever_the_checkpoint_says(tiny_policy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_policy, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"attention_dropout": 0.1, "residual_dropout": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    model, processor = load_policy(str(folder))
    model.train()
    batch = inputs(processor, "")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.slow
def test_dropout_is_found_by_whatever_name_a_config_has_for_it() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("blip-2")  # its Q-Former alone drops out a tenth of what passes
    config.vision_config.drop_path_rate = 0.1
    _switch_off_dropout(config)
    assert config.qformer_config.hidden_dropout_prob == config.qformer_config.attention_probs_dropout_prob == 0.0
    assert config.vision_config.drop_path_rate == 0.0


def test_a_policy_is_loaded_in_the_precision_asked_for(tiny_policy: Path) -> None:
    model, _ = load_policy(str(tiny_policy), dtype="bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_folder_that_transformers_cannot_load_says_which(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot load the policy .*nothing"):
        load_policy(str(tmp_path / "nothing"))


def test_an_unknown_preset_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy\.preset must be one of tiny, smollm2; got 'huge'"):
        build_seed_vlm("huge", tmp_path, seed=0)


@pytest.mark.parametrize("heads", [3, 8])
def test_head_sizes_that_vllm_does_not_take_are_refused(tmp_path: Path, heads: int) -> None:
    """128 / 3 is no whole number; 128 / 8 = 16 is too small."""
    config = dataclasses.replace(PRESETS["tiny"], hidden_size=128, heads=heads, kv_heads=heads)
    with pytest.raises(PolicyError, match=rf"hidden_size / heads must be one of .* got 128 / {heads}"):
        build_seed_vlm(config, tmp_path, seed=0)


def test_numbers_are_written_digit_by_digit() -> None:
    assert tokens("- worst radius 25.4 um high") == ["-", " worst", " radius", " 2", "5", ".", "4", " um", " high"]


def test_the_tags_of_a_trace_are_tokens_that_decoding_keeps() -> None:
    for tag in TRACE_TAGS:
        (token,) = tokenizer()(tag, add_special_tokens=False).input_ids
        assert tokenizer().decode([token], skip_special_tokens=True) == tag


def test_a_trace_is_short() -> None:
    for task in load_cytology("eval"):
        assert len(tokens(reference_trace(task, conclusion="malignant"))) <= 60


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_can_be_written(text: str) -> None:
    assert tokenizer().decode(tokenizer()(text, add_special_tokens=False).input_ids) == text


def test_a_corpus_adds_its_words() -> None:
    assert len(tokens(" granulomatosis")) > 1
    tokenizer = train_tokenizer(1024, corpus=["granulomatosis with granulomatosis"] * 50)
    assert len(tokenizer(" granulomatosis", add_special_tokens=False).input_ids) == 1


def test_a_built_policy_passes_the_check(tiny_policy: Path) -> None:
    check_policy(str(tiny_policy))


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("config.json"), r"no policy at .*: neither a folder with a config.json nor a hub id"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"must hold a JSON object; got list"),
        (without("tokenizer.json"), r"has no tokenizer: none of tokenizer.json"),
        (without("processor_config.json"), r"has no image processor: neither of processor_config.json"),
        (
            with_config(architectures=["Mistral4ForConditionalGeneration"]),
            r"vLLM does not know the architecture .*nearest that it knows: .*Mistral3ForConditionalGeneration",
        ),
        (with_config(architectures=None), r"vLLM does not know the architecture \[\]"),
        (
            with_config(model_type="home_made", auto_map={"AutoConfig": "home_made.Config"}),
            r"brings code of its own .* policy.trust_remote_code=true",
        ),
    ],
    ids=["no-config", "bad-json", "no-object", "no-tokenizer", "no-processor", "unknown", "none-named", "own-code"],
)
def test_a_policy_that_cannot_be_loaded_is_refused_before_loading(
    tiny_policy: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(tiny_policy, tmp_path / "policy")
    spoil(folder)
    with pytest.raises(PolicyError, match=message):
        check_policy(str(folder))


def test_code_of_its_own_is_accepted_from_an_author_whom_the_user_trusts(tiny_policy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_policy, tmp_path / "policy")
    with_config(model_type="home_made", auto_map={"AutoConfig": "home_made.Config"})(folder)
    check_policy(str(folder), trust_remote_code=True)


@pytest.mark.slow
def test_the_architectures_are_those_of_vllm_s_registry() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert vllm_architectures() == set(ModelRegistry.get_supported_archs())


def engine_trajectories(path: str) -> list[Trajectory]:
    """Four samples of each of three cases, drawn by vLLM from the policy as it was saved."""
    engine = VllmEngine(
        EngineSettings(
            policy_path=path,
            dtype="float32",
            seed=0,
            temperature=1.0,
            max_model_len=512,
            max_num_seqs=16,
            kv_cache_mb=64,
            gpu_memory_utilization=0.5,
            max_images=1,
            enforce_eager=True,
            tensor_parallel=1,
            trust_remote_code=False,
            on_gpu=False,
        )
    )
    sampling = SamplingParams(max_tokens=24)
    requests = [
        GenerationRequest(id=task.id, task=task, num_samples=4, seed=1, sampling=sampling)
        for task in load_cytology("eval")[:3]
    ]
    keys = [engine.add(request) for request in requests]
    while set(keys) - set(engine.answers):
        engine.step()
    return [trajectory for key in keys for trajectory in engine.answers[key]]


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 4], ids=["grouped-query", "multi-head"])
def test_vllm_and_transformers_compute_the_same_function(kv_heads: int, tmp_path: Path, ray_session: Any) -> None:
    """The biases of q, k and v start at zero, which would hide their loss: here every weight is random and large."""
    config = SeedVlmConfig(hidden_size=128, intermediate_size=256, layers=2, heads=4, kv_heads=kv_heads)
    path = build_seed_vlm(config, tmp_path / "policy", seed=0)
    model, processor = load_policy(str(path))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(path)

    remote = ray_session.remote(max_calls=1)(engine_trajectories)
    for trajectory in ray_session.get(remote.remote(str(path)), timeout=300):
        images = processor.image_processor([image.decode() for image in trajectory.task.images], return_tensors="pt")
        token_ids = np.concatenate([trajectory.prompt_token_ids, trajectory.completion_token_ids])
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(token_ids).long()[None], **images).logits[0]
        written = torch.from_numpy(trajectory.completion_token_ids.astype(np.int64))[:, None]
        logprobs = logits[len(trajectory.prompt_token_ids) - 1 : -1].log_softmax(-1).gather(1, written)[:, 0]
        assert logprobs.std() > 0.5  # far from uniform, so that a difference would show
        np.testing.assert_allclose(trajectory.rollout_logprobs, logprobs.numpy(), atol=2e-4)
