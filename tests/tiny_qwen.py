"""A Qwen2.5-VL and a Qwen3-VL of half a million random weights: policies of other architectures than the presets'.

They differ where it matters: three-dimensional rotary positions, images as flat patches with their grid, weights that
the checkpoint names otherwise than the model; the first has a vision tower with windows, the second one whose features
enter the decoder between its layers, and positions whose axes take turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    "Think step by step inside <think></think>, then give yes or no inside <answer></answer>.",
    "Is the mass malignant? Record: radius 17.9 um high, texture 10.4 low, concavity 0.30, symmetry 0.24.",
)
_VOCABULARY = 384  # the 256 bytes, the special tokens and some merges
_SPREAD = (
    0.08  # of the random weights; at the usual 0.02 attention is all but uniform, and a wrong position goes unseen
)
_SIDE_PX = 28  # one token stands for 28 x 28 pixels


def build_tiny_qwen(out: Path, *, seed: int) -> Path:
    """Save weights, config, tokenizer, image processor and chat template to ``out``. Same seed, same bytes."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    Qwen2_5_VLForConditionalGeneration(_config(tokenizer)).save_pretrained(out)
    _processor(tokenizer).save_pretrained(out)
    return out


def build_tiny_qwen3(out: Path, *, seed: int) -> Path:
    """The same for Qwen3-VL."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    Qwen3VLForConditionalGeneration(_config3(tokenizer)).save_pretrained(out)
    _processor3(tokenizer).save_pretrained(out)
    return out


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=[PAD, START, END, *VISION],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, *VISION],
        padding_side="left",
        model_max_length=1024,
    )


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        # Of the 16 rotary frequencies of a head 4 turn with time, 6 with height and 6 with width.
        text_config=_TEXT | _rope(mrope_section=[4, 6, 6]) | _special(tokenizer),
        vision_config=_VISION | {"window_size": 112, "fullatt_block_indexes": [1]},
        **_image_ids(tokenizer),
        **_special(tokenizer),
    )


def _config3(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config=_TEXT
        | _rope(mrope_section=[6, 5, 5], mrope_interleaved=True)
        | {"head_dim": 32}
        | _special(tokenizer),
        vision_config=_VISION
        | {"patch_size": _SIDE_PX // 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 256},
        **_image_ids(tokenizer),
        **_special(tokenizer),
    )


_TEXT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": _SPREAD,
}
_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 128,
    "initializer_range": _SPREAD,
}


def _rope(**sections: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, **sections}}


def _special(tokenizer: Any) -> dict[str, Any]:
    return {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}


def _image_ids(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(VISION)), strict=True))


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=_SIZE),
        chat_template=CHAT_TEMPLATE,
    )


def _processor3(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_SIZE, patch_size=_SIDE_PX // 2),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=_SIZE, patch_size=_SIDE_PX // 2),
        chat_template=CHAT_TEMPLATE,
    )


_SIZE = {"shortest_edge": 4 * _SIDE_PX**2, "longest_edge": 64 * _SIDE_PX**2}  # in pixels, despite the names
