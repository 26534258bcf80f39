"""The policy as the learner runs it: a micro-batch in, logprobs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from policies.logprobs import Head, token_logprobs
from policies.packing import MicroBatch
from policies.weights import base_model

HEAD_CHUNK_TOKENS = 1024


class PolicyModel(torch.nn.Module):
    """The policy as DeepSpeed sees it: a micro-batch in, logprobs and entropies of its trained tokens out."""

    def __init__(self, model: Any, *, temperature: float, entropy_gradient: bool) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.entropy_gradient = entropy_gradient

    def forward(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 [loss_token] each."""
        causal = base_model(self.model)
        dtype = next(causal.parameters()).dtype
        vision = {
            name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in micro.vision_inputs.items()
        }
        if micro.image_places:
            # Also where each stands once: all ranks of sharded weights must run the same modules in the same order.
            features = causal.model.get_image_features(**vision, return_dict=True)
            vision = {"mm_encoder_outputs": {"image": placed_features(features, micro.image_places)}}
        inputs = {**micro.model_inputs, **vision}
        hidden = causal.model(input_ids=micro.input_ids, use_cache=False, **inputs).last_hidden_state
        return token_logprobs(
            hidden.flatten(0, 1)[micro.predictors],
            micro.targets,
            head=logits_head(causal),
            temperature=self.temperature,
            chunk_tokens=HEAD_CHUNK_TOKENS,
            min_chunks=micro.head_chunks,
            entropy_gradient=self.entropy_gradient,
        )


def logits_head(causal: Any) -> Head:
    """What the model makes its logits with: its head, and the bound that some, as Gemma 4, bend them under."""
    head: Head = causal.get_output_embeddings()
    bound: float | None = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return head if bound is None else lambda hidden: torch.tanh(head(hidden) / bound) * bound


def placed_features(features: Any, places: Sequence[int]) -> Any:
    """What the vision tower made of each image, put at every place where the image stands.

    ``features`` as transformers gives those of images of any size: ``pooler_output`` has [token, channel] for each, and
    so has each layer of ``deepstack_features``, which a decoder takes between its own.
    """

    def placed(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [images[place] for place in places]

    features.pooler_output = placed(features.pooler_output)
    if layers := getattr(features, "deepstack_features", None):
        features.deepstack_features = [placed(layer) for layer in layers]
    return features
