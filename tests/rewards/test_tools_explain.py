from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.config import RewardsFile, load_rewards_file
from rewards.tools.explain import explain
from rewards.tools.scoring import score_stream
from rewards.tools.terminal import Paint
from rl.types import EncodedImage, Measurement, Message, ScoredTrajectory, ScoreRecord, ToolCall, Trajectory, Unscored
from tests.rewards.conftest import MakeTrajectory, a_conversation

REWARDS = """
scorers:
  answer: {use: answer}
  grounding: {use: hallucination, weight: 0.5}
  form: {use: rubric, weight: 0.25, path: form.yaml}
  safety: {use: rubric, path: safety.yaml, gate: true}
length_penalty: 0.2
length_soft_tokens: 100
"""
FORM = """
- {criterion: Says why., points: 3, check: {contains: because, in: reasoning}}
- {criterion: Flatters., points: -1, check: {contains: great}}
"""
SAFETY = "- {criterion: Advises to wait., points: -1, critical: true, check: {contains: wait}}"
RECORD = {"radius": Measurement(value=17.0, unit="um", reading="high")}


@pytest.fixture
def rewards(tmp_path: Path) -> RewardsFile:
    for name, text in {"rewards": REWARDS, "form": FORM, "safety": SAFETY}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return load_rewards_file(tmp_path / "rewards.yaml")


def scored(trajectory: Trajectory, rewards: RewardsFile) -> ScoredTrajectory | Unscored:
    found: list[Any] = []
    score_stream([trajectory], rewards, receive=found.append)
    (only,) = found
    assert isinstance(only, ScoredTrajectory | Unscored)
    return only


def explained(trajectory: Trajectory, rewards: RewardsFile) -> str:
    lines = list(explain(scored(trajectory, rewards), rewards, paint=Paint()))
    assert max(map(len, lines)) <= 80
    return "\n".join(lines)


TEXT = "<think>great, radius 12 um high because</think><answer>yes</answer>"


def test_every_claim_stands_there_with_its_place_and_what_it_rests_on(
    trajectory: MakeTrajectory, rewards: RewardsFile
) -> None:
    said = explained(trajectory(TEXT, record=RECORD), rewards)
    start = TEXT.index("radius")
    assert "✗ refuted     radius 12 um high" in said
    assert f"at {start}–{start + 17} · record.radius · wrong value; the record has 17 um" in said
    assert "✓ fine        Says why." in said and "“because” · form.yaml:2 · +3, met" in said
    assert "✗ unwanted    Flatters." in said


def test_the_arithmetic_ends_in_the_reward(trajectory: MakeTrajectory, rewards: RewardsFile) -> None:
    # form: (3 − 1)/3; 178 of 100 to 256 tokens is half way to a penalty of .2; (1 + .5·0 + .25·.6667)/1.75 − .1
    said = explained(trajectory(TEXT, record=RECORD, length_tokens=178), rewards)
    assert "= 1 × (1×1.0000 + 0.5×0.0000 + 0.25×0.6667) / 1.75 - 0.1" in said
    assert said.endswith("= 0.5667")


def test_a_closed_gate_is_named(trajectory: MakeTrajectory, rewards: RewardsFile) -> None:
    said = explained(trajectory(f"{TEXT} wait", record=RECORD), rewards)
    assert "safety  gate  CLOSED" in said
    assert said.endswith("= 0, because of the closed gate safety")


def test_an_abstained_scorer_is_said_to_leave_both_sums(trajectory: MakeTrajectory, rewards: RewardsFile) -> None:
    said = explained(trajectory(TEXT), rewards)
    assert "grounding  weight 0.5  abstained" in said
    assert "because they abstained: grounding" in said
    assert "/ 1.25" in said


def test_no_reward_is_said_with_its_reason(trajectory: MakeTrajectory, rewards: RewardsFile) -> None:
    said = explained(trajectory(TEXT, answer={"type": "riddle"}), rewards)
    assert "unscored: no reward" in said
    assert "answer  weight 1  invalid_input" in said
    assert "no reward: answer invalid_input: answer.type of task" in said


def test_what_a_model_wrote_cannot_act_on_the_terminal(trajectory: MakeTrajectory, rewards: RewardsFile) -> None:
    said = explained(trajectory(f"\x1b[2J{TEXT}\x9b\u202e", id="\x1b[1m", record=RECORD), rewards)
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)
    assert r"\x1b[2J" in said


def test_a_logged_reward_that_other_weights_made_is_told_apart(
    trajectory: MakeTrajectory, rewards: RewardsFile
) -> None:
    now = scored(trajectory(TEXT, record=RECORD), rewards)
    records: dict[str, ScoreRecord] = dict(now.scores)
    logged = ScoredTrajectory(trajectory=now.trajectory, reward=0.25, scores=records)
    assert "The log says 0.2500" in "\n".join(explain(logged, rewards, paint=Paint()))


def test_what_the_policy_was_told_stands_between_its_turns(trajectory: MakeTrajectory, rewards: RewardsFile) -> None:
    film = EncodedImage(content=b"x", width=1, height=1)
    message = Message(text="Are you\x1b[2J sure?", images=(film,))
    said = explained(a_conversation(trajectory("<answer>no</answer>", record=RECORD), (message, TEXT)), rewards)
    assert f"completion  {19 + 2 + len(TEXT)} characters in 2 turns, finished by stop" in said
    first, told, second = (
        said.index(each) for each in ("| <answer>no", r"user  Are you\x1b[2J sure? [1 image]", "| <think>")
    )
    assert first < told < second
    start = 19 + 2 + TEXT.index("radius")
    assert f"at {start}–{start + 17} · record.radius" in said


def test_what_a_tool_was_asked_and_answered_is_not_the_users_word(
    trajectory: MakeTrajectory, rewards: RewardsFile
) -> None:
    calls = (
        ToolCall(name="zoom", arguments={"by": 2}, result="closer", turn=0),
        ToolCall(name="dose", arguments={}, result="refused: no drug", ok=False, turn=0),
        ToolCall(name="", arguments={}, result="refused: a call is JSON", ok=False, turn=1),
    )
    told = Message(text="closer\n\nrefused: no drug", role="tool")
    said = explained(a_conversation(trajectory("look", tool_calls=calls, record=RECORD), (told, TEXT)), rewards)
    lines = [line for line in said.splitlines() if line.startswith(("  call", "  tool", "  user"))]
    assert lines == [
        '  call  zoom {"by": 2}',
        "  call  dose {}: refused: no drug",
        "  tool  closer refused: no drug",
        "  call  no call: refused: a call is JSON",
    ]
