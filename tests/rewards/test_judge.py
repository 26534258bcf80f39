from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from rewards.config import ConfiguredScorer
from rewards.judge import Endpoint, EngineEndpoint, Judge, JudgeFailure
from rewards.judges import client as judge_client
from rewards.judges.chat import retry_after_s
from rewards.judges.prompt import Question
from rewards.rubrics.judged import VERDICT_SCHEMA
from rewards.scorer import Score, Scorer, Trajectory
from rewards.service import RewardService
from rl.types import EncodedImage
from tests.rewards.fake_judge import Answer, FakeServer, serve, verdict

FAST = {"attempts": 3, "timeout_s": 2.0, "deadline_s": 5.0}


def a_question(text: str = "some text", **fields: Any) -> Question:
    return Question(instructions="Judge.", material={"text": text}, task="Is it so?", schema=VERDICT_SCHEMA, **fields)


def a_judge(*servers: FakeServer, model: str = "m", **fields: Any) -> Judge:
    return Judge(endpoints=tuple(Endpoint(url=server.url, model=model) for server in servers), **(FAST | fields))


async def ask(judge: Judge, text: str = "some text") -> bool:
    return bool((await judge.ask(a_question(text))).content["criteria_met"])


def in_turn(*answers: Answer) -> Any:
    left = iter(answers)
    return lambda body: next(left)


@pytest.fixture
def met() -> Iterator[FakeServer]:
    with serve(lambda body: verdict(True)) as server:
        yield server


class TestRequest:
    async def test_it_is_a_chat_with_a_schema_and_a_seed(self, met: FakeServer) -> None:
        assert await ask(a_judge(met, temperature=0.5, max_tokens=99))
        (body,) = met.requests
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("m", 0.5, 99, 0)
        assert body["response_format"]["json_schema"] == {"name": "verdict", "strict": True, "schema": VERDICT_SCHEMA}

    async def test_parameters_are_added_and_null_takes_one_out(self, met: FakeServer) -> None:
        parameters = {"max_tokens": None, "max_completion_tokens": 50, "temperature": None}
        assert await ask(a_judge(met, parameters=parameters, structured="none"))
        assert set(met.requests[0]) == {"model", "messages", "seed", "max_completion_tokens"}

    async def test_images_come_before_the_text(self, met: FakeServer) -> None:
        image = EncodedImage(content=b"\x89PNG...", width=1, height=1)
        await a_judge(met).ask(a_question(images=(image,)))
        picture, text = met.requests[0]["messages"][1]["content"]
        assert picture == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORy4uLg=="}}
        assert text["text"].startswith("Is it so?")

    async def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
        self, met: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = Endpoint(url=met.url, model="m", api_key_env="A_JUDGES_KEY")
        monkeypatch.setenv("A_JUDGES_KEY", "sk-secret")
        sealed = endpoint.with_key()
        monkeypatch.delenv("A_JUDGES_KEY")  # another process may not have it
        assert await ask(Judge(endpoints=(sealed,)))
        assert met.headers[0]["Authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in repr(sealed)

    async def test_a_key_that_the_server_repeats_is_struck_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_JUDGES_KEY", "sk-secret")
        with serve(lambda body: Answer(status=401, body=b"no such key: sk-secret")) as server:
            judge = Judge(endpoints=(Endpoint(url=server.url, model="m", api_key_env="A_JUDGES_KEY"),))
            with pytest.raises(JudgeFailure, match=r"HTTP 401 no such key: \*\*\*"):
                await ask(judge)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(text="Yes, the criterion is met."), "malformed verdict"),
        (Answer(text='{"explanation": "x", "criteria_met": "true"}'), "malformed verdict: 'true' is not of type"),
        (Answer(text='{"explanation": "x", "criteria_met": 1}'), "malformed verdict: 1 is not of type"),
        (Answer(text='{"criteria_met": true}'), "malformed verdict: 'explanation' is a required"),
        (Answer(text='{"explanation": "x", "criteria_met": true, "sure": 1}'), "malformed verdict: Additional"),
        (Answer(text='{"explanation": "", "criteria_met": false, "criteria_met": true}'), "stands there twice"),
        (Answer(text='{"explanation": "x", "criteria_met": true} and more'), "malformed verdict"),
        (Answer(text="[" * 100_000), "malformed verdict"),
        (Answer(text=""), "malformed verdict"),
        (Answer(text=None), "sent no text: None"),
        (Answer(text=None, refusal="I cannot help with that"), "refused to judge: I cannot help"),
        (Answer(text="", finish_reason="content_filter"), "refused to judge: content_filter"),
        (Answer(text='{"explanation": "and so', finish_reason="length"), "the verdict was cut off"),
        (Answer(body=b"<html>"), "sent no chat completion"),
        (Answer(body=b"{}"), "sent no chat completion: KeyError: 'choices'"),
        (Answer(body=b'{"choices": []}'), "sent no chat completion"),
        (Answer(body=b'{"choices": [{"message": null}]}'), "sent no chat completion"),
        (Answer(body=b"[" * 100_000), "sent no chat completion"),
        (Answer(body=b"x" * (1 << 21)), "sent more than 1048576 bytes"),
        (Answer(status=400, body=b"max_tokens is not known"), "HTTP 400 max_tokens is not known"),
        (Answer(status=404, body=b'{"error": "no model m"}'), "HTTP 404 .*no model m"),
        (Answer(status=302, headers={"Location": "/"}, body=b""), "HTTP 302"),
        (Answer(status=500, body=b"oh"), "HTTP 500 oh"),
        (Answer(drop=True), "RemoteProtocolError: Server disconnected"),
        (Answer(delay_s=0.4), "no answer within 0.2 s"),
    ],
)
async def test_whatever_is_not_a_verdict_is_a_failure_with_its_reason(answer: Answer, reason: str) -> None:
    with serve(lambda body: answer) as server, pytest.raises(JudgeFailure, match=reason):
        await ask(a_judge(server, attempts=1, timeout_s=0.2 if answer.delay_s else 5))


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    with pytest.raises(JudgeFailure, match=r"judge gave no verdict in 2 attempts: http://.*:9/v1 \(m\): Connect"):
        await ask(Judge(endpoints=(Endpoint(url="http://127.0.0.1:9/v1", model="m"),), attempts=2))


