"""The vLLM engine in its Ray actor: seeds, images, refused prompts, and logprobs that are those of the learner's model.

The reference is transformers' forward pass over whole sequences, one row per trajectory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.tokenizer import IMAGE, IMAGE_BREAK, IMAGE_END
from rl.errors import RolloutError
from rl.types import EncodedImage, Message, SamplingParams, Task, Trajectory
from rollouts.engine import EngineSettings, GenerationRequest
from tests.samples import a_task

pytestmark = pytest.mark.slow

MAX_MODEL_LEN = 512
TIED_TEMPERATURE = 0.7


class EngineActor:
    """A rollout worker of the run's own kind, called synchronously."""

    def __init__(self, ray: Any, policy: Path, *, temperature: float) -> None:
        from rl.cluster import start_rollout_pool
        from rl.config_schema import RolloutsConfig

        settings = EngineSettings(
            policy_path=str(policy),
            dtype="float32",
            seed=0,
            temperature=temperature,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=32,
            kv_cache_mb=64,
            gpu_memory_utilization=0.5,
            max_images=3,
            enforce_eager=True,
            tensor_parallel=1,
            trust_remote_code=False,
            on_gpu=False,
        )
        self.ray, self.policy, self.temperature = ray, policy, temperature
        (self.actor,) = start_rollout_pool(settings, RolloutsConfig(workers=1)).workers

    def generate(self, *requests: GenerationRequest) -> list[tuple[Trajectory, ...]]:
        found: list[tuple[Trajectory, ...]] = self.ray.get(self.actor.generate_all.remote(requests), timeout=300)
        return found

    def load(self, arrays: dict[str, np.ndarray], *, version: int) -> None:
        self.ray.get(self.actor.load_weights.remote(arrays, version=version), timeout=300)

    def request(
        self, id: str, task: Task, *, num_samples: int = 1, seed: int = 0, **sampling: Any
    ) -> GenerationRequest:
        """A request for 12 tokens unless ``sampling`` says otherwise."""
        params = SamplingParams(**{"temperature": self.temperature, "max_tokens": 12} | sampling)
        return GenerationRequest(id=id, task=task, num_samples=num_samples, seed=seed, sampling=params)


@pytest.fixture(scope="module")
def engine(ray_session: Any, tiny_policy: Path) -> Iterator[EngineActor]:
    engine = EngineActor(ray_session, tiny_policy, temperature=1.0)
    yield engine
    ray_session.kill(engine.actor)


@pytest.fixture(scope="module")
def tied_engine(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineActor]:
    """Its head is its embedding, and it samples at another temperature than 1."""
    from policies.vlm import SeedVlmConfig, build_seed_vlm

    sizes = SeedVlmConfig(
        hidden_size=128, intermediate_size=256, layers=2, tie_embeddings=True, vision_hidden_size=64, vision_layers=1
    )
    policy = build_seed_vlm(sizes, tmp_path_factory.mktemp("policies") / "tied", seed=1)
    engine = EngineActor(ray_session, policy, temperature=TIED_TEMPERATURE)
    yield engine
    ray_session.kill(engine.actor)


def a_picture(width: int, height: int) -> EncodedImage:
    from PIL import Image

    noise = np.random.default_rng(width * height).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    encoded = BytesIO()
    Image.fromarray(noise).save(encoded, format="PNG")
    return EncodedImage(content=encoded.getvalue(), width=width, height=height)


def mixed_tasks() -> tuple[list[Task], list[int]]:
    """Questions with images of very different sizes, several, and none; and how many image tokens each must cost."""
    tasks = [
        a_task("small", images=(a_picture(56, 28),)),
        a_task("tall", images=(a_picture(56, 448),)),
        a_task("large", images=(a_picture(448, 448),)),
        a_task("shrunk", images=(a_picture(1024, 64),)),
        a_task("three", images=(a_picture(112, 28), a_picture(28, 28), a_picture(84, 140))),
        a_task("none"),
    ]
    # A token is 28 x 28 pixels: 2; 2·16; 16·16; the longest side becomes 448, so 16·1; 4 + 2·2 (enlarged) + 3·5; 0.
    return tasks, [2, 32, 256, 16, 23, 0]


