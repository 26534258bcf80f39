"""Calls in real rollouts: the engine goes on token for token after what the tool answered, the image in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.tokenizer import EOS
from rl.types import SamplingParams, Task, Trajectory
from rollouts.engine import EngineSettings, GenerationRequest
from rollouts.tools.toolbox import ToolLimits
from tests.rollouts.test_engine import a_picture, load_reference, reference_logprobs, runs
from tests.samples import a_task
from tests.tool_policy import policy_that_says

pytestmark = pytest.mark.slow

TASK = a_task("round", question="Is it round?", images=(a_picture(112, 84),))
TOOLS = {"zoom": {"use": "zoom", "side": 84}, "turn": {"use": "rotate"}}
TURNS = (
    '<think>\nToo small.\n</think>\n<tool_call>{"name": "zoom", "arguments": {"box": [10, 20, 66, 76]}}</tool_call>',
    '<tool_call>{"name": "turn", "arguments": {"image": 2, "degrees": 90}}</tool_call>'
    '<tool_call>{"name": "measure", "arguments": {}}</tool_call>',
    "<think>\nround\n</think>\n<answer>yes</answer>",
)
SETTINGS = EngineSettings(
    policy_path="",
    dtype="float32",
    seed=0,
    temperature=1.0,
    max_model_len=1024,
    max_num_seqs=8,
    kv_cache_mb=64,
    gpu_memory_utilization=0.5,
    max_images=4,
    enforce_eager=True,
    tensor_parallel=1,
    trust_remote_code=False,
    on_gpu=False,
    tools=TOOLS,
    tool_limits=ToolLimits(calls=8, images=4, image_pixels=1 << 20, timeout_s=20.0),
)


class Actor:
    """A rollout worker of a run's own kind."""

    def __init__(self, ray: Any, policy: Path) -> None:
        from rl.cluster import start_rollout_pool
        from rl.config_schema import RolloutsConfig

        self.ray, self.policy = ray, policy
        settings = replace(SETTINGS, policy_path=str(policy))
        (self.actor,) = start_rollout_pool(settings, RolloutsConfig(workers=1)).workers

    def write(self, task: Task = TASK, *, samples: int = 1, **sampling: Any) -> tuple[Trajectory, ...]:
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 300} | sampling)
        request = GenerationRequest(id="r", task=task, num_samples=samples, seed=0, sampling=params)
        (found,) = self.ray.get(self.actor.generate_all.remote([request]), timeout=300)
        return tuple(found)


@pytest.fixture(scope="module")
def engine(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actor]:
    policy = policy_that_says(TURNS, tmp_path_factory.mktemp("says"), task=TASK, tools=TOOLS)
    actor = Actor(ray_session, policy)
    yield actor
    ray_session.kill(actor.actor)


def test_a_policy_calls_looks_and_answers(engine: Actor) -> None:
    (written,) = engine.write()
    assert tuple(turn.removesuffix(EOS) for turn in written.turns) == TURNS and written.finish_reason == "stop"
    assert [(call.name, call.ok) for call in written.tool_calls] == [("zoom", True), ("turn", True), ("measure", False)]
    assert dict(written.tool_calls[0].arguments) == {"box": [10, 20, 66, 76]}
    zoomed, turned = (observation.message for observation in written.observations)
    assert (zoomed.role, zoomed.text) == ("tool", "Image 2 (84 x 84 pixels): the region [10, 20, 66, 76] of image 1")
    assert turned.text == (
        "Image 3 (84 x 84 pixels): image 2, turned 90 degrees clockwise\n\n"
        "refused: no tool is called 'measure'; there are zoom, turn"
    )
    assert [len(message.images) for message in (zoomed, turned)] == [1, 1]
    assert [image.width for image in written.images] == [112, 84, 84]
    upright, quarter = (message.images[0].decode() for message in (zoomed, turned))
    assert upright.rotate(-90).tobytes() == quarter.tobytes()


def test_what_the_tools_answered_is_read_as_the_learner_will_read_it_and_is_no_loss_token(engine: Actor) -> None:
    """The reference is transformers' forward pass over the whole conversation with its three images."""
    model, processor = load_reference(engine)  # type: ignore[arg-type]
    wrote = []
    for written in engine.write(samples=8, temperature=1.0):
        expected = reference_logprobs(model, processor, written, temperature=1.0)
        expected[~written.completion_mask] = np.nan
        np.testing.assert_allclose(written.rollout_logprobs, expected, rtol=0, atol=1e-4)
        wrote.append([by_policy for by_policy, _ in runs(written.completion_mask)])
    assert [True, False, True, False, True] in wrote  # at temperature 1 not every one keeps to what it learnt


def test_a_dialogue_without_room_for_what_a_tool_answers_ends_in_length(engine: Actor) -> None:
    (whole,) = engine.write()
    first = int(np.argmin(whole.completion_mask))  # tokens of its first turn
    (written,) = engine.write(max_tokens=first)
    assert written.finish_reason == "length" and len(written.turns) == 1
    assert [call.ok for call in written.tool_calls] == [True]  # it was made; there was no telling of it