@pytest.mark.parametrize(
    "text", ['{"explanation": "x", "criteria_met": true}', '```json\n{"explanation": "x", "criteria_met": true}\n```\n']
)
async def test_a_verdict_may_stand_bare_or_in_one_block(text: str) -> None:
    with serve(lambda body: Answer(text=text)) as server:
        assert await ask(a_judge(server))


class TestAttempts:
    async def test_what_may_pass_is_tried_again_and_what_will_not_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(judge_client, "FIRST_REST_S", 0.01)
        for status, tries in ((503, 3), (429, 3), (400, 1), (401, 1)):
            with serve(lambda body, status=status: Answer(status=status, body=b"no")) as server:  # type: ignore[misc]
                with pytest.raises(JudgeFailure):
                    await ask(a_judge(server))
                assert len(server.requests) == tries

    async def test_after_a_failure_there_may_be_a_verdict(self) -> None:
        with serve(in_turn(Answer(status=500), Answer(text="nonsense"), verdict(False))) as server:
            assert not await ask(a_judge(server))
            # What could not be read is asked for with another seed; a server error says nothing about the seed.
            assert [body["seed"] for body in server.requests] == [0, 0, 1]

    @pytest.mark.slow
    async def test_it_waits_as_long_as_the_server_asks(self) -> None:
        busy = Answer(status=429, headers={"Retry-After": "1"}, body=b"")
        with serve(in_turn(busy, verdict(True))) as server:
            began = time.monotonic()
            assert await ask(a_judge(server))
            assert time.monotonic() - began >= 0.9

    def test_the_time_to_wait_is_given_in_seconds_or_as_a_date(self) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
        assert retry_after_s(" 7 ") == 7
        assert 80 < (retry_after_s(date) or 0) <= 90
        assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0  # long past
        assert [retry_after_s(header) for header in ("", "soon", "-3", "1e9")] == [None] * 4

    async def test_a_wait_beyond_the_deadline_is_not_begun(self) -> None:
        busy = Answer(status=429, headers={"Retry-After": "3600"}, body=b"quota")
        with serve(lambda body: busy) as server:
            with pytest.raises(JudgeFailure, match=r"rests for 3[56]\d\d\.\d s more: HTTP 429 quota"):
                await ask(a_judge(server))
            assert len(server.requests) == 1

    async def test_pauses_grow_with_each_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(judge_client, "FIRST_REST_S", 0.1)
        times: list[float] = []

        def failing(body: Any) -> Answer:
            times.append(time.monotonic())
            return Answer(status=500)

        with serve(failing) as server, pytest.raises(JudgeFailure):
            await ask(a_judge(server))
        first, second = times[1] - times[0], times[2] - times[1]
        assert first >= 0.1
        assert second >= 0.2