def load_reference(engine: EngineActor) -> tuple[Any, Any]:
    from policies.vlm import load_policy

    return load_policy(str(engine.policy))


def reference_logprobs(model: Any, processor: Any, trajectory: Trajectory, *, temperature: float) -> np.ndarray:
    """Of the completion's tokens, those that the policy was told among them. Other temperatures than 1 are vLLM's to
    apply, after the tokens that it may not sample are gone: they have no share in that distribution."""
    import torch

    pictures = [image.decode() for image in trajectory.images]
    vision = dict(processor.image_processor(images=pictures, return_tensors="pt")) if pictures else {}
    ids = torch.from_numpy(np.concatenate([trajectory.prompt_token_ids, trajectory.completion_token_ids])).long()
    with torch.no_grad():
        logits = model(input_ids=ids[None], **vision).logits[0, len(trajectory.prompt_token_ids) - 1 : -1]
    if temperature != 1.0:
        logits[:, processor.tokenizer.convert_tokens_to_ids([IMAGE, IMAGE_BREAK, IMAGE_END])] = -torch.inf
    completion = ids[len(trajectory.prompt_token_ids) :]
    return (logits / temperature).log_softmax(-1).gather(1, completion[:, None])[:, 0].numpy()


def assert_logprobs_are_the_models(
    engine: EngineActor, model: Any, processor: Any, groups: Sequence[tuple[Trajectory, ...]]
) -> None:
    for trajectory in (trajectory for group in groups for trajectory in group):
        expected = reference_logprobs(model, processor, trajectory, temperature=engine.temperature)
        expected[~trajectory.completion_mask] = np.nan
        np.testing.assert_allclose(trajectory.rollout_logprobs, expected, rtol=0, atol=1e-4, err_msg=trajectory.id)


def token_ids(group: Sequence[Trajectory]) -> list[list[int]]:
    return [trajectory.completion_token_ids.tolist() for trajectory in group]


def test_the_same_seed_writes_the_same_tokens_alone_and_within_a_batch(engine: EngineActor) -> None:
    tasks, _ = mixed_tasks()
    asked = engine.request("asked", tasks[1], num_samples=3, seed=11)
    ((*alone,),) = engine.generate(asked)
    others = [engine.request(str(place), task, num_samples=4, seed=place) for place, task in enumerate(tasks)]
    within = engine.generate(*others[:3], asked, *others[3:])[3]
    assert token_ids(alone) == token_ids(within)
    for one, other in zip(alone, within, strict=True):
        np.testing.assert_allclose(one.rollout_logprobs, other.rollout_logprobs, rtol=0, atol=1e-5)


def test_sample_i_draws_with_the_seed_plus_i(engine: EngineActor) -> None:
    task = a_task()
    (together,) = engine.generate(engine.request("together", task, num_samples=3, seed=40))
    apart = engine.generate(*(engine.request(str(seed), task, seed=seed) for seed in (40, 41, 42)))
    assert token_ids(together) == [token_ids(group)[0] for group in apart]
    assert [trajectory.seed for trajectory in together] == [40, 41, 42]
    assert len({tuple(ids) for ids in token_ids(together)}) == 3


def test_images_of_any_size_and_number_share_a_batch_and_each_is_seen_as_the_learner_sees_it(
    engine: EngineActor,
) -> None:
    tasks, image_tokens = mixed_tasks()
    groups = engine.generate(*(engine.request(task.id, task, num_samples=2) for task in tasks))
    model, processor = load_reference(engine)
    placeholder = model.config.image_token_index
    assert [int((group[0].prompt_token_ids == placeholder).sum()) for group in groups] == image_tokens
    assert [[trajectory.id for trajectory in group] for group in groups] == [[f"{t.id}/0", f"{t.id}/1"] for t in tasks]
    assert_logprobs_are_the_models(engine, model, processor, groups)


def test_a_stop_string_ends_the_text_and_stays_in_it(engine: EngineActor) -> None:
    (group,) = engine.generate(engine.request("stop", a_task(), num_samples=8, max_tokens=64, stop=("e",)))
    stopped = [trajectory for trajectory in group if trajectory.finish_reason == "stop" and trajectory.text[-1:] == "e"]
    assert stopped
    assert all(trajectory.text.count("e") == 1 for trajectory in stopped)
    assert all("e" not in trajectory.text for trajectory in group if trajectory not in stopped)


