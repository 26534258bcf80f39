"""A model behind an endpoint calls the tools that the config names; they run on this side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rewards.judge import Endpoint
from rl.benchmarks.endpoint import EndpointPool
from rl.cli import main
from rl.collect import make_requests
from rl.types import Measurement, Message, SamplingParams, Task, ToolCall, Trajectory
from rollouts.images import encode
from rollouts.tools.images import Zoom
from rollouts.tools.record import ReadRecord
from rollouts.tools.tool import Scene, Tool, ToolResult
from rollouts.tools.toolbox import Toolbox, ToolLimits
from tests.rewards.fake_judge import Answer, FakeServer, serve
from tests.samples import a_task

IMAGE = encode(PIL.Image.new("RGB", (60, 60), "red"))
TASK = a_task(record={"heart_rate": Measurement(value=72.0, unit="1/min")}, images=(IMAGE,))


@dataclass(frozen=True, kw_only=True)
class Broken(Tool):
    description = "It fails."
    parameters = {"type": "object"}  # noqa: RUF012

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        raise OSError("the disk is full")


async def asked(server: FakeServer, task: Task = TASK) -> tuple[Trajectory, dict[str, str]]:
    tools = {"read": ReadRecord(), "zoom": Zoom(side=56), "broken": Broken()}
    limits = ToolLimits(calls=3, images=2, image_pixels=10_000, timeout_s=5.0)
    pool = EndpointPool(endpoint=Endpoint(url=server.url, model="m"), attempts=1, tools=Toolbox(tools, limits))
    sampling = SamplingParams(temperature=0.0, max_tokens=300)
    requests = make_requests([task], kind="eval", step=0, first=0, num_samples=1, sampling=sampling, seed=0)
    ((found,),) = [group async for group in pool.generate(requests)]
    return found, pool.lost


def calling(*calls: tuple[str, str], text: str | None = None, **more: Any) -> Answer:
    """A reply with tool calls, each a name and arguments."""
    asked = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text, "tool_calls": asked} | more
    return Answer(body=json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode())


async def test_calls_are_answered_by_the_protocol_and_stand_in_the_trajectory_as_a_policy_writes_them() -> None:
    replies = iter([calling(("read", '{"names": ["heart_rate"]}'), text="Let me see."), Answer("72")])
    with serve(lambda _: next(replies)) as server:
        found, lost = await asked(server)
    first, second = server.requests
    assert [tool["function"]["name"] for tool in first["tools"]] == ["read", "zoom", "broken"] and not lost
    said, told = second["messages"][len(first["messages"]) :]
    assert (said["content"], said["tool_calls"][0]["function"]["name"]) == ("Let me see.", "read")
    assert told == {"role": "tool", "tool_call_id": "call_0", "content": "- heart_rate 72 1/min"}
    call = '<tool_call>{"name": "read", "arguments": {"names": ["heart_rate"]}}</tool_call>'
    assert found.turns == (f"Let me see.{call}", "72") and found.finish_reason == "stop"
    arguments = {"names": ["heart_rate"]}
    assert found.tool_calls == (ToolCall(name="read", arguments=arguments, result="- heart_rate 72 1/min", ok=True),)
    assert found.observations[0].message == Message(text="- heart_rate 72 1/min", role="tool")


async def test_what_a_tool_shows_follows_as_the_users_image() -> None:
    replies = iter([calling(("zoom", '{"box": [0, 0, 30, 30]}')), Answer("red")])
    with serve(lambda _: next(replies)) as server:
        found, _ = await asked(server)
    tool, user = server.requests[1]["messages"][-2:]
    assert tool["content"].startswith("Image 2 (56 x 56 pixels)")
    assert user["role"] == "user" and user["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert [(image.width, image.height) for image in found.observations[0].message.images] == [(56, 56)]


async def test_a_call_that_the_server_left_in_the_text_is_answered_in_text() -> None:
    text = '<tool_call>{"name": "read", "arguments": {"names": ["heart_rate"]}}</tool_call>'
    replies = iter([Answer(text), Answer("72")])
    with serve(lambda _: next(replies)) as server:
        found, _ = await asked(server)
    assert server.requests[1]["messages"][-1] == {
        "role": "user",
        "content": "<tool_response>\n- heart_rate 72 1/min\n</tool_response>",
    }
    assert found.turns == (text, "72")


@pytest.mark.parametrize("arguments", ["{", "[]", '{"names": ["</tool_call>"]}', '{"names": ["x"]}'])
async def test_a_call_that_is_none_is_refused_and_the_model_goes_on(arguments: str) -> None:
    replies = iter([calling(("read", arguments)), Answer("?")])
    with serve(lambda _: next(replies)) as server:
        found, lost = await asked(server)
    said, told = server.requests[1]["messages"][-2:]
    assert isinstance(json.loads(said["tool_calls"][0]["function"]["arguments"]), dict)
    assert told["content"].startswith("refused: ") and len(found.tool_calls) == 1 and not lost


async def test_results_come_before_what_the_user_says_next() -> None:
    replies = iter([calling(("read", '{"names": ["heart_rate"]}')), Answer("72"), Answer("yes")])
    with serve(lambda _: next(replies)) as server:
        found, _ = await asked(server, a_task(record=TASK.record, follow_ups=(Message(text="Sure?"),)))
    assert [each.message.role for each in found.observations] == ["tool", "user"]
    assert server.requests[2]["messages"][-1]["content"] == "Sure?"


async def test_a_tool_that_fails_loses_the_answer_and_says_why() -> None:
    with serve(lambda _: calling(("broken", "{}"))) as server:
        found, lost = await asked(server)
    assert found.finish_reason == "abort" and len(found.tool_calls) == 1
    assert list(lost.values()) == ["the tool broken failed: OSError: the disk is full"]


async def test_a_model_that_calls_on_and_on_ends_in_length() -> None:
    with serve(lambda _: calling(("read", '{"names": ["heart_rate"]}'))) as server:
        found, _ = await asked(server)
    assert found.finish_reason == "length"
    assert [call.ok for call in found.tool_calls][:4] == [True, True, True, False]


@pytest.mark.parametrize("calls", [[{"function": {"name": "read"}}], "read", [{"id": 1, "function": {}}]])
async def test_tool_calls_of_another_form_are_a_lost_reply(calls: Any) -> None:
    with serve(lambda _: calling(tool_calls=calls)) as server:
        _, lost = await asked(server)
    (reason,) = lost.values()
    assert reason.startswith("sent tool calls of another form")


def test_a_tool_that_does_not_exist_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rollouts.tools={it: {use: zoooom}}", "--benchmarks", "x", "--endpoint", "http://127.0.0.1:1/v1"]
    assert main(["evaluate", *arguments, "--model", "m", "--out", str(tmp_path / "out")]) == 2
    assert "rollouts.tools.it.use: no tool is called 'zoooom'" in capsys.readouterr().err