class TestSeveralEndpoints:
    async def test_the_next_one_is_asked_where_one_fails(self, met: FakeServer) -> None:
        for broken in (Answer(status=500), Answer(status=400), Answer(text="hm"), Answer(drop=True)):
            with serve(lambda body, broken=broken: broken) as first:  # type: ignore[misc]
                assert await ask(a_judge(first, met), text=str(broken))
                assert len(first.requests) == 1

    async def test_one_that_hangs_is_left_alone_for_a_while(self, met: FakeServer) -> None:
        with serve(lambda body: Answer(delay_s=3.0)) as hanging:
            judge = a_judge(hanging, met, timeout_s=0.8)
            assert await ask(judge, "a")
            assert await ask(judge, "b")
            assert len(hanging.requests) == 1

    async def test_endpoints_of_one_model_share_the_calls_and_another_model_is_the_last_resort(self) -> None:
        with (
            serve(lambda body: Answer(**vars(verdict(True)) | {"delay_s": 0.05})) as a,
            serve(lambda body: Answer(**vars(verdict(True)) | {"delay_s": 0.05})) as b,
            serve(lambda body: verdict(True)) as other,
        ):
            models = ((a, "m"), (b, "m"), (other, "n"))
            judge = Judge(endpoints=tuple(Endpoint(url=server.url, model=model) for server, model in models))
            await asyncio.gather(*(ask(judge, str(n)) for n in range(12)))
            assert [len(server.requests) for server in (a, b, other)] == [6, 6, 0]

    async def test_an_engine_that_no_run_has_started_is_a_failure(self) -> None:
        with pytest.raises(JudgeFailure, match="only `medrl train` and `medrl evaluate` start engines"):
            await ask(Judge(endpoints=(EngineEndpoint(policy="p"),)))


class TestLimits:
    async def test_no_more_calls_are_under_way_than_allowed(self) -> None:
        with serve(lambda body: Answer(**vars(verdict(True)) | {"delay_s": 0.02})) as server:
            judge = Judge(endpoints=(Endpoint(url=server.url, model="m", max_concurrency=3),))
            await asyncio.gather(*(ask(judge, str(n)) for n in range(12)))
            assert server.most_at_once == 3

    @pytest.mark.slow
    async def test_waiting_behind_others_counts_against_no_deadline(self, trajectory: Any) -> None:
        """Twelve calls of 0.15 s one after the other: the last waits for 1.65 s, and every deadline is 1 s."""
        with serve(lambda body: Answer(**vars(verdict(True)) | {"delay_s": 0.15})) as server:
            endpoint = Endpoint(url=server.url, model="m", max_concurrency=1)
            judge = Judge(endpoints=(endpoint,), timeout_s=1.0, deadline_s=1.0)
            asking = ConfiguredScorer(name="asking", scorer=Asking(judge=judge), timeout_s=1.0)
            with RewardService([asking]) as service:
                scored = await service.score_many([trajectory(str(n), id=str(n)) for n in range(12)])
            assert [each.scores["asking"].outcome for each in scored] == ["scored"] * 12

    async def test_a_judge_that_hangs_leaves_trajectories_unscored_and_never_zero(self, trajectory: Any) -> None:
        with serve(
            lambda body: Answer(**vars(verdict(True)) | {"delay_s": 3 * ("hang" in json.dumps(body))})
        ) as server:
            judge = a_judge(server, attempts=1, timeout_s=0.8)
            asking = ConfiguredScorer(name="asking", scorer=Asking(judge=judge), timeout_s=5)
            with RewardService([asking]) as service:
                fine, hung = await service.score_many([trajectory("fine"), trajectory("hang", id="h")])
            assert fine.scores["asking"].score == Score(1.0)
            assert hung.scores["asking"].outcome == "failed"
            assert "no answer within 0.8 s" in hung.scores["asking"].reason
            assert not hasattr(hung, "reward")


