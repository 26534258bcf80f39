"""What of a conversation a scorer reads, and the one score that becomes of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rewards.answer import read_answer
from rewards.config import ConfiguredScorer, build_scorer, load_rewards
from rewards.scorer import Abstain, InvalidInput, Score, Scorer, Turns
from rewards.service import RewardService
from rewards.turns import parts_of, transcript
from rl.errors import ConfigError
from rl.types import EncodedImage, Evidence, Message, ScoredTrajectory, ScoreRecord, ToolCall, Trajectory, Unscored
from tests.rewards.conftest import MakeTrajectory, a_conversation


@dataclass(frozen=True, kw_only=True)
class Words(Scorer):
    """Does what a text of one turn says: ``0.5`` is a value, with evidence at its place."""

    isolated: ClassVar[bool] = False
    counted_metrics: ClassVar[tuple[str, ...]] = ("claims",)
    asked: ClassVar[list[Trajectory]] = []

    async def score(self, trajectory: Trajectory) -> Score:
        self.asked.append(trajectory)
        match trajectory.text:
            case "raise":
                raise RuntimeError("no idea")
            case "abstain":
                raise Abstain("not mine")
            case "invalid":
                raise InvalidInput("cannot read the task")
        value = float(trajectory.text.split()[0])
        spot = Evidence(claim="it", verdict="supported", start=0, end=len(trajectory.text))
        whole = Evidence(claim="all of it", verdict="supported")
        metrics = {"claims": 4 * value, "recall": value} | ({"rare": 1.0} if value == 1 else {})
        return Score(value, reason="read", evidence=(spot, whole), gate_open=value > 0.4, metrics=metrics)


async def record_of(made: Trajectory, *, turns: Turns = "each", **use: Any) -> ScoreRecord:
    Words.asked.clear()
    with RewardService([ConfiguredScorer(name="words", scorer=Words(), turns=turns, **use)]) as service:
        return (await service.score(made)).scores["words"]


async def test_each_turn_is_scored_by_itself_and_one_score_is_made_of_them(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory("0.5 a"), ("Sure?", "1 b"), ("Really?", "0.75 c"))
    record = await record_of(made)
    assert [each.text for each in Words.asked] == ["0.5 a", "1 b", "0.75 c"]
    score = record.score
    assert score is not None
    assert score.value == pytest.approx((0.5 + 1 + 0.75) / 3)
    assert score.gate_open
    assert score.reason == "turn 1 (0.5): read; turn 2 (1): read; turn 3 (0.75): read"
    spots = [made.text[each.start : each.end] for each in score.evidence if each.start >= 0]
    assert spots == ["0.5 a", "1 b", "0.75 c"]
    assert [(each.start, each.end) for each in score.evidence if each.claim == "all of it"] == [(-1, -1)] * 3
    # 2 + 4 + 3 claims, the mean recall, and what one turn alone reports
    assert score.metrics == {"claims": 9.0, "recall": pytest.approx(0.75), "rare": 1.0}


async def test_the_largest_numbers_have_a_mean_too(trajectory: MakeTrajectory) -> None:
    """Their sum is beyond a double."""

    class Huge(Words):
        async def score(self, trajectory: Trajectory) -> Score:
            return Score(1.0, metrics={"seen": 1.5e308})

    made = a_conversation(trajectory("1"), ("Sure?", "1"), ("Really?", "1"))
    with RewardService([ConfiguredScorer(name="huge", scorer=Huge(), turns="each")]) as service:
        score = (await service.score(made)).scores["huge"].score
    assert score is not None and (score.value, score.metrics) == (1.0, {"seen": 1.5e308})


async def test_a_gate_is_closed_by_one_turn(trajectory: MakeTrajectory) -> None:
    record = await record_of(a_conversation(trajectory("1 a"), ("Sure?", "0.25 b"), ("Really?", "1 c")))
    assert record.score is not None and not record.score.gate_open


async def test_the_last_turn_alone_is_read_and_its_evidence_is_in_its_place(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory("0 a"), ("Sure?", "1 b"))
    record = await record_of(made, turns="last")
    assert [each.text for each in Words.asked] == ["1 b"]
    assert record.score is not None and (record.score.value, record.score.reason) == (1.0, "read")
    assert made.text[record.score.evidence[0].start : record.score.evidence[0].end] == "1 b"


@pytest.mark.parametrize("turns", ["last", "each", "all"])
async def test_one_turn_is_read_as_it_is_whatever_the_scorer_reads_of_several(
    trajectory: MakeTrajectory, turns: Turns
) -> None:
    made = trajectory("0.5 a")
    record = await record_of(made, turns=turns)
    assert Words.asked == [made]
    assert record.score is not None and record.score.reason == "read"
    conversation = a_conversation(made, ("Sure?", "1 b"))
    await record_of(conversation, turns="all")
    assert Words.asked == [conversation]


@pytest.mark.parametrize(
    ("texts", "outcome", "reason"),
    [
        (("abstain", "raise", "invalid"), "failed", "turn 2: RuntimeError: no idea"),
        (("1", "invalid", "abstain"), "invalid_input", "turn 2: cannot read the task"),
        (("abstain", "abstain", "abstain"), "abstained", "turn 1: not mine"),
        (("0.5", "abstain", "1"), "scored", ""),
    ],
)
async def test_a_failure_in_one_turn_is_a_failure_and_an_abstention_in_all_an_abstention(
    trajectory: MakeTrajectory, texts: tuple[str, ...], outcome: str, reason: str
) -> None:
    first, *others = texts
    record = await record_of(a_conversation(trajectory(first), *(("Sure?", text) for text in others)))
    assert record.outcome == outcome
    assert record.reason.startswith(reason)
    if record.score:
        assert record.score.value == 0.75  # of the two that were scored
        assert record.score.reason == "turn 1 (0.5): read; turn 2 abstained: not mine; turn 3 (1): read"


async def test_the_turns_that_failed_are_asked_for_again_and_no_other(trajectory: MakeTrajectory) -> None:
    record = await record_of(a_conversation(trajectory("1"), ("Sure?", "raise")), retries=2)
    assert sorted(each.text for each in Words.asked) == ["1", "raise", "raise", "raise"]
    assert "(the last of 3 tries)" in record.reason


def test_a_turn_is_a_trajectory_of_its_own_asked_what_was_said_until_then(trajectory: MakeTrajectory) -> None:
    one, two, three = (EncodedImage(content=name, width=1, height=1) for name in (b"1", b"2", b"3"))
    made = a_conversation(
        trajectory("first", question="What is it?", images=(one,), finish_reason="length", length_tokens=2),
        (Message(text="And here?", images=(two,)), "second"),
        (Message(text="", images=(three,)), "third"),
    )
    made = replace(made, later_versions=((3, 1),))
    parts = parts_of(made, "each")
    assert [part.start for part in parts] == [0, 7, 15]  # 5 letters, a blank line, 6 letters, a blank line
    turns = [part.trajectory for part in parts]
    assert [each.task.question for each in turns] == [
        "What is it?",
        "What is it?\n\nAnd here?",
        "What is it?\n\nAnd here?",
    ]
    assert [each.images for each in turns] == [(one,), (one, two), (one, two, three)]
    assert [each.finish_reason for each in turns] == ["stop", "stop", "length"]
    assert {(each.observations, each.task.follow_ups, each.later_versions) for each in turns} == {((), (), ())}
    # two tokens, three told, two, three told, two: 0 1 | 2 3 4 | 5 6 | 7 8 9 | 10 11
    assert [each.completion_token_ids.tolist() for each in turns] == [[0, 1], [5, 6], [10, 11]]
    assert [each.rollout_logprobs.tolist() for each in turns] == [[0, 1], [5, 6], [10, 11]]
    assert [each.length_tokens for each in turns] == [2, 2, 2]
    assert [len(each.prompt_token_ids) for each in turns] == [3, 8, 13]
    (last,) = parts_of(made, "last")
    assert (last.start, last.trajectory.text) == (15, "third")


def told_by_tool(text: str, *images: EncodedImage) -> Message:
    return Message(text=text, images=images, role="tool")


def test_what_tools_told_lies_within_the_turn_and_ends_none(trajectory: MakeTrajectory) -> None:
    first, zoomed, second = (EncodedImage(content=name, width=1, height=1) for name in (b"1", b"2", b"3"))
    calls = [
        ToolCall(name="zoom", arguments={}, result="closer", turn=0),
        ToolCall(name="dose", arguments={}, result="9 mg", turn=2),
    ]
    made = a_conversation(
        trajectory("look", question="Q?", images=(first,), length_tokens=2, tool_calls=tuple(calls)),
        (told_by_tool("closer", zoomed), "seen"),
        (Message(text="Sure?", images=(second,)), "check"),
        (told_by_tool("9 mg"), "yes"),
    )
    assert made.turns == ("look", "seen", "check", "yes")
    one, two = parts_of(made, "each")
    assert (one.start, one.trajectory.text, one.trajectory.turns) == (0, "look\n\nseen", ("look", "seen"))
    assert (two.start, two.trajectory.text, two.trajectory.turns) == (12, "check\n\nyes", ("check", "yes"))
    assert [each.trajectory.task.question for each in (one, two)] == ["Q?", "Q?\n\nSure?"]
    # What the second turn shows was there before it; what the first was shown within it keeps its place there.
    assert [each.trajectory.task.images for each in (one, two)] == [(first,), (first, zoomed, second)]
    assert [each.trajectory.images for each in (one, two)] == [(first, zoomed), (first, zoomed, second)]
    assert [each.trajectory.observations[0].place for each in (one, two)] == [4, 5]
    # A call keeps its number; what was called before a turn is known in it, what was called after it is not.
    assert one.trajectory.tool_calls == (calls[0],)
    assert two.trajectory.tool_calls == (replace(calls[0], turn=-1), replace(calls[1], turn=0))
    # 0 1 | 2 3 4 | 5 6 | 7 8 9 | 10 11 | 12 13 14 | 15 16
    assert one.trajectory.completion_token_ids.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert two.trajectory.completion_token_ids.tolist() == [10, 11, 12, 13, 14, 15, 16]
    assert [each.trajectory.length_tokens for each in (one, two)] == [4, 4]
    assert len(two.trajectory.prompt_token_ids) == 3 + 10
    assert parts_of(made, "last")[0].start == 12


def test_a_call_of_a_log_that_does_not_say_which_turn_made_it_is_known_in_all(trajectory: MakeTrajectory) -> None:
    call = ToolCall(name="zoom", arguments={}, result="closer")
    made = a_conversation(trajectory("look", tool_calls=(call,)), ("Sure?", "yes"))
    assert [part.trajectory.tool_calls for part in parts_of(made, "each")] == [(call,), (call,)]


@pytest.mark.parametrize("turns", ["last", "each", "all"])
def test_a_turn_in_which_tools_were_called_is_read_as_it_is(trajectory: MakeTrajectory, turns: Turns) -> None:
    made = a_conversation(trajectory("look"), (told_by_tool("closer"), "yes"))
    assert [part.trajectory for part in parts_of(made, turns)] == [made]


def test_a_turn_has_no_tokens_where_nobody_can_tell_which_are_its_own(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory("one"), ("Sure?", "two"))
    logged = replace(made, completion_mask=np.ones(len(made.completion_token_ids), dtype=bool))
    assert [part.trajectory.length_tokens for part in parts_of(logged, "each")] == [0, 0]


ANSWERED = "<think>x</think><answer>{}</answer>"


@pytest.mark.parametrize(("first", "second", "right"), [("no", "yes", True), ("yes", "no", False)])
async def test_what_counts_as_the_answer_is_what_the_user_is_left_with(
    trajectory: MakeTrajectory, first: str, second: str, right: bool
) -> None:
    made = a_conversation(trajectory(ANSWERED.format(first)), ("Are you sure?", ANSWERED.format(second)))
    assert read_answer(made) == second
    with RewardService(
        load_rewards({"scorers": {"answer": {"use": "answer"}, "layout": {"use": "format"}}})
    ) as service:
        scored = await service.score(made)
    assert isinstance(scored, ScoredTrajectory)
    assert scored.correct is right
    (evidence,) = scored.scores["answer"].score.evidence  # type: ignore[union-attr]
    assert made.text[evidence.start : evidence.end] == second and evidence.start > len(made.turns[0])
    assert scored.scores["layout"].score.value == 1.0  # type: ignore[union-attr]  # each turn keeps the form


async def test_answers_of_every_turn_are_right_together_or_not_at_all(trajectory: MakeTrajectory) -> None:
    made = a_conversation(trajectory(ANSWERED.format("no")), ("Are you sure?", ANSWERED.format("yes")))
    with RewardService(load_rewards({"scorers": {"answer": {"use": "answer", "turns": "each"}}})) as service:
        scored = await service.score(made)
    assert isinstance(scored, ScoredTrajectory)
    assert (scored.reward, scored.correct) == (0.5, False)


FOREIGN = """
import os
from dataclasses import dataclass
from rewards.scorer import Score, Scorer

