"""The columns of the trajectory store, each with what it means; the schema's version, and which of them are read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 2
"""Raised when a column changes its meaning or goes away. A new column that may be null leaves it as it is.

2: ``policy_version`` is the version that began a completion; under 1 it had written all of it.
"""

READ_VERSIONS = (1, SCHEMA_VERSION)

VERSION_KEY = b"medrl.schema_version"
UPDATE_KEY = b"medrl.update"

TOKEN_DTYPES: Mapping[str, type] = {
    "prompt_token_ids": np.int32,
    "completion_token_ids": np.int32,
    "completion_mask": np.bool_,
    "rollout_logprobs": np.float32,
    "token_versions": np.int64,
    "learner_logprobs": np.float32,
}

TASK_COLUMNS = ("task_id", "stratum", "system", "question", "answer", "rubric", "reference", "extra", "messages")
"""Text that all rows of a group share."""

OUTCOME_COLUMNS = ("outcome", "unscored_reason", "reward", "correct", "scores")
"""What scoring made of a trajectory."""

TRAINING_COLUMNS = ("group_outcome", "advantage", "micro_batch", "learner_logprobs")
"""What training made of its scores."""


@functools.cache
def schema() -> pa.Schema:
    """The columns of a row. Each field's metadata holds its ``doc``; the schema's own holds the version."""
    import pyarrow as pa

    text, real, whole = pa.string(), pa.float64(), pa.int64()
    nested = _nested_types()
    columns = [
        ("kind", text, "'train' or 'eval'"),
        ("step", whole, "step of the run"),
        ("source", text, "system that wrote an imported trajectory; empty for one of medrl's own"),
        ("policy_version", whole, "optimizer steps behind the weights that began the completion; null if imported"),
        ("group_index", pa.int32(), "number of the group within the step"),
        ("drawn_anew", pa.bool_(), "whether dynamic sampling replaced the group in the batch; null in older logs"),
        ("sample_index", pa.int32(), "number of the sample within its group"),
        ("trajectory_id", text, "unique within the step"),
        ("task_id", text, "the task that the group is about"),
        ("stratum", text, "what a balanced sampler draws evenly over"),
        ("system", text, "system message"),
        ("question", text, "question put to the policy"),
        ("answer", text, "reference answer, a JSON object"),
        ("record", pa.list_(nested["measurement"]), "measurements that a trace may cite"),
        ("rubric", text, "criteria of this task alone, a JSON array"),
        ("reference", text, "findings, sources and regions to hold claims against, a JSON object; null in older logs"),
        ("extra", text, "further columns of the source, a JSON object"),
        ("images", pa.list_(nested["image"]), "images of the task; file is relative to the run's folder"),
        ("follow_ups", pa.list_(nested["message"]), "what the user says after each turn; null if none"),
        ("messages", text, "the chat as it was put to the policy, a JSON array; null where not kept"),
        ("prompt_token_ids", pa.list_(pa.int32()), "[prompt] as the engine saw it, images expanded; null if imported"),
        ("completion_token_ids", pa.list_(pa.int32()), "[completion] as the engine returned it; null if imported"),
        ("completion_mask", pa.list_(pa.bool_()), "[completion] true where the policy wrote; null if imported"),
        ("rollout_logprobs", pa.list_(pa.float32()), "[completion] nats as drawn; NaN off the mask; null if imported"),
        ("token_versions", pa.list_(whole), "[completion] the version that wrote each; null in older logs or imported"),
        ("text", text, "what the policy wrote, turns a blank line apart; offsets of evidence count its characters"),
        ("observations", pa.list_(nested["observation"]), "what it was told between turns; null if none"),
        ("finish_reason", text, "'stop', 'length', 'abort' or, if imported, 'unknown'"),
        ("seed", whole, "seed of the sampler; null if imported"),
        ("sampling", nested["sampling"], "how the completion was drawn; null if imported"),
        ("tool_calls", pa.list_(nested["tool_call"]), "tool calls in order, with results; turn null in older logs"),
        ("duration_s", real, "time of the rollout; null where an imported log does not say"),
        ("outcome", text, "'scored' or 'unscored': a broken scorer is never a zero"),
        ("unscored_reason", text, "why there is no reward; null where there is one"),
        ("reward", real, "the combined reward; null where unscored"),
        ("correct", pa.bool_(), "whether the answer was right; null where nobody can tell"),
        ("scores", pa.list_(nested["score"]), "every scorer's outcome with its provenance"),
        ("group_outcome", text, "'trained', 'no_signal' (advantages all 0), 'left_out'; null if nothing was trained"),
        ("advantage", real, "what the policy was trained with; null where it was not"),
        ("micro_batch", pa.int32(), "forward pass of the step that it was trained in; null where it was not"),
        ("learner_logprobs", pa.list_(pa.float32()), "[completion] nats, the learner's, before the update"),
    ]  # fmt: skip
    fields = [pa.field(name, type_, metadata={"doc": doc}) for name, type_, doc in columns]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


def _nested_types() -> dict[str, pa.DataType]:
    import pyarrow as pa

    text, real, whole, flag = pa.string(), pa.float64(), pa.int32(), pa.bool_()
    evidence = {"claim": text, "verdict": text, "start": whole, "end": whole, "source": text, "note": text}
    number = {"name": text, "value": real}
    score = {"scorer": text, "version": text, "outcome": text, "value": real, "reason": text, "gate_open": flag}
    score |= {"evidence": pa.list_(_struct(evidence)), "metrics": pa.list_(_struct(number))}
    score |= {"outcome_reason": text, "duration_s": real, "inputs": text}
    image = {"sha256": text, "file": text, "width": whole, "height": whole, "source": text}
    message = {"text": text, "images": pa.list_(_struct(image))}
    types = {
        "measurement": number | {"unit": text, "reading": text},
        "image": image,
        "message": message,
        "observation": message | {"place": whole, "role": text},
        "sampling": {"temperature": real, "top_p": real, "top_k": whole, "max_tokens": whole, "stop": pa.list_(text)},
        "tool_call": {"name": text, "arguments": text, "result": text, "ok": flag, "turn": whole},
        "score": score,
    }
    return {name: _struct(fields) for name, fields in types.items()}


def _struct(fields: Mapping[str, pa.DataType]) -> pa.StructType:
    import pyarrow as pa

    return pa.struct(list(fields.items()))