@pytest.mark.parametrize(
    "refused",
    [
        a_task("endless", question="word " * 2 * MAX_MODEL_LEN),
        a_task("huge", images=(a_picture(448, 448),) * 2),  # two images of 16 · 16 tokens
        a_task("many", images=(a_picture(56, 28),) * 4),
    ],
    ids=lambda task: task.id,
)
def test_a_prompt_that_is_refused_names_its_task_and_leaves_the_engine_as_it_was(
    refused: Task, engine: EngineActor
) -> None:
    fitting = engine.request("fitting", a_task("fitting"), num_samples=2)
    (before,) = engine.generate(fitting)
    with pytest.raises(RolloutError, match=rf"task '{refused.id}' cannot be given to the engine: .*max_model_len"):
        engine.generate(fitting, engine.request("refused", refused))
    (after,) = engine.generate(fitting)
    assert token_ids(after) == token_ids(before)


def test_an_image_token_is_not_written_however_likely_it_is(engine: EngineActor) -> None:
    import torch

    from policies.weights import checkpoint_weights, host_arrays

    model, processor = load_reference(engine)
    original = host_arrays(checkpoint_weights(model))
    # All logits are 0 but those of two image tokens, x and -x with x drawn from N(0, 2² · hidden): one of the two has
    # a logit above 14 in half of all places and more, and leaves less than exp(-14) to every other token.
    head = torch.zeros_like(model.get_output_embeddings().weight)
    direction = 2 * torch.randn(head.shape[1], generator=torch.Generator().manual_seed(0))
    likely = processor.tokenizer.convert_tokens_to_ids([IMAGE, IMAGE_END])
    head[likely] = torch.stack([direction, -direction])
    model.get_output_embeddings().weight.data = head
    engine.load(host_arrays(checkpoint_weights(model)), version=1)
    tasks = [a_task(str(number)) for number in range(4)]
    groups = engine.generate(*(engine.request(task.id, task, num_samples=8, max_tokens=32) for task in tasks))
    engine.load(original, version=0)
    written = [trajectory for group in groups for trajectory in group]
    assert not any(np.isin(likely, trajectory.completion_token_ids).any() for trajectory in written)
    assert_logprobs_are_the_models(engine, model, processor, groups)
    assert np.mean(np.concatenate([trajectory.rollout_logprobs for trajectory in written]) < -14) > 0.5


@pytest.mark.parametrize("name", ["engine", "tied_engine"])
def test_after_a_publication_logprobs_are_those_of_the_new_weights(name: str, request: pytest.FixtureRequest) -> None:
    import torch

    from policies.weights import checkpoint_weights, host_arrays

    engine: EngineActor = request.getfixturevalue(name)
    tasks, _ = mixed_tasks()
    requests = [engine.request(task.id, task, num_samples=2, seed=5) for task in tasks]
    before = engine.generate(*requests)  # fills every cache with what the old weights made of these prompts
    model, processor = load_reference(engine)
    assert_logprobs_are_the_models(engine, model, processor, before)
    original = host_arrays(checkpoint_weights(model))
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    engine.load(host_arrays(checkpoint_weights(model)), version=7)
    after = engine.generate(*requests)
    assert {trajectory.policy_version for group in after for trajectory in group} == {7}
    assert [token_ids(group) for group in after] != [token_ids(group) for group in before]
    assert_logprobs_are_the_models(engine, model, processor, after)
    engine.load(original, version=0)
    assert [token_ids(group) for group in engine.generate(*requests)] == [token_ids(group) for group in before]


