"""What is read as a call, what is told of it, and whose fault it is where it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from rl.types import EncodedImage, ToolCall
from rollouts.images import encode
from rollouts.tools.tool import Scene, Tool, ToolRefusal, ToolResult
from rollouts.tools.toolbox import Answered, Toolbox, ToolLimits, call_texts
from tests.samples import a_task

LIMITS = ToolLimits(calls=3, images=2, image_pixels=101, timeout_s=5.0)


def an_image(width: int = 8, height: int = 6) -> EncodedImage:
    from PIL import Image

    return encode(Image.new("RGB", (width, height)))


@dataclass(frozen=True, kw_only=True)
class Says(Tool):
    """Says what it is told to, or does what ``does`` names."""

    description: ClassVar[str] = "Says a word."
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"word": {"type": "string", "maxLength": 100}, "pixels": {"type": "integer"}},
        "additionalProperties": False,
    }

    does: str = "say"

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        match self.does:
            case "refuse":
                raise ToolRefusal("not that word")
            case "break":
                raise KeyError("no such table")
            case "text":
                return "bare"  # type: ignore[return-value]
            case "odd":
                return ToolResult(text="a<|end|><|end|>b\ud800")
            case "none":
                return ToolResult(text=None)  # type: ignore[arg-type]
            case "show" if arguments.get("pixels") == 0:
                return ToolResult(text="a line", images=(EncodedImage(content=b"", width=1, height=101),))
            case "show":
                return ToolResult(text="a square", images=(an_image(arguments.get("pixels", 8), 6),))
        return ToolResult(text=arguments.get("word", ""))


@dataclass(frozen=True, kw_only=True)
class Waits(Says):
    """Answers from elsewhere, once it is let to."""

    remote: ClassVar[bool] = True
    let: ClassVar[threading.Event] = threading.Event()

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        assert self.let.wait(20)
        return ToolResult(text=threading.current_thread().name)


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    Waits.let.clear()
    yield
    Waits.let.set()


def answers(turn: str, limits: ToolLimits = LIMITS, *, made: int = 0, shown: int = 0, **tools: Tool) -> list[Answered]:
    box = Toolbox(tools or {"say": Says()}, limits, unsayable=("<|end|>", "<|end|><|end|>"))
    calls = box.begin(turn, Scene(task=a_task(), images=(an_image(),) * shown), made=made)
    assert calls and calls.done
    return calls.answers()


def call(arguments: str = "{}", name: str = "say") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


class TestReading:
    @pytest.mark.parametrize(
        ("turn", "found"),
        [
            ("", []),
            ("<answer>yes</answer>", []),
            ("<tool_call> a </tool_call> and\n<tool_call>b</tool_call>", ["a", "b"]),
            ("<tool_call>a", []),
            ("a</tool_call>", []),
            ("</tool_call><tool_call>a</tool_call>", ["a"]),
            ("<think><tool_call>a</tool_call></think>", []),
            ("<think><tool_call>a</tool_call>", []),
            ("<think>x</think><tool_call>a</tool_call>", ["a"]),
            ("<tool_call>a</tool_call><think>x", ["a"]),
            ("<tool_call>a</tool_call><think>x</think><tool_call>b</tool_call>", ["b"]),  # what it settled on last
        ],
    )
    def test_calls_stand_between_their_tags_outside_of_thoughts(self, turn: str, found: list[str]) -> None:
        assert call_texts(turn) == found

    def test_a_turn_without_a_call_begins_none(self) -> None:
        box = Toolbox({"say": Says()}, LIMITS)
        assert box.begin("nothing", Scene(task=a_task(), images=()), made=0) is None

    def test_without_tools_a_call_is_a_text_like_any_other(self) -> None:
        assert Toolbox({}, LIMITS).begin(call(), Scene(task=a_task(), images=()), made=0) is None

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("say it", "Expecting value"),
            ("[]", "it has no name"),
            ('{"name": 3}', "it has no name"),
            ('{"name": "say", "arguments": [1]}', "its arguments are no object"),
            ('{"name": "say", "arguments": {"word": NaN}}', "NaN is no number"),
            ('{"name": "say", "arguments": {"word": 1e999}}', "1e999 is no number"),
            ('{"name": "say", "arguments": {"word": 1234567890123456789}}', "1234567890123456789 is too large"),
            ('{"name": "say", "arguments": {"word": ' + "[" * 20 + "]" * 20 + "}}", "nested more than 16 levels deep"),
            ("[" * 15_000, "recursion"),
            (r'{"name": "say", "arguments": {"word": "\ud800"}}', "surrogates not allowed"),
            (r'{"name": "\ud800"}', "surrogates not allowed"),
            ("x" * 20_001, "at most 20,000 characters; these are 20,001"),
        ],
    )
    def test_what_is_no_call_is_refused_with_the_form_of_one(self, text: str, reason: str) -> None:
        (answered,) = answers(f"<tool_call>{text}</tool_call>")
        assert not answered.broken
        assert (answered.call.name, answered.call.arguments, answered.call.ok) == ("", {}, False)
        assert answered.call.result.startswith('refused: a call is {"name": …, "arguments": {…}} in JSON: ')
        assert reason in answered.call.result

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (call(name="shout"), "refused: no tool is called 'shout'; there are say"),
            (call('{"word": 3}'), "refused: arguments.word: 3 is not of type 'string'"),
            (
                call('{"loud": true}'),
                "refused: arguments: Additional properties are not allowed ('loud' was unexpected)",
            ),
        ],
    )
    def test_a_call_that_does_not_fit_is_refused_with_the_reason(self, text: str, reason: str) -> None:
        (answered,) = answers(text)
        assert (answered.call.result, answered.call.ok, answered.broken) == (reason, False, False)


class TestAnswers:
    def test_a_call_is_told_with_what_was_asked(self) -> None:
        (answered,) = answers(call('{"word": "aha"}'))
        asked = ToolCall(name="say", arguments={"word": "aha"}, result="aha", ok=True)
        assert answered == Answered(call=asked, images=(), broken=False)

    def test_calls_of_a_turn_are_answered_in_their_order(self) -> None:
        told = answers(call('{"word": "a"}') + call('{"word": 1}') + call('{"word": "b"}'))
        assert [each.call.ok for each in told] == [True, False, True]
        assert [each.call.result for each in told if each.call.ok] == ["a", "b"]

    def test_images_are_numbered_on_from_those_before_and_bounded_in_number(self) -> None:
        told = answers(call(name="show") * 2, shown=1, show=Says(does="show"))
        assert told[0].call.result == "Image 2 (8 x 6 pixels): a square" and len(told[0].images) == 1
        assert told[1].call.result == "refused: no more than 2 images can be shown" and not told[1].images
        assert not told[1].broken

    @pytest.mark.parametrize(
        ("width", "reason"),
        [
            (17, "no image of more than 101 pixels can be shown; it has 17 x 6 pixels"),
            (0, "no image so narrow can be shown"),
        ],  # 17 · 6 = 102
    )
    def test_an_image_that_cannot_be_shown_is_refused_for_the_policy_may_have_asked_for_it(
        self, width: int, reason: str
    ) -> None:
        (answered,) = answers(call(f'{{"pixels": {width}}}'), show=Says(does="show"), say=Says(does="show"))
        assert answered.call.result.startswith("refused: ") and reason in answered.call.result
        assert not answered.broken and not answered.images

    def test_calls_beyond_the_bound_are_refused(self) -> None:
        told = answers(call() * 2, made=2)
        assert [each.call.result for each in told] == ["", "refused: no more than 3 calls are answered"]

    def test_a_refusal_is_told_and_nobodys_fault(self) -> None:
        (answered,) = answers(call(), say=Says(does="refuse"))
        assert (answered.call.result, answered.call.ok, answered.broken) == ("refused: not that word", False, False)

    @pytest.mark.parametrize(
        ("does", "arguments", "reason"),
        [
            ("break", "{}", "KeyError: 'no such table'"),
            ("text", "{}", "a tool returns a ToolResult; it returned 'bare'"),
            ("none", "{}", "a tool returns a ToolResult; it returned ToolResult(text=None, images=())"),
        ],
    )
    def test_a_failure_of_the_tool_is_told_apart_from_a_refusal(self, does: str, arguments: str, reason: str) -> None:
        (answered,) = answers(call(arguments), say=Says(does=does))
        assert (answered.call.result, answered.call.ok, answered.broken) == (reason, False, True)

    def test_special_tokens_in_a_result_are_taken_apart_and_lone_surrogates_replaced(self) -> None:
        (answered,) = answers(call(), say=Says(does="odd"))
        assert answered.call.result == "a< |end|>< |end|>b?"

    def test_a_long_result_is_cut_with_a_word_on_how_much_is_missing(self) -> None:
        @dataclass(frozen=True, kw_only=True)
        class Long(Says):
            def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
                return ToolResult(text="x" * 21_500)

        (answered,) = answers(call(), say=Long())
        assert answered.call.result == "x" * 20_000 + " … (1,500 further characters)"


class TestRemote:
    def begun(self, *, timeout_s: float) -> Any:
        limits = ToolLimits(calls=3, images=2, image_pixels=100, timeout_s=timeout_s)
        calls = Toolbox({"wait": Waits()}, limits).begin(call(name="wait") * 2, Scene(task=a_task(), images=()), made=0)
        assert calls
        return calls

    def test_calls_are_under_way_together_and_done_once_all_are(self) -> None:
        calls = self.begun(timeout_s=20.0)
        assert not calls.done
        Waits.let.set()
        calls.wait(20)
        assert calls.done
        names = {each.call.result for each in calls.answers()}
        assert len(names) == 2 and all(name.startswith("tool") for name in names)

    def test_one_that_does_not_answer_in_time_has_failed(self) -> None:
        calls = self.begun(timeout_s=0.05)
        calls.wait(0.1)
        assert calls.done
        assert [(each.call.result, each.broken) for each in calls.answers()] == [("no answer within 0.05 s", True)] * 2
