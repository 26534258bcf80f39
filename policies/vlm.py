"""The Seed-style VLM: native-resolution ViT with 2D rotary positions, 2×2 merge, MLP adapter, Seed-OSS decoder.

It is assembled from transformers' own classes (Pixtral's vision tower, Mistral 3's merger and adapter, Seed-OSS), so a
saved policy is a plain ``save_pretrained`` folder that transformers and vLLM load as it stands. The layout follows
Seed1.5-VL (arXiv:2505.07062).
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.tokenizer import IMAGE, train_tokenizer
from rl.errors import PolicyError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin, SeedOssConfig

# vLLM has no Seed-OSS decoder of its own. Its Qwen2 computes the same function (biases on q, k and v alone, RMS norms,
# SwiGLU) wherever hidden_size is heads × head_dim, and it reads this entry of the text config; transformers does not.
_VLLM_DECODER = "Qwen2ForCausalLM"
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""What vLLM's attention takes on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedVlmConfig:
    """The sizes of a Seed-style VLM that is built from nothing.

    ``hidden_size / heads`` must be one of `HEAD_DIMS`.
    """

    vocab_size: int = 1024
    """Most tokens that the tokenizer may have; at least 512."""
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    """Standard deviation of the decoder's first weights; narrow decoders learn to copy much sooner from 0.05."""
    vision_hidden_size: int = 128
    vision_intermediate_size: int = 256
    vision_layers: int = 2
    vision_heads: int = 2
    patch_px: int = 14
    merge: int = 2
    """Patches on a side that one token stands for; images cost ``(patch_px · merge)²`` pixels a token."""
    max_image_px: int = 448
    """Larger images are scaled down to this longest side, smaller ones keep their resolution."""


PRESETS: Mapping[str, SeedVlmConfig] = {
    "tiny": SeedVlmConfig(
        hidden_size=128,
        intermediate_size=384,
        layers=3,
        heads=4,
        kv_heads=4,
        initializer_range=0.05,
        vision_hidden_size=64,
        vision_intermediate_size=128,
    )
}


def build_seed_vlm(preset: str | SeedVlmConfig, out: Path, *, seed: int, corpus: Iterable[str] = ()) -> Path:
    """Build a policy with random weights and save it to ``out``: weights, config, tokenizer, processor, chat template.

    ``preset`` is ``tiny``, ``smollm2`` (whose decoder is pretrained, see policies/smollm.py) or a config of one's own;
    ``corpus`` adds texts to those that the tokenizer is trained on. Same seed, same bytes. Raises PolicyError for an
    unknown preset or sizes that vLLM cannot run.
    """
    if preset == "smollm2":
        from policies.smollm import build_smollm2_vlm

        return build_smollm2_vlm(out, seed=seed)
    from transformers import SeedOssConfig

    config = _preset(preset) if isinstance(preset, str) else preset
    head_dim = _head_dim(config)
    tokenizer = train_tokenizer(config.vocab_size, corpus=corpus)
    text = SeedOssConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=head_dim,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.initializer_range,
    )
    model = assemble(text, config, tokenizer, seed=seed)
    return save_policy(model, make_processor(config, tokenizer), out)


def _preset(name: str) -> SeedVlmConfig:
    if name not in PRESETS:
        raise PolicyError(f"policy.preset must be one of {', '.join([*PRESETS, 'smollm2'])}; got {name!r}")
    return PRESETS[name]


def _head_dim(config: SeedVlmConfig) -> int:
    head_dim, rest = divmod(config.hidden_size, config.heads)
    if rest or head_dim not in HEAD_DIMS:
        raise PolicyError(
            f"hidden_size / heads must be one of {HEAD_DIMS}, the head sizes that vLLM takes; "
            f"got {config.hidden_size} / {config.heads}"
        )
    return head_dim


def assemble(
    text: SeedOssConfig, config: SeedVlmConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> PreTrainedModel:
    """Vision tower and adapter of ``config`` in front of a decoder ``text``; float32 weights, drawn with ``seed``."""
    import torch
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    text.attention_dropout = text.residual_dropout = 0.0
    text.architectures = [_VLLM_DECODER]
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text.update(special)
    vision = PixtralVisionConfig(
        hidden_size=config.vision_hidden_size,
        intermediate_size=config.vision_intermediate_size,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        patch_size=config.patch_px,
        image_size=config.max_image_px,
        rope_parameters={"rope_type": "axial", "rope_theta": 10_000.0},
    )
    torch.manual_seed(seed)
    model = Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            spatial_merge_size=config.merge,
            projector_hidden_act="gelu",
            vision_feature_layer=-1,
            multimodal_projector_bias=True,
            tie_word_embeddings=text.tie_word_embeddings,
            **special,
        )
    )
    _start_as_average_pooling(model.model.multi_modal_projector.patch_merger.merging_layer.weight, config.merge)
    return model