def test_weights_of_some_layers_alone_replace_theirs_and_no_others(engine: EngineActor) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from policies.weights import Publisher, host_arrays

    request = engine.request("part", mixed_tasks()[0][4], num_samples=2, seed=5)
    base, processor = load_reference(engine)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[1]))
    publisher = Publisher()
    original, whole = publisher.changes(host_arrays(publisher.gather(model, keep=True)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name and "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    changed, part = publisher.changes(host_arrays(publisher.gather(model, keep=True)))
    # The engine has fused q, k and v, so that all of the attention comes; neither the other layers nor the MLP.
    assert {name.rpartition("self_attn")[0] for name in changed} == {"language_model.model.layers.1."}
    assert part.size_bytes < 0.1 * whole.size_bytes
    before = engine.generate(request)
    engine.load(changed, version=3)
    after = engine.generate(request)
    assert token_ids(after[0]) != token_ids(before[0])
    assert_logprobs_are_the_models(engine, model, processor, after)
    engine.load(original, version=0)


def test_more_prompts_than_one_pass_holds_are_all_answered(engine: EngineActor) -> None:
    # A pass takes 4,096 tokens at the most. A prompt that is cut there would need a generator to be rewound, which none
    # on the CPU can be.
    question = " ".join(["measure"] * 100)
    requests = [
        engine.request(f"many-{number}", a_task(f"case-{number}", question=f"{number} {question}"), num_samples=2)
        for number in range(30)
    ]
    groups = engine.generate(*requests)
    assert sum(len(group[0].prompt_token_ids) for group in groups) > 2 * 4096
    assert [len(group) for group in groups] == [2] * 30


def a_talk(id: str = "talk", **fields: Any) -> Task:
    """A question about two images, a doubt, and a third image."""
    follow_ups = (
        Message(text="Are you sure?"),
        Message(text="And this one?", images=(a_picture(84, 56),)),
    )
    return a_task(id, images=(a_picture(56, 28), a_picture(84, 140)), follow_ups=follow_ups, **fields)


def told(processor: Any, text: str) -> list[int]:
    """Between two turns of the built-in template, of which the first did not end itself."""
    middle = f"<seed:eos><seed:bos>user\n{text}<seed:eos><seed:bos>assistant\n"
    return list(processor.tokenizer(middle, add_special_tokens=False).input_ids)


def runs(mask: np.ndarray) -> list[tuple[bool, int]]:
    """Whether, and for how many tokens on end, the policy wrote."""
    return [(bool(value), len(list(same))) for value, same in itertools.groupby(mask.tolist())]


@pytest.mark.parametrize("name", ["engine", "tied_engine"])
def test_each_turn_continues_token_for_token_what_was_written_and_told(
    name: str, request: pytest.FixtureRequest
) -> None:
    engine: EngineActor = request.getfixturevalue(name)
    tasks = [a_talk("one"), a_task("between"), a_talk("other", question="Is it not?")]
    asked = [engine.request(t.id, t, num_samples=4, seed=3, max_tokens=200, stop=("e", "a")) for t in tasks]
    groups = engine.generate(*asked)
    model, processor = load_reference(engine)
    assert_logprobs_are_the_models(engine, model, processor, groups)
    # 84 x 56 pixels are 3 columns and 2 rows of tokens, with a break after the first row and the end after the second.
    image = f"{(IMAGE * 3 + IMAGE_BREAK) * 2}".removesuffix(IMAGE_BREAK) + IMAGE_END
    doubt, shown = told(processor, "Are you sure?"), told(processor, f"{image}And this one?")
    whole = [trajectory for group in (groups[0], groups[2]) for trajectory in group if len(trajectory.turns) == 3]
    assert len(whole) >= 4
    for trajectory in whole:
        pieces = np.split(trajectory.completion_token_ids, np.flatnonzero(np.diff(trajectory.completion_mask)) + 1)
        assert [len(piece) for piece in pieces] == [length for _, length in runs(trajectory.completion_mask)]
        first, heard, second, seen, third = (piece.tolist() for piece in pieces)
        # Where a turn has ended itself, its end is not told again.
        assert heard == doubt[int(first[-1] == doubt[0]) :]
        assert seen == shown[int(second[-1] == shown[0]) :]
        assert processor.tokenizer.decode(third).startswith(trajectory.turns[2])
        assert [each.message for each in trajectory.observations] == list(trajectory.task.follow_ups)
        assert trajectory.images == (*trajectory.task.images, *trajectory.task.follow_ups[1].images)
        assert all(turn[-1:] in ("e", "a") for turn in trajectory.turns[:2])
    assert [len(trajectory.turns) for trajectory in groups[1]] == [1] * 4


def test_the_same_seed_writes_the_same_turns_alone_and_within_a_batch(engine: EngineActor) -> None:
    asked = engine.request("asked", a_talk(), num_samples=3, seed=11, max_tokens=64, stop=("e",))
    (alone,) = engine.generate(asked)
    others = [
        engine.request(str(place), a_talk(str(place)), num_samples=4, seed=place, stop=("e",)) for place in range(3)
    ]
    within = engine.generate(*others[:2], asked, others[2])[2]
    assert token_ids(alone) == token_ids(within)
    assert [trajectory.text for trajectory in alone] == [trajectory.text for trajectory in within]
    assert max(len(trajectory.turns) for trajectory in alone) > 1


def test_turns_that_the_policy_ends_itself_are_not_ended_twice(engine: EngineActor) -> None:
    import torch

    from policies.weights import checkpoint_weights, host_arrays

    model, processor = load_reference(engine)
    original = host_arrays(checkpoint_weights(model))
    # All logits are 0 but x, that of the end of a turn and of one word, drawn from N(0, 2² · hidden): where it is
    # large, each of the two is written half of the time.
    equal = processor.tokenizer.convert_tokens_to_ids(["<seed:eos>", "yes"])
    head = torch.zeros_like(model.get_output_embeddings().weight)
    head[equal] = -2 * torch.randn(head.shape[1], generator=torch.Generator().manual_seed(0))
    model.get_output_embeddings().weight.data = head
    engine.load(host_arrays(checkpoint_weights(model)), version=1)
    tasks = [a_talk(str(number), question="word " * number) for number in range(8)]
    groups = engine.generate(*(engine.request(task.id, task, num_samples=2, max_tokens=40) for task in tasks))
    engine.load(original, version=0)
    assert_logprobs_are_the_models(engine, model, processor, groups)
    ended = [each for group in groups for each in group if len(each.turns) == 3]
    assert ended
    for trajectory in ended:
        at = np.flatnonzero(np.diff(trajectory.completion_mask)) + 1
        pieces = np.split(trajectory.completion_token_ids, at)
        assert pieces[0][-1] == pieces[2][-1] == equal[0]
        assert pieces[1].tolist() == told(processor, "Are you sure?")[1:]
        assert trajectory.finish_reason in ("stop", "length")


def test_a_dialogue_ends_in_length_where_tokens_or_context_run_out(engine: EngineActor) -> None:
    spent = engine.request("spent", a_talk(), num_samples=8, seed=1, max_tokens=6, stop=("e",))
    (short,) = engine.generate(spent)
    # A word is a token. Eight are left for the policy, and what it is told after its first turn alone takes as many.
    left = MAX_MODEL_LEN - len(short[0].prompt_token_ids) - 8
    long = a_talk("long", question="Is it?" + " image" * left)
    (full,) = engine.generate(engine.request("cut", long, num_samples=4, max_tokens=400, stop=("e", "a", "o", " ")))
    assert {len(trajectory.prompt_token_ids) for trajectory in full} == {MAX_MODEL_LEN - 8}
    assert any(trajectory.text[-1:] in ("e", "a", "o", " ") for trajectory in full)
    assert all(trajectory.length_tokens <= 6 for trajectory in short)
    assert {trajectory.finish_reason for trajectory in short if len(trajectory.turns) < 3} == {"length"}
    for trajectory in full:
        assert trajectory.finish_reason == "length" and len(trajectory.turns) == 1


def test_a_follow_up_that_is_refused_names_its_task_and_leaves_the_engine_as_it_was(engine: EngineActor) -> None:
    fitting = engine.request("fitting", a_talk("fitting"), num_samples=2)
    (before,) = engine.generate(fitting)
    endless = a_task("endless", follow_ups=(Message(text="word " * 2 * MAX_MODEL_LEN),))
    with pytest.raises(RolloutError, match=r"task 'endless' cannot be given to the engine: .*max_model_len"):
        engine.generate(fitting, engine.request("refused", endless))
    (after,) = engine.generate(fitting)
    assert token_ids(after) == token_ids(before)
