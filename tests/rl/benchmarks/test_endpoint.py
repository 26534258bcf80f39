"""A model behind an OpenAI-compatible server: what it is asked, what comes back, and what is lost."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

import rl.benchmarks.endpoint
from rewards.config import load_rewards
from rewards.judge import Endpoint
from rewards.service import RewardService
from rl.benchmarks.endpoint import EndpointPool
from rl.collect import make_requests
from rl.errors import ConfigError
from rl.types import EncodedImage, Message, SamplingParams, ScoredTrajectory, Task, Trajectory
from tests.rewards.fake_judge import Answer, FakeServer, serve
from tests.samples import a_task, a_trajectory

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, stop=("</answer>",))


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.benchmarks.endpoint, "FIRST_REST_S", 0.01)


def pool_of(server: FakeServer, **fields: Any) -> EndpointPool:
    return EndpointPool(endpoint=Endpoint(url=server.url, model="m"), **fields)


async def asked(pool: EndpointPool, *tasks: Task, num_samples: int = 1) -> list[Trajectory]:
    requests = make_requests(
        tasks or [a_task()], kind="eval", step=0, first=0, num_samples=num_samples, sampling=GREEDY, seed=0
    )
    groups = [group async for group in pool.generate(requests)]
    return sorted((trajectory for group in groups for trajectory in group), key=lambda each: each.id)


async def test_the_policys_own_prompt_is_asked_with_images_as_data_urls() -> None:
    content = BytesIO()
    Image.new("RGB", (4, 3)).save(content, "PNG")
    image = EncodedImage(content=content.getvalue(), width=4, height=3)
    with serve(lambda _: Answer("<think>x</think><answer>yes")) as server:
        (found,) = await asked(pool_of(server), a_task(images=(image,)))
    (body,) = server.requests
    system, user = body["messages"]
    assert system["content"].startswith("Think step by step inside <think></think>, then give yes or no")
    assert user["content"][1] == {"type": "text", "text": "Is it?"}
    prefix, encoded = user["content"][0]["image_url"]["url"].split(",")
    assert prefix == "data:image/png;base64" and base64.b64decode(encoded) == image.content
    assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == ("m", 0.0, 64, ["</answer>"])
    assert found.text == "<think>x</think><answer>yes</answer>" and found.finish_reason == "stop"
    assert (found.source, found.policy_version, found.length_tokens) == ("endpoint m", -1, 0)


async def test_samples_of_one_task_differ_by_their_seed() -> None:
    with serve(lambda body: Answer(str(body["seed"]))) as server:
        found = await asked(pool_of(server), num_samples=3)
    assert len({trajectory.text for trajectory in found}) == 3
    assert [trajectory.id for trajectory in found] == [f"eval-000000-0000/{sample}" for sample in range(3)]


def replied(text: str, *, tokens: Any = None, finish_reason: str = "stop") -> Answer:
    """A reply for which the server reports so many completion tokens."""
    reply = {"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}
    return Answer(
        body=json.dumps(reply | ({"usage": {"completion_tokens": tokens}} if tokens is not None else {})).encode()
    )


DOUBTED = a_task(follow_ups=(Message(text="Sure?"), Message(text="And now?")))


async def test_what_the_user_says_next_is_put_after_each_reply_until_all_is_said() -> None:
    image = EncodedImage(content=b"\x89PNG..", width=4, height=3)
    replies = iter([replied("<think>x</think>yes", tokens=10), replied("no", tokens=20), replied("yes", tokens=1)])
    task = a_task(follow_ups=(Message(text="Sure?"), Message(text="And here?", images=(image,))))
    with serve(lambda _: next(replies)) as server:
        (found,) = await asked(pool_of(server), task)
    first, second, third = (body["messages"] for body in server.requests)
    assert second == [
        *first,
        {"role": "assistant", "content": "<think>x</think>yes"},
        {"role": "user", "content": "Sure?"},
    ]
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORy4u"}}
    assert third[len(second) :] == [
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [shown, {"type": "text", "text": "And here?"}]},
    ]
    assert [body["max_tokens"] for body in server.requests] == [64, 54, 34]  # 64, less 10, less 20
    assert len({body["seed"] for body in server.requests}) == 3
    assert found.turns == ("<think>x</think>yes", "no", "yes") and found.finish_reason == "stop"
    assert [each.message for each in found.observations] == list(task.follow_ups)


@pytest.mark.parametrize(
    ("replies", "most", "turns", "finish_reason"),
    [
        # 64 tokens in all; what the policy would be told is not told where it could say nothing to it.
        ([replied("yes", tokens=64)], [64], ("yes",), "length"),
        (
            [replied("yes", tokens=40), replied("n", tokens=24, finish_reason="length")],
            [64, 24],
            ("yes", "n"),
            "length",
        ),
        ([replied("y", tokens=9, finish_reason="length")], [64], ("y",), "length"),
        # Bytes where tokens are not reported: 2 an umlaut, hence 20, and 44 are left; 3 more, and 41 are.
        ([replied("ä" * 10), replied("yes"), replied("no")], [64, 44, 41], ("ä" * 10, "yes", "no"), "stop"),
        (
            [replied("yes", tokens=0), replied("yes", tokens="9"), replied("no")],
            [64, 61, 58],
            ("yes", "yes", "no"),
            "stop",
        ),
    ],
)
async def test_the_token_limit_bounds_all_turns_together(
    replies: list[Answer], most: list[int], turns: tuple[str, ...], finish_reason: str
) -> None:
    left = iter(replies)
    with serve(lambda _: next(left)) as server:
        (found,) = await asked(pool_of(server), DOUBTED)
    assert [body["max_tokens"] for body in server.requests] == most
    assert (found.turns, found.finish_reason) == (turns, finish_reason)


async def test_a_reply_that_is_lost_in_a_later_turn_loses_the_answer() -> None:
    replies = iter([replied("yes"), Answer("", status=400, body=b"too long")])
    with serve(lambda _: next(replies)) as server:
        (found,) = await asked(pool := pool_of(server), DOUBTED)
    assert (found.turns, found.finish_reason) == (("yes", ""), "abort")
    assert pool.lost == {found.id: "HTTP 400 too long (attempt 1 of 4)"}


async def test_what_cannot_be_sent_back_as_it_is_loses_nothing() -> None:
    replies = iter([replied("a\ud800b"), replied("yes"), replied("yes")])
    with serve(lambda _: next(replies)) as server:
        (found,) = await asked(pool_of(server), DOUBTED)
    assert server.requests[1]["messages"][2]["content"] == "a?b"
    assert found.turns == ("a\ud800b", "yes", "yes")


async def test_a_passing_fault_is_tried_again() -> None:
    answers = iter([Answer("", status=503), Answer("", status=429, headers={"Retry-After": "0"}), Answer("yes")])
    with serve(lambda _: next(answers)) as server:
        (found,) = await asked(pool := pool_of(server))
    assert found.text == "yes" and not pool.lost and len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "requests", "reason"),
    [
        (Answer("", status=500, body=b"overloaded"), 2, "HTTP 500 overloaded (attempt 2 of 2)"),
        (Answer("", status=400, body=b"too long"), 1, "HTTP 400 too long (attempt 1 of 2)"),
        (Answer("", drop=True), 2, "(attempt 2 of 2)"),
        (Answer("", delay_s=0.6), 2, "no reply within 0.2 s"),
        (Answer(body=b"[]"), 1, "sent no chat completion"),
        (Answer("no", finish_reason="content_filter"), 1, "content filter withheld"),
    ],
)
async def test_a_request_that_fails_for_good_is_a_lost_answer(answer: Answer, requests: int, reason: str) -> None:
    with serve(lambda _: answer) as server:
        (found,) = await asked(pool := pool_of(server, attempts=2, timeout_s=0.2 if answer.delay_s else 30.0))
    assert (found.text, found.finish_reason) == ("", "abort")
    assert reason in pool.lost[found.id] and len(server.requests) == requests


async def test_a_lost_answer_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def judgement(body: dict[str, Any]) -> Answer:
        return Answer("", status=400) if body["messages"][1]["content"] == "Broken?" else Answer("yes")

    with serve(judgement) as server:
        found = await asked(pool := pool_of(server), a_task("a"), a_task("b", question="Broken?"), a_task("c"))
    assert [each.finish_reason for each in found] == ["stop", "abort", "stop"] and len(pool.lost) == 1


async def test_reasoning_that_a_server_takes_apart_is_put_together_again() -> None:
    message = {"content": "<answer>yes", "reasoning_content": "because"}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    with serve(lambda _: Answer(body=body)) as server:
        (found,) = await asked(pool_of(server))
    assert found.text == "<think>because</think><answer>yes</answer>" and found.answer_text == "yes"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "<think>x</think><answer>yes"}, "<think>x</think><answer>yes</answer>"),
        ({"content": ""}, "</answer>"),
        ({"content": None, "reasoning": "cut"}, "<think>cut</think>"),  # it stopped within the reasoning
    ],
)
async def test_the_stop_string_ends_the_text_as_an_engines_where_the_server_names_it(
    message: dict[str, Any], text: str
) -> None:
    choice = {"message": message, "finish_reason": "stop", "stop_reason": "</answer>"}
    with serve(lambda _: Answer(body=json.dumps({"choices": [choice]}).encode())) as server:
        (found,) = await asked(pool_of(server))
    assert found.text == text


OPEN = "<think>x</think><answer>yes"
CLOSED = "<think>x</think><answer>yes</answer>"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"finish_reason": "stop"}, CLOSED),  # it does not say by what
        ({"finish_reason": "stop", "matched_stop": "</answer>"}, CLOSED),
        ({"finish_reason": "stop", "message": {"content": CLOSED}}, CLOSED),  # it cuts nothing off
        ({"finish_reason": "stop", "message": {"content": CLOSED}, "stop_reason": "</answer>"}, CLOSED),
        ({"finish_reason": "stop", "stop_reason": None}, OPEN),  # the model ended there of itself
        ({"finish_reason": "stop", "matched_stop": "<|endoftext|>"}, OPEN),
        ({"finish_reason": "length"}, OPEN),
        ({"finish_reason": "stop", "message": {"content": "no block"}}, "no block"),
    ],
)
async def test_an_answer_ends_as_an_engine_ends_it_whatever_the_server_says_of_its_stop(
    choice: dict[str, Any], text: str
) -> None:
    body = json.dumps({"choices": [{"message": {"content": OPEN}, **choice}]}).encode()
    with serve(lambda _: Answer(body=body)) as server:
        (found,) = await asked(pool_of(server))
    assert found.text == text


async def test_an_answer_that_no_stop_string_could_end_stays_open() -> None:
    with serve(lambda _: Answer(OPEN)) as server:
        (found,) = await asked(pool_of(server, parameters={"stop": None}))
    assert found.text == OPEN


async def test_a_completion_cut_at_the_stop_string_scores_as_the_whole_one_of_an_engine() -> None:
    with serve(lambda _: Answer(OPEN)) as server:
        (found,) = await asked(pool_of(server))
    section = {"scorers": {"answer": {"use": "answer"}, "letters": {"use": "tests.scorers:LetterShare"}}}
    with RewardService(load_rewards(section)) as service:
        ours, engines = await service.score_many([found, a_trajectory(CLOSED, task=found.task)])
    assert isinstance(ours, ScoredTrajectory) and isinstance(engines, ScoredTrajectory)
    assert [record.score for record in ours.scores.values()] == [record.score for record in engines.scores.values()]
    assert ours.reward == engines.reward


async def test_parameters_are_added_and_taken_out() -> None:
    with serve(lambda _: Answer("yes")) as server:
        await asked(pool_of(server, parameters={"stop": None, "max_completion_tokens": 9, "max_tokens": None}))
    (body,) = server.requests
    assert "stop" not in body and "max_tokens" not in body and body["max_completion_tokens"] == 9


async def test_the_key_comes_from_the_environment_and_stands_in_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_KEY", "s3cret")
    with serve(lambda _: Answer("", status=401, body=b"bad key s3cret")) as server:
        endpoint = Endpoint(url=server.url, model="m", api_key_env="MODEL_KEY")
        await asked(pool := EndpointPool(endpoint=endpoint))
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert list(pool.lost.values()) == ["HTTP 401 bad key *** (attempt 1 of 4)"]
    monkeypatch.delenv("MODEL_KEY")
    with pytest.raises(ConfigError, match="MODEL_KEY must hold the key"):
        await asked(EndpointPool(endpoint=endpoint))


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    with serve(lambda _: Answer("yes", delay_s=0.02)) as server:
        endpoint = Endpoint(url=server.url, model="m", max_concurrency=3)
        await asked(EndpointPool(endpoint=endpoint), *(a_task(str(number)) for number in range(9)))
    assert server.most_at_once <= 3