@dataclass(frozen=True, kw_only=True)
class Foreign(Scorer):
    '''Says what it reads, and dies of "exit".'''

    async def score(self, trajectory):
        if trajectory.text == "exit":
            os._exit(3)
        return Score(1.0, reason=f"{trajectory.task.question!r} {trajectory.text!r}")
"""


async def test_a_scorer_in_a_process_of_its_own_reads_turns_too(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    (tmp_path / "reads_turns.py").write_text(FOREIGN)
    scorers = {name: {"use": "reads_turns:Foreign", "turns": name} for name in ("last", "each")}
    with RewardService(
        load_rewards({"scorers": scorers | {"all": {"use": "reads_turns:Foreign"}}}, tmp_path)
    ) as service:
        scored = await service.score(a_conversation(trajectory("one", question="Q?"), ("Sure?", "two")))
        died = await service.score(a_conversation(trajectory("one"), ("Sure?", "exit")))
    reasons = {name: record.score.reason for name, record in scored.scores.items() if record.score}
    assert reasons == {
        "last": r"'Q?\n\nSure?' 'two'",
        "each": r"turn 1 (1): 'Q?' 'one'; turn 2 (1): 'Q?\n\nSure?' 'two'",
        "all": r"'Q?' 'one\n\ntwo'",
    }
    assert isinstance(died, Unscored)
    assert died.scores["each"].reason == "turn 2: the scorer's process exited with status 3"


class TestConfig:
    DEFAULTS: ClassVar[dict[str, Turns]] = {
        "answer": "last",
        "symbolic": "last",
        "key_points": "last",
        "format": "each",
        "trace": "each",
        "hallucination": "each",
        "rubric": "all",
    }

    @pytest.mark.parametrize("use", DEFAULTS)
    def test_it_overrides_what_a_scorer_reads_by_itself(self, use: str) -> None:
        assert build_scorer("x", {"use": use}).turns == self.DEFAULTS[use]
        for turns in ("last", "each", "all"):
            assert build_scorer("x", {"use": use, "turns": turns}).turns == turns

    @pytest.mark.parametrize("turns", ["first", 1, ["last"], None])
    def test_what_is_none_of_the_three_is_refused(self, turns: Any) -> None:
        with pytest.raises(ConfigError, match=r"rewards\.scorers\.x\.turns is what is read .*`last`, `each`.* got "):
            build_scorer("x", {"use": "format", "turns": turns})

    def test_what_is_read_is_part_of_the_version(self) -> None:
        plain = build_scorer("x", {"use": "format"}).version
        versions = {build_scorer("x", {"use": "format", "turns": turns}).version for turns in ("last", "each", "all")}
        assert len(versions) == 3 and plain in versions

    def test_a_scorer_may_be_kept_to_conversations(self, trajectory: MakeTrajectory) -> None:
        kept = build_scorer("x", {"use": "format", "when": {"follow_ups": True}})
        assert not kept.applies_to(trajectory("x").task)
        assert kept.applies_to(a_conversation(trajectory("x"), ("Sure?", "y")).task)


def test_a_transcript_has_what_was_told_between_the_turns(trajectory: MakeTrajectory) -> None:
    assert transcript(trajectory("one")) == "one"
    assert transcript(a_conversation(trajectory("one"), ("Sure?", "two"))) == "one\n\nSure?\n\ntwo"
