"""From rows of samples to the tensors of one forward pass.

Packed, all rows of a pass stand one after the other in a single sequence without padding: in each the shared prefix
and its images stand once, positions restart at every completion, and each completion attends to the prefix and to
itself (`policies.attention`). An image that stands in several places, as one does that every trajectory of a group was
shown after its first turn, runs through the vision tower once. Plain, a row is one trajectory, padded to the longest,
and masks and positions are the model's own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from policies.attention import Kernel, Tree, packed_attention
from policies.rows import Row, group_rows, plan_passes, single_rows
from rl.types import EncodedImage, TrainSample

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass. ``token`` runs along a row, ``loss_token`` over all trained tokens of all rows, in row order.

    Shapes: ``input_ids`` int64 [row, token], packed [1, token]; ``model_inputs`` whatever else the decoder takes
    (attention, positions), ``vision_inputs`` what the vision tower does, and ``image_places`` which of its images each
    is that stands among the tokens, or None where the model is to find that out itself; ``predictors`` int64
    [loss_token], the flat index into row x token of the hidden state that predicts each trained token; ``targets``
    int64 [loss_token]; ``sample_ids`` int64 [loss_token], which sample of ``indices`` it belongs to;
    ``rollout_logprobs`` float32 [loss_token]; ``advantages`` float32 [sample].
    ``head_chunks`` is how often the head is called at least, so that all ranks call it equally often; ``weight`` is 0
    for a pass that only keeps this rank in step with the others.
    """

    input_ids: torch.Tensor
    model_inputs: dict[str, Any]
    vision_inputs: dict[str, Any]
    image_places: tuple[int, ...] | None
    predictors: torch.Tensor
    targets: torch.Tensor
    sample_ids: torch.Tensor
    rollout_logprobs: torch.Tensor
    advantages: torch.Tensor
    indices: tuple[int, ...]
    head_chunks: int
    weight: float

    def by_sample(self, values: torch.Tensor) -> list[np.ndarray]:
        """Flat [loss_token] values as one array per sample of ``indices``."""
        lengths = torch.bincount(self.sample_ids, minlength=len(self.indices)).tolist()
        return [part.numpy() for part in torch.split(values.cpu(), lengths)]

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same micro-batch with every tensor on ``device``."""

        def moved(value: Any) -> Any:
            return value.to(device) if hasattr(value, "to") else value

        return replace(
            self,
            input_ids=moved(self.input_ids),
            model_inputs={name: moved(value) for name, value in self.model_inputs.items()},
            vision_inputs={name: moved(value) for name, value in self.vision_inputs.items()},
            predictors=moved(self.predictors),
            targets=moved(self.targets),
            sample_ids=moved(self.sample_ids),
            rollout_logprobs=moved(self.rollout_logprobs),
            advantages=moved(self.advantages),
        )


class MicroBatchBuilder:
    """Builds micro-batches for one model: knows its image processor, its positions and its image token.

    ``kernel`` is how packed rows attend; None makes plain ones. A model that is given packed ones must have been
    prepared by `policies.attention.use_packed_attention`.
    """

    def __init__(self, model: Any, processor: Any, *, kernel: Kernel | None) -> None:
        self.kernel = kernel
        self.processor = processor
        self.rope_index = getattr(model, "get_rope_index", None)
        self.image_marks = _image_marks(model)
        self.encodes_once = kernel is not None and _encodes_one_by_one(model, processor)
        names = ("image_token_id", "image_token_index")
        self.image_token_id: int = next(
            (i for name in names if (i := getattr(model.config, name, None)) is not None), -1
        )
        self._image_tokens = functools.lru_cache(maxsize=1024)(self._count_image_tokens)

    def rows(self, samples: Sequence[TrainSample]) -> list[Row]:
        """One row per group when packing, else one per sample."""
        if self.kernel is None:
            return single_rows(samples)
        return group_rows(samples, image_token_id=self.image_token_id, image_tokens=self._image_tokens)

    def plan(self, rows: Sequence[Row], *, ranks: int, budget_tokens: int) -> list[list[tuple[int, ...]]]:
        """See `policies.rows.plan_passes`."""
        lengths = [row.length for row in rows]
        return plan_passes(lengths, ranks=ranks, budget_tokens=budget_tokens, padded=self.kernel is None)

    def build(self, rows: Sequence[Row], *, head_chunks: int = 1, weight: float = 1.0) -> MicroBatch:
        """Tensors for ``rows``; ``weight`` 0 makes a pass that trains nothing."""
        images, places = self._distinct([image for row in rows for image in row.images])
        vision_inputs = self._vision_inputs(images)
        model_inputs: dict[str, Any] = {}
        lengths = [row.length for row in rows]
        if self.kernel is not None:
            starts = [sum(lengths[:place]) for place in range(len(rows))]
            input_ids = torch.from_numpy(np.concatenate([row.token_ids for row in rows]))[None]
            trees = [Tree(row.shared_tokens, row.rests) for row in rows]
            model_inputs["packed"] = packed_attention(trees, kernel=self.kernel)
            grids = vision_inputs.get("image_grid_thw", ())
            model_inputs["position_ids"] = self._positions(
                rows, [grids[place] for place in places] if len(grids) else []
            )
        else:
            starts = [place * max(lengths) for place in range(len(rows))]
            input_ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
            for place, row in enumerate(rows):
                input_ids[place, : row.length] = torch.from_numpy(row.token_ids)
            model_inputs["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
            if self.image_marks is not None:
                model_inputs[self.image_marks] = self._is_image(input_ids)
        return MicroBatch(
            input_ids=input_ids,
            model_inputs=model_inputs,
            vision_inputs=vision_inputs,
            image_places=places if self.encodes_once else None,
            advantages=torch.tensor(
                [sample.advantage for row in rows if row.indices for sample in row.samples], dtype=torch.float32
            ),
            indices=tuple(index for row in rows for index in row.indices),
            head_chunks=head_chunks,
            weight=weight,
            **_loss_tokens(rows, starts),
        )

    def _distinct(self, shown: Sequence[EncodedImage]) -> tuple[list[EncodedImage], tuple[int, ...]]:
        """The images to be encoded, and which of them each that is shown is."""
        if not self.encodes_once:
            return list(shown), tuple(range(len(shown)))
        numbers: dict[bytes, int] = {}
        places = tuple(numbers.setdefault(image.content, len(numbers)) for image in shown)
        return [shown[places.index(number)] for number in range(len(numbers))], places

    def _vision_inputs(self, images: Sequence[EncodedImage]) -> dict[str, Any]:
        """What the model takes for images."""
        if not images:
            return {}
        return {name: value for name, value in self._processed(images).items() if name not in TEXT_INPUTS}

    def _count_image_tokens(self, image: EncodedImage) -> int:
        return int((self._processed([image])["input_ids"] == self.image_token_id).sum())

    def _processed(self, images: Sequence[EncodedImage]) -> Any:
        """Images made ready as for the engine: by the whole processor, given as many placeholders.

        The image processor alone may cut images to another grid than the one that the image tokens were counted on.
        """
        message = {"role": "user", "content": [{"type": "image"} for _ in images]}
        text = self.processor.apply_chat_template([message], tokenize=False)
        pictures = [image.decode() for image in images]
        return self.processor(text=[text], images=[pictures], add_special_tokens=False, return_tensors="pt")

    def _positions(self, rows: Sequence[Row], grids: list[torch.Tensor]) -> torch.Tensor:
        """Positions int64 [1, token], or [4, 1, token] (text, time, height, width) where the model has 3D ones.

        ``grids`` are those of the images among the tokens.
        """
        parts = []
        for row in rows:
            for number, sample in enumerate(row.samples):
                positions = torch.arange(len(sample.token_ids))[None]
                if self.rope_index is not None:
                    own_grids = [grids[image] for image in row.images_of(number)]
                    positions = torch.cat([positions, self._spatial_positions(sample, own_grids)])
                parts.append(positions[:, row.shared_tokens if number else 0 :])
            del grids[: len(row.images)]
        positions = torch.cat(parts, dim=1)
        return positions if self.rope_index is None else positions[:, None]

    def _spatial_positions(self, sample: TrainSample, grids: Sequence[torch.Tensor]) -> torch.Tensor:
        """Int64 [3, token]: the model's own, for the sample alone."""
        assert self.rope_index is not None
        token_ids = torch.from_numpy(sample.token_ids[None].astype(np.int64))
        stacked = torch.stack(list(grids)) if grids else None
        positions, _ = self.rope_index(token_ids, self._is_image(token_ids), image_grid_thw=stacked)
        return positions[:, 0]

    def _is_image(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Int32, 1 where a token stands for a piece of an image: the modality ids of models that ask for them."""
        return torch.eq(token_ids, self.image_token_id).int()


def _image_marks(model: Any) -> str | None:
    """The input by which a model is told which tokens stand for images, or None where it does not ask.

    It counts 3D positions by them, or has all tokens of an image see one another, as Gemma 3 does. PaliGemma means
    another thing by the same name: the end of the prompt.
    """
    taken = inspect.signature(model.forward).parameters
    if "mm_token_type_ids" in taken:
        return "mm_token_type_ids"
    if "token_type_ids" in taken and not getattr(model.config.get_text_config(), "use_bidirectional_attention", None):
        return "token_type_ids"
    return None


def _encodes_one_by_one(model: Any, processor: Any) -> bool:
    """Whether the model takes images that were encoded before, and what it encodes is one entry for each.

    Those are of any size, which their processor hands on; of others an image may be several tiles.
    """
    sizes = {"image_grid_thw", "image_sizes"}
    named = getattr(getattr(processor, "image_processor", None), "model_input_names", ())
    return not sizes.isdisjoint(named) and "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def _loss_tokens(rows: Sequence[Row], starts: Sequence[int]) -> dict[str, torch.Tensor]:
    """The trained tokens of all rows: what predicts them, what they are, and what the loss needs to know of them."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _LOSS_COLUMNS}
    number = 0
    for row, start in zip(rows, starts, strict=True):
        rest = start
        for sample in row.samples:
            trained = np.flatnonzero(sample.loss_mask)
            before = trained - 1  # the shared tokens stand at the start of the row, the others where the rest begins
            columns["predictors"].append(np.where(before < row.shared_tokens, start, rest) + before)
            columns["targets"].append(sample.token_ids[trained])
            columns["sample_ids"].append(np.full(len(trained), number))
            columns["rollout_logprobs"].append(sample.rollout_logprobs[trained])
            rest += len(sample.token_ids) - row.shared_tokens
            number += 1
    return {
        name: torch.from_numpy(np.concatenate(arrays).astype(_LOSS_COLUMNS[name])) for name, arrays in columns.items()
    }


_LOSS_COLUMNS = {
    "predictors": np.int64,
    "targets": np.int64,
    "sample_ids": np.int64,
    "rollout_logprobs": np.float32,
}