def _start_as_average_pooling(merging: torch.Tensor, merge: int) -> None:
    """Seed1.5-VL pools 2×2 patches by their mean; the learned merger [hidden, hidden · merge²] starts as exactly that.

    Its input holds the patches of one channel side by side: column ``channel · merge² + patch``.
    """
    import torch

    with torch.no_grad():
        hidden = merging.shape[0]
        merging.copy_(torch.eye(hidden).repeat_interleave(merge**2, dim=1) / merge**2)


def make_processor(config: SeedVlmConfig, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    from transformers import PixtralProcessor
    from transformers.models.pixtral import PixtralImageProcessor

    images = PixtralImageProcessor(
        size={"longest_edge": config.max_image_px},
        patch_size={"height": config.patch_px, "width": config.patch_px},
    )
    return PixtralProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.patch_px,
        spatial_merge_size=config.merge,
        chat_template=tokenizer.chat_template,
    )


def save_policy(model: PreTrainedModel, processor: ProcessorMixin, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def load_policy(
    path: str, *, dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Any vision-language policy by folder or hub id, with its processor; all dropout is off, for training too.

    ``dtype`` is ``float32`` or ``bfloat16``. Raises PolicyError where transformers cannot load it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        _switch_off_dropout(config)
        model = AutoModelForImageTextToText.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(f"transformers cannot load the policy {path!r} (policy.path): {error}") from error
    return model, processor


def _switch_off_dropout(config: PretrainedConfig) -> None:
    """Engine and learner must compute the same function; a dropout in either would make every ratio wrong."""
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):  # …_dropout_prob, resid_pdrop and drop_path_rate, too
            setattr(config, name, 0.0)
        elif hasattr(value, "to_dict"):
            _switch_off_dropout(value)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def check_policy(path: str, *, trust_remote_code: bool = False) -> None:
    """Say at once, without loading weights, why transformers or vLLM could not load the policy at ``path``.

    Looks for config, tokenizer, image processor and chat template, and for the architecture among those that vLLM
    knows. A hub id is looked up in the local cache or on the hub. Raises PolicyError.
    """
    config = _read_config(path)
    if not any(_find_file(path, name) for name in _TOKENIZER_FILES):
        raise PolicyError(f"the policy {path!r} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there")
    if not any(_find_file(path, name) for name in _PROCESSOR_FILES):
        raise PolicyError(
            f"the policy {path!r} has no image processor: neither of {', '.join(_PROCESSOR_FILES)} is there; "
            "save it with AutoProcessor.save_pretrained, or set policy.path to a vision-language model"
        )
    architectures = config.get("architectures") or []
    if "auto_map" in config and not trust_remote_code and not _transformers_knows(config.get("model_type")):
        raise PolicyError(
            f"the policy {path!r} brings code of its own ({architectures}); if you trust its author, "
            "set policy.trust_remote_code=true"
        )
    known = vllm_architectures()
    if not any(architecture in known for architecture in architectures):
        near = difflib.get_close_matches(str(architectures[0]), known, n=3) if architectures else []
        raise PolicyError(
            f"vLLM does not know the architecture {architectures} of the policy {path!r}"
            + (f"; the nearest that it knows: {', '.join(near)}" if near else "")
            + " (config.json, key architectures)"
        )


def _read_config(path: str) -> dict[str, Any]:
    found = _find_file(path, "config.json")
    if found is None:
        raise PolicyError(f"no policy at {path!r} (policy.path): neither a folder with a config.json nor a hub id")
    try:
        config = json.loads(found.read_text())
    except ValueError as error:
        raise PolicyError(f"{found} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise PolicyError(f"{found} must hold a JSON object; got {type(config).__name__}")
    return config


def _find_file(path: str, name: str) -> Path | None:
    """A file of a policy: in its folder or, where there is no such folder, in the hub's repository of that id."""
    if Path(path).is_dir():
        return Path(path, name) if Path(path, name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(path, name))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def _transformers_knows(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


@functools.cache
def vllm_architectures() -> frozenset[str]:
    """The architectures that the installed vLLM knows, read from its registry's source: importing it takes seconds."""
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        raise PolicyError("vLLM is not installed; `medrl doctor` says how to mend it")
    registry = Path(package.submodule_search_locations[0], "model_executor", "models", "registry.py")
    tables = (
        node.value
        for node in ast.parse(registry.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    )
    return frozenset(
        architecture.value
        for table in tables
        for architecture, implementation in zip(table.keys, table.values, strict=True)
        if isinstance(architecture, ast.Constant)
        and isinstance(architecture.value, str)
        and isinstance(implementation, ast.Tuple)  # (module, class): the table of dropped models holds versions
    )
