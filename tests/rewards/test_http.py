from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rewards.config import load_rewards
from rewards.http import HttpSettings, build_app
from rewards.service import RewardService
from rl.types import ScoredTrajectory, Trajectory, Unscored

ROW = {
    "id": "1",
    "question": "Is the mass malignant?",
    "completion": "<think>It is.</think><answer>yes</answer>",
    "answer": {"type": "yes_no", "value": "yes"},
}
TOKEN = "correct horse"


@pytest.fixture(scope="module")
def service() -> Iterator[RewardService]:
    spec = {
        "scorers": {"answer": {"use": "answer"}, "broken": {"use": "tests.scorers:Broken", "when": {"stratum": "x"}}}
    }
    with RewardService(load_rewards(spec)) as service:
        yield service


def client(service: RewardService, **settings: Any) -> TestClient:
    async def score(trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        return await service.score_many(trajectories)

    return TestClient(build_app(score, versions={"answer": "v1", "broken": "v2"}, settings=HttpSettings(**settings)))


def test_one_row_is_answered_by_its_score_with_the_reason(service: RewardService) -> None:
    answered = client(service).post("/score", json=ROW)
    assert answered.status_code == 200
    scored = answered.json()
    assert (scored["id"], scored["outcome"], scored["reward"]) == ("1", "scored", 1.0)
    assert scored["scores"]["answer"]["reason"] == "read 'yes', expected 'yes'"
    assert scored["scores"]["broken"]["outcome"] == "abstained"


def test_many_rows_are_answered_in_their_order_and_a_broken_scorer_is_an_outcome(service: RewardService) -> None:
    rows = [ROW | {"id": "b", "completion": "<answer>no</answer>"}, ROW | {"id": "a", "stratum": "x"}, ROW]
    answered = client(service).post("/score", json=rows)
    assert [(each["id"], each["outcome"], each["reward"]) for each in answered.json()] == [
        ("b", "scored", 0.0),
        ("a", "failed", None),
        ("1", "scored", 1.0),
    ]
    assert "the judge is out of order" in answered.json()[1]["scores"]["broken"]["reason"]


def test_two_rows_of_one_id_are_refused(service: RewardService) -> None:
    answered = client(service).post("/score", json=[ROW, ROW | {"id": "2"}, ROW])
    assert answered.status_code == 422
    assert answered.json() == {"detail": "row 2: the id '1' was used in row 0; every row needs an id of its own"}


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "not JSON: "),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"id": NaN}', 400, "NaN is not JSON"),
        (b"\xff", 400, "not UTF-8"),
        (b'"text"', 422, "row 0: 'text' is not of type 'object'"),
        (b'[{"id": "1"}]', 422, "row 0: "),
        (b'[{"id": "1", "questoin": "?"}]', 422, "row 0: "),
        (b"[1, 2, 3, 4, 5]", 413, "a request may hold 4 rows; got 5"),
        (b" " * 2**20, 413, "a request may hold 524288 bytes"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_reason(
    service: RewardService, content: bytes, status: int, message: str
) -> None:
    answered = client(service, max_rows=4, max_body_mb=0.5).post("/score", content=content)
    assert answered.status_code == status
    assert message in answered.json()["detail"]


def test_a_path_of_the_server_is_never_read(service: RewardService) -> None:
    answered = client(service).post("/score", json=ROW | {"images": ["/etc/passwd"]})
    assert answered.status_code == 422
    assert "send the content as" in answered.json()["detail"]


@pytest.mark.parametrize("path", ["/score", "/get_reward", "/metrics"])
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", TOKEN, "Basic ???", b"Basic \xe4", "Basic " + "YTpi"]
)
def test_nothing_but_health_is_answered_without_the_token(
    service: RewardService, path: str, header: str | bytes | None
) -> None:
    guarded = client(service, token=TOKEN)
    headers = {"Authorization": header} if header else {}
    answered = (
        guarded.get(path, headers=headers) if path == "/metrics" else guarded.post(path, headers=headers, json=ROW)
    )
    assert answered.status_code == 401
    assert TOKEN not in answered.text
    assert guarded.get("/health").json() == {"status": "ok", "scorers": {"answer": "v1", "broken": "v2"}}


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", "Basic " + base64.b64encode(f":{TOKEN}".encode()).decode()])
def test_the_token_opens_as_bearer_and_as_password(service: RewardService, header: str) -> None:
    guarded = client(service, token=TOKEN)
    assert guarded.post("/score", headers={"Authorization": header}, json=ROW).json()["reward"] == 1.0


def openrlhf(answers: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """The body that OpenRLHF posts to its remote reward model."""
    prompts = ["Which?\n"] * len(answers)
    queries = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return {"query": queries, "prompts": prompts, "labels": list(labels)}


def test_a_request_of_openrlhf_is_answered_as_its_client_reads_it(service: RewardService) -> None:
    body = openrlhf(["<answer>yes</answer>", "<answer>no</answer>"], ["yes", '{"type": "yes_no", "value": "no"}'])
    answered = client(service).post("/get_reward?answer_type=yes_no", json=body).json()
    assert answered == {"rewards": [1.0, 1.0], "scores": [1.0, 1.0], "extra_logs": {"answer": [1.0, 1.0]}}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "the lists query, prompts and labels are needed"),
        (openrlhf(["a", "b"], ["x"]) | {"labels": ["x"]}, 422, "2 queries, 2 prompts and 1 labels"),
        (openrlhf(["a"], ["{not json"]), 422, "a label that looks like an answer key is none: not JSON"),
        (openrlhf(["a"], [{"type": "unheard of"}]), 503, "1 of 1 got no reward; the first: answer invalid_input: "),
        ({"query": [1], "prompts": [2], "labels": [3]}, 422, "row 0: "),
    ],
)
def test_openrlhf_is_never_told_a_zero_for_a_failure(
    service: RewardService, body: dict[str, Any], status: int, message: str
) -> None:
    answered = client(service).post("/get_reward", json=body)
    assert answered.status_code == status
    assert message in answered.json()["detail"]


def test_metrics_count_outcomes_and_times(service: RewardService) -> None:
    asked = client(service)
    asked.post("/score", json=[ROW, ROW | {"id": "2", "stratum": "x"}])
    text = asked.get("/metrics").text
    assert 'medrl_trajectories_total{outcome="unscored"} 1.0' in text
    assert 'medrl_scores_total{outcome="scored",scorer="answer"} 2.0' in text
    assert 'medrl_scores_total{outcome="failed",scorer="broken"} 1.0' in text
    assert "medrl_request_seconds_count 1.0" in text


def test_the_interface_describes_itself(service: RewardService) -> None:
    described = client(service).get("/openapi.json").json()
    assert set(described["paths"]) == {"/score", "/get_reward", "/health", "/metrics"}
    one, many = described["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert many["items"]["required"] == one["required"] == ["id", "question", "completion", "answer"]
