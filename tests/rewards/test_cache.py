from __future__ import annotations

import dataclasses
import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rewards.cache import ScoreCache
from rewards.config import ConfiguredScorer, build_scorer
from rewards.isolation.attempt import Attempt, failed
from rewards.provenance import inputs_of
from rewards.scorer import Abstain, Score, Scorer, Trajectory
from rewards.service import RewardService
from rl.errors import ConfigError
from rl.types import EncodedImage, Evidence, Measurement, Message, Observation, SamplingParams, ToolCall
from tests.samples import a_trajectory

SPOT = Evidence(claim="radius", verdict="refuted", start=3, end=9, source="record.radius", note="17.99 um")
ATTEMPT = Attempt(outcome="scored", score=Score(0.25, reason="why", evidence=(SPOT,), metrics={"claims": 2.0}))


def image(content: bytes) -> EncodedImage:
    return EncodedImage(content=content, width=1, height=1)


class TestInputs:
    CHANGES: ClassVar[dict[str, dict[str, Any]]] = {
        "text": {"text": "other"},
        "finish_reason": {"finish_reason": "length"},
        "completion_token_ids": {"completion_token_ids": np.array([0, 0, 0, 1], dtype=np.int32)},
        "sampling": {"sampling": SamplingParams(max_tokens=8)},
        "tool_calls": {"tool_calls": (ToolCall(name="zoom", arguments={"x": 1}, result="ok"),)},
    }
    TASK_CHANGES: ClassVar[dict[str, Any]] = {
        "id": "other",
        "question": "other?",
        "answer": {"type": "yes_no", "value": "no"},
        "images": (image(b"a"),),
        "system": "be brief",
        "record": {"radius": Measurement(value=1.0)},
        "rubric": ({"criterion": "c", "points": 1},),
        "reference": {"findings": ["edema"]},
        "stratum": "rare",
        "extra": {"modality": "CT"},
        "follow_ups": (Message(text="Are you sure?"),),
    }

    @pytest.mark.parametrize("name", CHANGES)
    def test_they_change_with_what_was_written(self, trajectory: Any, name: str) -> None:
        made = trajectory("text")
        assert inputs_of(dataclasses.replace(made, **self.CHANGES[name])) != inputs_of(made)

    @pytest.mark.parametrize("name", TASK_CHANGES)
    def test_they_change_with_every_field_of_the_task(self, trajectory: Any, name: str) -> None:
        made = trajectory("text")
        other = dataclasses.replace(made, task=dataclasses.replace(made.task, **{name: self.TASK_CHANGES[name]}))
        assert inputs_of(other) != inputs_of(made)

    def test_they_change_with_what_was_told_between_turns_and_where(self) -> None:
        told = [Message(text="Sure?"), Message(text="Really?"), Message(text="Sure?", images=(image(b"a"),))]
        places = [(told[0], 1), (told[0], 2), (told[1], 1), (told[2], 1)]
        conversations = [
            a_trajectory("one\n\ntwo", observations=(Observation(message=message, place=place),))
            for message, place in places
        ]
        assert len({inputs_of(each) for each in [a_trajectory("one\n\ntwo"), *conversations]}) == 5

    def test_those_of_one_turn_are_what_they_were_before_there_were_several(self) -> None:
        assert inputs_of(a_trajectory("text")) == "a4e6934335e563ea839fcf84eed1a6dc"

    def test_they_change_with_who_told_it_and_with_the_turn_that_called(self) -> None:
        called = ToolCall(name="zoom", arguments={}, result="closer")
        made = [
            a_trajectory(
                "one\n\ntwo",
                observations=(Observation(message=Message(text="closer", role=role), place=3),),
                tool_calls=(dataclasses.replace(called, turn=turn),),
            )
            for role in ("user", "tool")
            for turn in (-1, 0, 1)
        ]
        assert len({inputs_of(each) for each in made}) == 6

    def test_those_of_a_conversation_are_what_they_were_before_tools_told_anything(self) -> None:
        said = Observation(message=Message(text="Sure?"), place=3)
        call = ToolCall(name="zoom", arguments={"x": 1}, result="closer")
        made = a_trajectory("one\n\ntwo", observations=(said,), tool_calls=(call,))
        assert inputs_of(made) == "2c16b18038a629b00f9f6774a4873e5a"

    def test_no_field_of_a_task_was_forgotten(self, trajectory: Any) -> None:
        assert {field.name for field in dataclasses.fields(trajectory("x").task)} == set(self.TASK_CHANGES)

    def test_an_image_counts_with_its_content_and_not_with_its_place(self, trajectory: Any) -> None:
        one, moved, other = image(b"a"), dataclasses.replace(image(b"a"), source="elsewhere.png"), image(b"b")
        first, second, third = (inputs_of(trajectory("x", images=(each,))) for each in (one, moved, other))
        assert first == second != third

    def test_they_do_not_change_with_who_drew_it_and_when(self, trajectory: Any) -> None:
        made = trajectory("text")
        again = dataclasses.replace(
            made, id="other/3", sample_index=3, seed=9, policy_version=7, duration_s=2.0,
            rollout_logprobs=np.ones(4, dtype=np.float32),
        )  # fmt: skip
        assert inputs_of(again) == inputs_of(made)


