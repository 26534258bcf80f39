from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from rewards.claims.free import VERIFY
from rewards.hallucination import HallucinationScorer
from rewards.judge import Endpoint, Judge, JudgeFailure
from rl.types import Measurement, Score, ToolCall
from tests.rewards.conftest import a_conversation
from tests.rewards.fake_judge import Answer, FakeServer, serve, user_text

REFERENCE = {"sources": {"note": "The patient has a fever. The patient denies chest pain."}}
TRACE = "<think>The patient has a fever. He smokes. There is chest pain.</think><answer>flu</answer>"


def data_of(body: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(user_text(body).split("\n")[3]))


def reading(body: Mapping[str, Any]) -> Answer:
    """Takes every sentence for a claim, and knows three facts: fever yes, chest pain no, all else uncertain."""
    data = data_of(body)
    if VERIFY not in body["messages"][0]["content"]:
        quotes = [each.strip() for each in re.split(r"(?<=\.)\s", re.sub("</?think>", "", data["text"])) if each]
        return Answer(text=json.dumps({"claims": [{"claim": f"It says: {each}", "quote": each} for each in quotes]}))
    verdicts = [
        {
            "number": int(number),
            "basis": "the note" if "fever" in claim or "pain" in claim else "",
            "verdict": "supported" if "fever" in claim else "refuted" if "pain" in claim else "uncertain",
        }
        for number, claim in data["claims"].items()
    ]
    return Answer(text=json.dumps({"verdicts": verdicts}))


def a_judge(server: FakeServer, **fields: Any) -> Judge:
    return Judge(endpoints=(Endpoint(url=server.url, model="m"),), attempts=1, **fields)


async def score(server: FakeServer, trajectory: Any, text: str = TRACE, **task: Any) -> Score:
    scorer = HallucinationScorer(judge=a_judge(server), claims=("measurements", "quotes"))
    return await scorer.score(trajectory(text, **{"reference": REFERENCE} | task))


async def test_each_claim_gets_its_verdict_its_place_and_what_it_rests_on(trajectory: Any) -> None:
    with serve(reading) as server:
        scored = await score(server, trajectory)
    assert [each.verdict for each in scored.evidence] == ["supported", "uncertain", "refuted"]
    quoted = [TRACE[each.start : each.end] for each in scored.evidence]
    assert quoted == ["The patient has a fever.", "He smokes.", "There is chest pain."]
    assert scored.evidence[0].note == "It says: The patient has a fever. (judge: the note)"
    assert scored.value == 1 / 3  # of three claims
    assert (scored.metrics["claims"], scored.metrics["refuted"]) == (3, 1)


async def test_the_judge_is_given_the_evidence_and_not_the_answer(trajectory: Any) -> None:
    record = {"temperature": Measurement(value=39.2, unit="degC", reading="high")}
    with serve(reading) as server:
        await score(server, trajectory, record=record)
    extraction, verification = map(data_of, server.requests)
    assert "flu" not in extraction["text"]
    assert verification["evidence"]["reference"] == REFERENCE
    assert verification["evidence"]["record"] == {"temperature": "39.2 degC high"}


async def test_what_a_tool_answered_is_evidence_and_what_refused_a_call_is_none(trajectory: Any) -> None:
    calls = (
        ToolCall(name="dose", arguments={}, result="refused: no drug is called 'a fever'", ok=False),
        ToolCall(name="search", arguments={}, result="Fever is above 38 degrees."),
    )
    with serve(reading) as server:
        await score(server, lambda text, **task: trajectory(text, tool_calls=calls, **task))
    assert data_of(server.requests[1])["evidence"]["tools"] == {"1. search": "Fever is above 38 degrees."}


async def test_what_a_rule_has_judged_is_not_asked_about_again(trajectory: Any) -> None:
    record = {"temperature": Measurement(value=39.2)}
    text = "<think>He smokes.\n- temperature 41.5</think><answer>flu</answer>"
    with serve(reading) as server:
        scored = await score(server, trajectory, text, record=record)
    assert list(data_of(server.requests[1])["claims"].values()) == ["It says: He smokes."]
    assert sorted(each.verdict for each in scored.evidence) == ["refuted", "uncertain"]


