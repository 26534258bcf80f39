"""Weights from the learner to the engines over NCCL, for which there is a stand-in; and what is said where it fails."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from policies.contract import Weights
from rl.batch import train_sample
from rl.config_schema import RolloutsConfig, RunConfig
from rl.errors import LearnerError, PublicationError, RolloutError
from rl.publication import connect, transfer_weights
from rl.settings import engine_settings, learner_settings
from rl.types import SamplingParams, TrainBatch, Trajectory
from rollouts.cytology import load_cytology
from rollouts.engine import GenerationRequest
from rollouts.pool import RolloutPool
from tests import nccl_stand_in
from tests.learners import with_learner

SENT = Weights(size_bytes=1, sha256="0")


class Ends:
    """A learner and a pool of two engines, each of which waits until the other is asked; ``failing`` fails instead."""

    def __init__(self, *, failing: str = "", error: Exception | None = None) -> None:
        self.both = asyncio.Barrier(2)
        self.failing, self.error = failing, error
        self.asked: list[Any] = []
        self.given_up: list[str] = []
        self.learner = SimpleNamespace(
            address=self.address, gather=self.gather, connect=self.end("learner"), send=self.end("learner")
        )
        self.pool: Any = SimpleNamespace(
            workers=("one", "two"), connect=self.end("pool"), receive_weights=self.end("pool")
        )

    def end(self, name: str) -> Callable[..., Awaitable[Weights]]:
        async def meet(*arguments: Any, **options: Any) -> Weights:
            self.asked.append((name, *arguments, options))
            try:
                if name == self.failing and self.error:
                    raise self.error
                await self.both.wait()
                return SENT
            except asyncio.CancelledError:
                self.given_up.append(name)
                raise

        return meet

    async def address(self) -> tuple[str, int]:
        return "node", 4321

    async def gather(self) -> dict[str, list[Any]]:
        return {"names": ["head"]}


async def test_both_ends_are_asked_at_once_and_told_the_same_group() -> None:
    ends = Ends()
    await asyncio.wait_for(connect(ends.learner, ends.pool, tensor_parallel=4), 5)
    (_, group, _), (_, same, options) = sorted(ends.asked, key=lambda asked: asked[0])
    assert group == same and options == {"tensor_parallel": 4}
    assert (group["master_address"], group["master_port"]) == ("node", 4321)
    assert group["world_size"] == 9  # the learner's rank 0, and two engines of four processes


async def test_over_nccl_the_engines_receive_while_the_learner_sends_what_it_announced() -> None:
    ends = Ends()
    sending = transfer_weights(ends.learner, ends.pool, version=3, over="nccl")
    assert await asyncio.wait_for(sending, 5) == SENT
    assert ("pool", {"names": ["head"]}, {"version": 3}) in ends.asked and len(ends.asked) == 2


@pytest.mark.parametrize(
    ("failing", "other", "error"),
    [("learner", "pool", LearnerError("rank 0 died")), ("pool", "learner", RolloutError("worker 1 did not answer"))],
)
async def test_the_end_that_fails_ends_the_wait_of_the_other_and_the_way_out_is_named(
    failing: str, other: str, error: Exception
) -> None:
    ends = Ends(failing=failing, error=error)
    for call, doing in (
        (connect(ends.learner, ends.pool, tensor_parallel=1), "bringing the GPUs together"),
        (transfer_weights(ends.learner, ends.pool, version=3, over="nccl"), "publishing version 3"),
    ):
        said = rf"{doing} over NCCL failed: {error}\. NCCL_DEBUG=INFO .*; rollouts.weight_transfer=host does without"
        with pytest.raises(PublicationError, match=said):
            await asyncio.wait_for(call, 5)
    await asyncio.sleep(0)
    assert ends.given_up == [other, other]


# From here on with engines and a learner, in actors of their own.


def a_config(*, lora_rank: int = 0, zero_stage: int = 0) -> RunConfig:
    config = RunConfig()
    config.policy.dtype = "float32"
    config.policy.lora.rank = lora_rank
    config.learner.learning_rate = 1e-2
    config.learner.zero_stage = zero_stage
    config.rollouts.weight_transfer = "nccl"
    config.rollouts.kv_cache_mb = 64
    return config


@pytest.fixture(scope="module")
def pool(ray_session: Any, tiny_policy: Path) -> Iterator[RolloutPool]:
    """Two engines."""
    from rl.cluster import start_rollout_pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl.cluster.RolloutWorker", nccl_stand_in.Rollouts)
        patch.setattr("rl.publication.CHUNK_BYTES", 200_000)
        settings = engine_settings(a_config(), str(tiny_policy))
        pool = start_rollout_pool(settings, RolloutsConfig(workers=2, timeout_s=300))
        yield pool
    for worker in pool.workers:
        ray_session.kill(worker)


@dataclasses.dataclass
class Published:
    """What was published before and after an update, and what two prompts then gave on both engines."""

    first: Weights
    second: Weights
    by_host: Weights
    announced: list[str]
    left: dict[str, np.ndarray]
    before: list[Trajectory]
    after: list[Trajectory]
    learned: list[np.ndarray]


async def published(learner: Any, pool: RolloutPool, folder: Path) -> Published:
    await connect(learner, pool, tensor_parallel=1)
    first = await transfer_weights(learner, pool, version=1, over="nccl")
    before = await pool.probe(requests())
    pairs = list(itertools.product(range(2), (1.0, -1.0)))  # of the first engine: two groups of two
    samples = [train_sample(t, group=g, advantage=a) for t, (g, a) in zip(before, pairs, strict=False)]
    loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    await learner.update(TrainBatch(samples=tuple(samples), loss_tokens=loss_tokens, policy_version=1))
    announced = await learner.gather()
    second = await transfer_weights(learner, pool, version=2, over="nccl")
    after = await pool.probe(requests())
    learned = await learner.logprobs(
        [train_sample(each, group=place, advantage=0.0) for place, each in enumerate(after)]
    )
    await learner.save_policy(folder)
    left, by_host = await learner.weights()
    return Published(first, second, by_host, announced["names"], await left, before, after, learned)


def requests() -> list[GenerationRequest]:
    """Two cases with their pictures: no part of the policy is left out."""
    sampling = SamplingParams(temperature=1.0, max_tokens=16)
    return [
        GenerationRequest(id=task.id, task=task, num_samples=2, seed=7, sampling=sampling)
        for task in load_cytology("train")[:2]
    ]


def digest(policy: Path) -> str:
    """By which the weights of a saved policy are known."""
    from policies.vlm import load_policy
    from policies.weights import Publisher, checkpoint_weights, host_arrays

    model, _ = load_policy(str(policy))
    return Publisher().known(host_arrays(checkpoint_weights(model))).sha256


def sizes(policy: Path) -> dict[str, int]:
    from safetensors.numpy import load_file

    return {name: array.nbytes for name, array in load_file(policy / "model.safetensors").items()}


def block(name: str) -> str:
    return name.rsplit(".", 2)[0]


@pytest.mark.parametrize(("lora_rank", "ranks", "zero_stage"), [(0, 2, 3), (4, 1, 0)], ids=["all of ZeRO-3", "LoRA"])
def test_every_engine_has_what_the_learner_holds_and_it_is_known_by_the_same_digest_as_by_way_of_the_host(
    lora_rank: int,
    ranks: int,
    zero_stage: int,
    pool: RolloutPool,
    tiny_policy: Path,
    tmp_path: Path,
    ray_session: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = learner_settings(a_config(lora_rank=lora_rank, zero_stage=zero_stage), str(tiny_policy))
    use = functools.partial(published, pool=pool, folder=tmp_path / "policy")
    monkeypatch.setattr("rl.cluster.LearnerWorker", nccl_stand_in.Learner)
    found = with_learner(use, settings, ranks=ranks, ray=ray_session)
    assert_logprobs_are_the_learners(found.after, found.learned)
    assert apart(found.after, found.before) > 0.01, "the update must be seen in the logprobs"
    assert found.first.sha256 == digest(tiny_policy) and found.second.sha256 == digest(tmp_path / "policy")
    assert found.by_host.sha256 == found.second.sha256 and found.left == {}  # the learner knows that engines have all
    everything = sizes(tiny_policy)
    adapted = {block(name) for name in everything if name.endswith("q_proj.weight")}
    expected = {name for name in everything if not lora_rank or block(name) in adapted}
    assert set(found.announced) == expected
    assert found.first.size_bytes == sum(everything.values())
    assert found.second.size_bytes == sum(everything[name] for name in expected)


def assert_logprobs_are_the_learners(written: Sequence[Trajectory], learned: Sequence[np.ndarray]) -> None:
    assert len(written) == 8 and {trajectory.policy_version for trajectory in written} == {2}
    for trajectory, expected in zip(written, learned, strict=True):
        np.testing.assert_allclose(trajectory.rollout_logprobs, expected, rtol=0, atol=1e-4, err_msg=trajectory.id)


def apart(one: Sequence[Trajectory], other: Sequence[Trajectory]) -> float:
    """The mean distance of the logprobs of the first tokens, which have the same prompt."""
    pairs = zip(one, other, strict=True)
    return float(np.mean([abs(a.rollout_logprobs[0] - b.rollout_logprobs[0]) for a, b in pairs]))