class TestCache:
    @pytest.mark.parametrize(
        "attempt",
        [ATTEMPT, Attempt(outcome="abstained", reason="not mine"), Attempt(outcome="invalid_input", reason="?")],
    )
    def test_what_was_kept_is_found_also_after_a_restart(self, tmp_path: Path, attempt: Attempt) -> None:
        for restarted in (False, True):
            cache = ScoreCache(tmp_path / "deep" / "scores.sqlite")
            assert (cache.get(("v", "i")) == attempt) is restarted
            cache.put(("v", "i"), attempt)
            assert cache.get(("v", "i")) == attempt
            assert (cache.get(("w", "i")), cache.get(("v", "j"))) == (None, None)
            cache.close()

    def test_a_failure_is_never_kept(self, tmp_path: Path) -> None:
        cache = ScoreCache(tmp_path / "scores.sqlite")
        cache.put(("v", "i"), failed("time-out"))
        assert cache.get(("v", "i")) is None
        cache.close()
        with sqlite3.connect(tmp_path / "scores.sqlite") as kept:
            assert kept.execute("SELECT count(*) FROM kept").fetchone() == (0,)

    def test_memory_is_bounded_and_the_longest_unused_goes_first(self) -> None:
        cache = ScoreCache(max_in_memory=2)
        for name in ("a", "b"):
            cache.put(("v", name), ATTEMPT)
        cache.get(("v", "a"))
        cache.put(("v", "c"), ATTEMPT)
        assert [name for name in "abc" if cache.get(("v", name))] == ["a", "c"]

    @pytest.mark.parametrize("content", [b"", b"\x80\x04.", b'{"outcome": "scored", "score": {"value": 7}}'])
    def test_a_damaged_entry_counts_as_none(self, tmp_path: Path, content: bytes) -> None:
        ScoreCache(tmp_path / "scores.sqlite").close()
        with sqlite3.connect(tmp_path / "scores.sqlite") as kept:
            kept.execute("INSERT INTO kept VALUES ('v', 'i', ?)", (content,))
        cache = ScoreCache(tmp_path / "scores.sqlite")
        assert cache.get(("v", "i")) is None
        cache.close()

    def test_a_file_that_is_no_cache_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not a database, but long enough to be told from an empty one" * 20)
        with pytest.raises(ConfigError, match=r"rewards.cache: .*notes.txt cannot be used as a cache:"):
            ScoreCache(tmp_path / "notes.txt")

    @pytest.mark.slow
    def test_several_processes_share_a_file(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=fill, args=(tmp_path / "scores.sqlite", n)) for n in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        with sqlite3.connect(tmp_path / "scores.sqlite") as kept:
            assert kept.execute("SELECT count(*) FROM kept").fetchone() == (400,)


def fill(path: Path, number: int) -> None:
    cache = ScoreCache(path)
    for index in range(100):
        cache.put((str(number), str(index)), ATTEMPT)
    cache.close()


class Counting(Scorer):
    """Counts how often it is asked."""

    isolated: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []

    async def score(self, trajectory: Trajectory) -> Score:
        self.asked.append(trajectory.text)
        match trajectory.text:
            case "abstain":
                raise Abstain("not mine")
            case "break once" if self.asked.count("break once") < 2:
                raise RuntimeError("not today")
            case "break":
                raise RuntimeError("never")
        return Score(0.5, reason=trajectory.text)


def counting(**use: Any) -> ConfiguredScorer:
    Counting.asked.clear()
    return ConfiguredScorer(name="counting", scorer=Counting(), version="v1", **use)


@pytest.mark.parametrize(("deterministic", "times"), [(True, 1), (False, 3)])
async def test_only_a_deterministic_scorer_is_not_asked_twice(trajectory: Any, deterministic: bool, times: int) -> None:
    with RewardService([counting(deterministic=deterministic)]) as service:
        scored = [await service.score(trajectory("text")) for _ in range(3)]
    assert [each.scores["counting"].score for each in scored] == [Score(0.5, reason="text")] * 3
    assert len({each.scores["counting"].inputs for each in scored}) == 1
    assert len(Counting.asked) == times
    assert service.counts() == {"counting": {"scored": 3}}


async def test_a_restarted_service_finds_its_scores_again(trajectory: Any, tmp_path: Path) -> None:
    configured = counting(deterministic=True)
    for _ in range(2):
        with RewardService([configured], cache=tmp_path / "scores.sqlite") as service:
            await service.score_many([trajectory("text"), trajectory("abstain")])
    assert Counting.asked == ["text", "abstain"]
    assert service.cache_counts() == (2, 0)


async def test_a_failed_score_is_asked_for_again_the_next_time(trajectory: Any) -> None:
    with RewardService([counting(deterministic=True)]) as service:
        outcomes = [(await service.score(trajectory("break once"))).scores["counting"].outcome for _ in range(3)]
    assert outcomes == ["failed", "scored", "scored"]
    assert len(Counting.asked) == 2


@pytest.mark.parametrize(
    ("text", "retries", "asked", "outcome"),
    [
        ("break once", 0, 1, "failed"),
        ("break once", 2, 2, "scored"),
        ("break", 2, 3, "failed"),
        ("abstain", 2, 1, "abstained"),
    ],
)
async def test_failures_alone_are_retried_and_only_as_often_as_asked(
    trajectory: Any, text: str, retries: int, asked: int, outcome: str
) -> None:
    with RewardService([counting(retries=retries)]) as service:
        record = (await service.score(trajectory(text))).scores["counting"]
    assert (record.outcome, len(Counting.asked)) == (outcome, asked)
    assert ("(the last of 3 tries)" in record.reason) is (text == "break")
    assert service.counts() == {"counting": {outcome: 1}}


def test_the_config_says_what_is_retried_and_what_is_deterministic() -> None:
    built = build_scorer("a", {"use": "answer"})
    assert (built.retries, built.deterministic) == (0, True)
    built = build_scorer("a", {"use": "answer", "retries": 2, "deterministic": False})
    assert (built.retries, built.deterministic) == (2, False)
    for retries in (-1, 11, 1.5, True):
        with pytest.raises(ConfigError, match=r"rewards.scorers.a.retries must be an integer in \[0, 10\]; got"):
            build_scorer("a", {"use": "answer", "retries": retries})