async def test_recited_options_are_no_claims(trajectory: Any) -> None:
    answer = {"type": "choice", "value": "A", "options": {"A": "a fever of unknown origin", "B": "chest pain"}}
    text = "<think>A. a fever of unknown origin\nB. chest pain\nHe smokes.</think><answer>A</answer>"
    listed = [{"claim": quote, "quote": quote} for quote in ("a fever of unknown origin", "chest pain", "He smokes.")]

    def listing(body: Mapping[str, Any]) -> Answer:
        verifies = VERIFY in body["messages"][0]["content"]
        return reading(body) if verifies else Answer(text=json.dumps({"claims": listed}))

    with serve(listing) as server:
        scored = await score(server, trajectory, text, answer=answer)
    assert [each.claim for each in scored.evidence] == ["He smokes."]


async def test_many_claims_are_judged_in_several_questions(trajectory: Any) -> None:
    text = "<think>" + " ".join(f"He smokes pipe {n}." for n in range(45)) + "</think>"
    with serve(reading) as server:
        scored = await score(server, trajectory, text)
    assert scored.metrics["uncertain"] == 45
    assert sorted(len(data_of(body)["claims"]) for body in server.requests[1:]) == [5, 20, 20]


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([{"number": 1, "basis": "", "verdict": "supported"}], r"of 3 claims it judged the numbers \[1\]"),
        ([{"number": 1, "basis": "", "verdict": "supported"}] * 3, r"judged the numbers \[1, 1, 1\]"),
        ([{"number": n, "basis": "", "verdict": "true"} for n in (1, 2, 3)], "malformed verdict: 'true' is not one of"),
    ],
)
async def test_a_verdict_that_is_missing_or_malformed_fails_the_score(
    trajectory: Any, verdicts: Any, reason: str
) -> None:
    def partial(body: Mapping[str, Any]) -> Answer:
        verifies = VERIFY in body["messages"][0]["content"]
        return Answer(text=json.dumps({"verdicts": verdicts})) if verifies else reading(body)

    with serve(partial) as server, pytest.raises(JudgeFailure, match=reason):
        await score(server, trajectory)


async def test_claims_that_the_text_does_not_make_are_not_laid_at_its_door(trajectory: Any) -> None:
    made_up = {"claim": "He has diabetes.", "quote": "diabetes mellitus"}
    real = {"claim": "He smokes.", "quote": "He\n  smokes."}

    def inventive(*claims: Any) -> Any:
        def answer(body: Mapping[str, Any]) -> Answer:
            verifies = VERIFY in body["messages"][0]["content"]
            return reading(body) if verifies else Answer(text=json.dumps({"claims": claims}))

        return answer

    with serve(inventive(made_up, real)) as server:
        assert [each.claim for each in (await score(server, trajectory)).evidence] == ["He smokes."]
    with (
        serve(inventive(made_up)) as server,
        pytest.raises(JudgeFailure, match=r"none of the claims .* in the text"),
    ):
        await score(server, trajectory)


async def test_a_split_vote_is_uncertain(trajectory: Any) -> None:
    by_seed = ("supported", "refuted", "uncertain")

    def moody(body: Mapping[str, Any]) -> Answer:
        if VERIFY not in body["messages"][0]["content"]:
            return Answer(text=json.dumps({"claims": [{"claim": "He smokes.", "quote": "He smokes."}]}))
        verdict = {"number": 1, "basis": "b", "verdict": by_seed[body["seed"]]}
        return Answer(text=json.dumps({"verdicts": [verdict]}))

    with serve(moody) as server:
        scorer = HallucinationScorer(judge=a_judge(server, votes=3, temperature=1.0))
        (evidence,) = (await scorer.score(trajectory(TRACE))).evidence
    assert evidence.verdict == "uncertain"
    assert "(1 of 3 votes)" in evidence.note


async def test_nothing_said_is_nothing_asked(trajectory: Any) -> None:
    with serve(reading) as server:
        assert (await score(server, trajectory, "<answer>flu</answer>")).value == 0.0
        assert not server.requests


async def test_what_the_user_said_later_is_evidence_too(trajectory: Any) -> None:
    made = a_conversation(trajectory(TRACE, reference=REFERENCE), ("His wife says that he smokes.", TRACE))
    with serve(reading) as server:
        await HallucinationScorer(judge=a_judge(server), claims=("quotes",)).score(made)
    extraction, verification = map(data_of, server.requests)
    said = "?\n\nHis wife says that he smokes."
    assert (extraction["question"], verification["evidence"]["question"]) == (said, said)
