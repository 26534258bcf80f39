"""What `VllmEngine` remembers while turns are written, refused and given up; the core under it writes at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rl.errors import RolloutError, TaskError
from rl.types import Message, SamplingParams, Trajectory
from rollouts import engine as engine_module
from rollouts.dialogue import Passage, Telling
from rollouts.engine import GenerationRequest, VllmEngine
from rollouts.tools.tool import Tool
from rollouts.tools.toolbox import NO_CALLS, Toolbox, ToolLimits
from tests.rollouts.tools.test_toolbox import Says, Waits
from tests.samples import a_task

pytestmark = pytest.mark.slow  # its refusals are vLLM's, which takes seconds to import


class Core:
    """Ends every turn at the step after it was begun; ``refuses`` says by its name which it does not begin."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.aborted: list[str] = []
        self.refuses: Callable[[str], bool] = lambda name: False
        self.writes: Callable[[str], str] = lambda name: "x"

    def get_num_unfinished_requests(self) -> int:
        return len(self.live)

    def has_unfinished_requests(self) -> bool:
        return bool(self.live)

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        if self.refuses(name):
            raise ValueError("too large")
        self.live.append(name)

    def abort_request(self, names: Sequence[str]) -> None:
        self.aborted += names
        self.live = [name for name in self.live if name not in names]

    def step(self) -> list[Any]:
        ended, self.live = self.live, []
        return [SimpleNamespace(finished=True, request_id=name, outputs=[self._completion(name)]) for name in ended]

    def _completion(self, name: str) -> Any:
        return SimpleNamespace(
            token_ids=(1,),
            logprobs=[{1: SimpleNamespace(logprob=-1.0)}],
            text=self.writes(name),
            finish_reason="stop",
            weight_versions=[],
        )


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def engine(core: Core, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    monkeypatch.setattr(engine_module, "render_prompt", lambda task, processor, tools: task.question)
    engine = object.__new__(VllmEngine)
    engine.llm = SimpleNamespace(llm_engine=core)
    engine.processor = None
    engine.max_num_seqs, engine.max_model_len, engine.version = 8, 100, 0
    engine.answers, engine._added, engine._waiting, engine._in_progress, engine._turns = {}, 0, deque(), {}, {}
    engine._tools, engine._calling = Toolbox({}, NO_CALLS), []
    made: dict[str, Any] = {
        "_passage": lambda text, images: Passage([5, 6]),
        "_follow_up": lambda task, number: Telling(task.follow_ups[number], Passage([0, 7]), 0),
        "_engine_input": lambda dialogue: list(dialogue.token_ids),
        "_sampling_params": lambda dialogue: None,
        "_results": lambda task, answers: Telling(
            Message(text=answers[0].call.result, role="tool"), Passage([0, 8]), 0
        ),
    }
    for name, function in made.items():
        monkeypatch.setattr(engine, name, function)
    return engine


def asked(engine: VllmEngine, id: str) -> str:
    """The key of a request for two samples of two turns."""
    task = a_task(id, follow_ups=(Message(text="Sure?"),))
    sampling = SamplingParams(max_tokens=9)
    return engine.add(GenerationRequest(id=id, task=task, num_samples=2, seed=0, sampling=sampling))


def assert_nothing_is_left(engine: VllmEngine, core: Core) -> None:
    assert not (engine._turns or engine._in_progress or engine._waiting or engine._calling or core.live)


def test_dialogues_that_end_together_are_answered_together(engine: VllmEngine, core: Core) -> None:
    key = asked(engine, "a")
    engine.step()
    assert not engine.answers and core.live == [f"{key}/0/1", f"{key}/1/1"]
    engine.step()
    answer = engine.answers.pop(key)
    assert isinstance(answer, tuple)
    assert [(each.id, each.turns) for each in answer] == [("a/0", ("x", "x")), ("a/1", ("x", "x"))]
    assert_nothing_is_left(engine, core)


def test_a_turn_that_is_refused_gives_up_its_request_and_no_other(engine: VllmEngine, core: Core) -> None:
    bad, good = asked(engine, "bad"), asked(engine, "good")
    core.refuses = lambda name: name == f"{bad}/1/1"  # the second turn of the second sample
    for _ in range(2):
        engine.step()
    refusal = engine.answers.pop(bad)
    assert isinstance(refusal, RolloutError) and "task 'bad' cannot be given to the engine: too large" in str(refusal)
    assert core.aborted == [f"{bad}/0/1"]
    assert isinstance(engine.answers.pop(good), tuple)
    assert_nothing_is_left(engine, core)


def test_a_first_turn_that_is_refused_gives_up_the_samples_before_it(engine: VllmEngine, core: Core) -> None:
    bad, good = asked(engine, "bad"), asked(engine, "good")
    core.refuses = lambda name: name == f"{bad}/1/0"
    for _ in range(2):
        engine.step()
    assert isinstance(engine.answers.pop(bad), RolloutError) and core.aborted == [f"{bad}/0/0"]
    assert isinstance(engine.answers.pop(good), tuple)
    assert_nothing_is_left(engine, core)


def test_a_task_that_cannot_be_put_is_answered_to_who_asked_and_the_others_go_on(
    engine: VllmEngine, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow_up(task: Any, number: int) -> Telling:
        if task.id == "bad":
            raise TaskError("the text of task 'bad' holds '[IMG]'")
        return Telling(task.follow_ups[number], Passage([0, 7]), 0)

    monkeypatch.setattr(engine, "_follow_up", follow_up)
    bad, good = asked(engine, "bad"), asked(engine, "good")
    for _ in range(2):
        engine.step()
    assert str(engine.answers.pop(bad)) == "the text of task 'bad' holds '[IMG]'"
    assert isinstance(engine.answers.pop(good), tuple)
    assert_nothing_is_left(engine, core)


def test_requests_that_nobody_waits_for_are_given_up_between_their_turns(engine: VllmEngine, core: Core) -> None:
    gone, kept = asked(engine, "gone"), asked(engine, "kept")
    engine.step()
    engine.forget([gone])
    assert core.aborted == [f"{gone}/0/1", f"{gone}/1/1"]
    engine.step()
    assert list(engine.answers) == [kept]
    engine.answers.clear()
    assert_nothing_is_left(engine, core)


CALL = '<tool_call>{"name": "say", "arguments": {"word": "aha"}}</tool_call>'


def with_tool(engine: VllmEngine, core: Core, tool: Tool) -> str:
    """Give the engine a tool that every first turn calls; returns the key of a request."""
    engine._tools = Toolbox({"say": tool}, ToolLimits(calls=1, images=0, image_pixels=1, timeout_s=20.0))
    core.writes = lambda name: CALL if name.endswith("/0") else "x"
    return asked(engine, "a")


def answer(engine: VllmEngine, key: str, *, steps: int) -> tuple[Trajectory, ...]:
    for _ in range(steps):
        engine.step()
    found = engine.answers.pop(key)
    assert isinstance(found, tuple)
    return found


def test_what_a_tool_answers_is_told_before_the_follow_up(engine: VllmEngine, core: Core) -> None:
    key = with_tool(engine, core, Says())
    for each in answer(engine, key, steps=3):
        assert each.turns == (CALL, "x", "x") and each.finish_reason == "stop"
        told = [(observation.message.role, observation.message.text) for observation in each.observations]
        assert told == [("tool", "aha"), ("user", "Sure?")]
        assert [(call.name, call.result) for call in each.tool_calls] == [("say", "aha")]
    assert_nothing_is_left(engine, core)


def test_a_tool_that_fails_ends_the_trajectory_as_aborted_and_not_as_what_the_policy_said(
    engine: VllmEngine, core: Core
) -> None:
    for each in answer(engine, with_tool(engine, core, Says(does="break")), steps=1):
        assert each.finish_reason == "abort" and each.turns == (CALL,)
        assert [(call.ok, call.result) for call in each.tool_calls] == [(False, "KeyError: 'no such table'")]
    assert_nothing_is_left(engine, core)


def test_an_image_that_the_engine_cannot_take_from_a_tool_costs_its_own_trajectory_alone(
    engine: VllmEngine, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(task: Any, answers: Any) -> Telling:
        raise ValueError("absolute aspect ratio must be smaller than 200")

    key = with_tool(engine, core, Says())
    core.writes = lambda name: CALL if name == f"{key}/0/0" else "x"
    monkeypatch.setattr(engine, "_results", refuse)
    first, second = answer(engine, key, steps=2)
    assert first.finish_reason == "abort" and second.turns == ("x", "x") and second.finish_reason == "stop"
    said = "aha: the engine cannot take it: absolute aspect ratio must be smaller than 200"
    assert [(call.ok, call.result) for call in first.tool_calls] == [(False, said)]
    assert_nothing_is_left(engine, core)


def test_others_are_written_while_a_remote_tool_is_waited_for(engine: VllmEngine, core: Core) -> None:
    Waits.let.clear()
    waiting = with_tool(engine, core, Waits())
    engine.step()
    core.writes = lambda name: "x"
    other = asked(engine, "b")
    answer(engine, other, steps=2)
    assert waiting not in engine.answers and len(engine._calling) == 2
    Waits.let.set()
    for _, _, calls in engine._calling:
        calls.wait(20)
    assert all(each.turns == (CALL, "x", "x") for each in answer(engine, waiting, steps=3))
    assert_nothing_is_left(engine, core)


def test_a_request_that_is_forgotten_is_not_gone_on_with_once_its_tools_answer(engine: VllmEngine, core: Core) -> None:
    Waits.let.clear()
    key = with_tool(engine, core, Waits())
    engine.step()
    engine.forget([key])
    Waits.let.set()
    engine.step()
    assert not engine.answers
    assert_nothing_is_left(engine, core)


@pytest.mark.parametrize(("role", "fits"), [("user", False), ("tool", True)])
def test_what_tools_answer_is_no_fault_of_the_task_however_long_it_is(
    engine: VllmEngine, core: Core, monkeypatch: pytest.MonkeyPatch, role: Any, fits: bool
) -> None:
    from vllm.exceptions import VLLMClientError
    from vllm.renderers.params import TokenizeParams

    def render(prompts: Sequence[dict[str, str]], params: TokenizeParams, **_: Any) -> list[Any]:
        return [params.apply_post_tokenization(None, {"prompt_token_ids": [7] * len(prompts[0]["prompt"])})]

    renderer = SimpleNamespace(default_chat_tok_params=TokenizeParams(max_total_tokens=100), render_cmpl=render)
    monkeypatch.setattr(core, "renderer", renderer, raising=False)
    monkeypatch.delattr(engine, "_passage")
    engine.processor = SimpleNamespace(convert_ids_to_tokens=str, all_special_tokens=[])
    if fits:
        assert len(engine._telling("x" * 101, Message(text="x" * 101, role=role)).passage.token_ids) == 101
    else:
        with pytest.raises(VLLMClientError, match="maximum context length is 100"):
            engine._telling("x" * 101, Message(text="x" * 101, role=role))