@pytest.mark.slow
async def test_a_scorer_in_processes_of_its_own_asks_too(trajectory: Any, met: FakeServer) -> None:
    apart = ConfiguredScorer(
        name="asking", scorer=Asking(judge=a_judge(met, timeout_s=60.0, deadline_s=90.0)), timeout_s=120, isolated=True
    )
    with RewardService([apart]) as service:
        scored = await service.score_many([trajectory(str(n), id=str(n)) for n in range(6)])
    assert [each.scores["asking"].score for each in scored] == [Score(1.0)] * 6


@dataclass(frozen=True, kw_only=True)
class Asking(Scorer):
    """1 where the judge says so."""

    judge: Judge

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(float(await ask(self.judge, trajectory.text)))


class TestCache:
    async def test_the_same_question_is_asked_once(self, met: FakeServer) -> None:
        judge = a_judge(met)
        assert [await ask(judge) for _ in range(3)] == [True] * 3
        assert len(met.requests) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"temperature": 0.1},
            {"max_tokens": 7},
            {"parameters": {"top_p": 0.5}},
            {"structured": "none"},
            {"model": "n"},
        ],
    )
    async def test_whatever_matters_makes_it_another_question(
        self, met: FakeServer, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        cache = tmp_path / "verdicts.sqlite"
        await ask(a_judge(met, cache=cache))
        await ask(a_judge(met, cache=cache, **change))
        assert len(met.requests) == 2

    async def test_text_images_criterion_and_vote_matter_too(self, met: FakeServer) -> None:
        judge = a_judge(met, votes=3, temperature=1.0)
        image = EncodedImage(content=b"a", width=1, height=1)
        questions = [a_question(), a_question("other"), a_question(images=(image,))]
        assert len({question.sha256() for question in questions}) == 3
        for vote in (0, 1, 2, 1):
            await judge.ask(questions[0], vote=vote)
        assert [body["seed"] for body in met.requests] == [0, 1, 2]
        assert len(await judge.poll(questions[0])) == len(met.requests) == 3

    def test_verdicts_outlive_the_process_where_asked_for_and_failures_do_not(self, tmp_path: Path) -> None:
        cache = tmp_path / "verdicts.sqlite"
        with serve(in_turn(Answer(status=400), verdict(True))) as server:
            with pytest.raises(JudgeFailure):
                asyncio.run(ask(a_judge(server, cache=cache)))
            assert asyncio.run(ask(a_judge(server, cache=cache)))
            assert _wait_for_entry(cache)
            assert asyncio.run(ask(a_judge(server, cache=cache)))  # the server has no third answer

    def test_the_place_of_the_server_does_not_matter(self, tmp_path: Path, met: FakeServer) -> None:
        cache = tmp_path / "verdicts.sqlite"
        assert asyncio.run(ask(a_judge(met, cache=cache)))
        assert _wait_for_entry(cache)
        assert asyncio.run(ask(Judge(endpoints=(Endpoint(url="http://127.0.0.1:9/v1", model="m"),), cache=cache)))

    def test_what_stands_in_the_file_is_not_believed(self, tmp_path: Path, met: FakeServer) -> None:
        cache = tmp_path / "verdicts.sqlite"
        asyncio.run(ask(a_judge(met, cache=cache)))
        assert _wait_for_entry(cache)
        with sqlite3.connect(cache) as kept:
            kept.execute("UPDATE kept SET content = ?", (b'{"criteria_met": "no"}',))
        assert asyncio.run(ask(a_judge(met, cache=cache)))
        assert len(met.requests) == 2


def _wait_for_entry(cache: Path) -> bool:
    """Verdicts are written by a thread of their own."""
    for _ in range(100):
        with sqlite3.connect(cache) as kept:
            if kept.execute("SELECT count(*) FROM kept").fetchone() != (0,):
                return True
        time.sleep(0.02)
    return False
