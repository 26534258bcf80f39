"""Runs whose tasks have follow-ups, one of them with an image: written, scored, learnt from, logged and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rl.metrics import read_metrics
from tests.rl.conftest import logged, medrl, train, weights_hash

pytestmark = pytest.mark.slow

TURNS = "sampling={max_tokens: 24, stop: [' ', a, e, o]}"  # a policy of random weights soon writes one of these


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that make the shared test run one of conversations: a doubt, then another image of another size."""
    folder = tmp_path_factory.mktemp("talk")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        for name, size in (("first", (56, 84)), ("later", (84, 28))):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{number}.png")
        images = {"image": f"first-{number}.png", "later": f"later-{number}.png"}
        rows.append({"id": number, "question": "Is it?", "answer": "yes" if number % 2 else "no", **images})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mapping.yaml").write_text(
        """
id: id
image: image
question: question
answer: {type: yes_no, column: answer}
split: {hash_of: image, eval_fraction: 0.3}
follow_ups: ["Are you sure?", {template: "And here?", image: later}]
"""
    )
    tasks = f"tasks={{source: {folder / 'rows.jsonl'}, mapping: {folder / 'mapping.yaml'}}}"
    return (tasks, TURNS, "rollouts.max_model_len=384", "max_steps=2", "evaluation.max_tasks=2")


def rows_of(folder: Path, step: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / "trajectories" / f"step_{step:06d}.parquet").to_pylist()
    return rows


def assert_learnt_from_as_written(folder: Path) -> None:
    """The learner, which runs a group as one packed sequence, sees each token as the engine saw it, images and all."""
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["publication/check_difference"] < 1e-4 for record in records)
    assert all(record["rollout/logprob_difference_max"] < 1e-3 for record in records[1:])
    assert all(record["length/turns"] > 1.5 for record in records[1:])
    rows = [row for step in (1, 2) for row in rows_of(folder, step)]
    shown = [row for row in rows if len(row["observations"] or ()) == 2]
    assert len(shown) >= 4
    for row in rows:
        mask = np.array(row["completion_mask"])
        assert np.isnan(np.array(row["rollout_logprobs"])[~mask]).all()
        assert np.isnan(np.array(row["learner_logprobs"])[~mask]).all()
        apart = np.array(row["learner_logprobs"])[mask] - np.array(row["rollout_logprobs"])[mask]
        assert np.abs(apart).max() < 1e-3
        assert np.count_nonzero(np.diff(mask.astype(int)) == -1) == len(row["observations"] or ())


def test_a_run_of_conversations_is_repeated_and_replayed_bit_for_bit(
    config: Path, talk: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("one", "again"):
        train(config, tmp_path / name, *talk)
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "again")
    assert repr(logged(tmp_path / "one", "step")) == repr(logged(tmp_path / "again", "step"))
    assert_learnt_from_as_written(tmp_path / "one")
    rescored = medrl("replay", tmp_path / "one", "--out", tmp_path / "rescored")
    assert rescored.returncode == 0, rescored.stdout + rescored.stderr
    again = medrl("replay", tmp_path / "one", "--step", 2)
    assert again.returncode == 0 and "no difference" in again.stdout, again.stdout + again.stderr


def test_images_within_a_conversation_have_their_place_in_three_dimensional_positions(
    config: Path, talk: tuple[str, ...], tiny_qwen3: Path, tmp_path: Path
) -> None:
    train(config, tmp_path / "qwen", *talk, f"policy.path={tiny_qwen3}", "learner.ranks=2", "learner.zero_stage=3")
    assert_learnt_from_as_written(tmp_path / "qwen")


def test_conversations_that_are_written_ahead_know_the_weights_of_every_turn(
    config: Path, talk: tuple[str, ...], tmp_path: Path
) -> None:
    train(config, tmp_path / "ahead", *talk, "max_steps=4", "async.max_staleness=1")
    rows = [row for step in range(1, 5) for row in rows_of(tmp_path / "ahead", step)]
    for row in rows:
        lags = row["step"] - 1 - np.array(row["token_versions"])[row["completion_mask"]]
        assert lags.min() >= 0 and lags.max() <= 1
    assert sum(len(row["observations"] or ()) for row in rows) > 16
