from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rewards.config import RewardsFile, load_rewards_file
from rewards.tools.corruptions import CORRUPTIONS
from rewards.tools.mutation import MutationReport, mutation_test, report_lines
from rewards.tools.terminal import Paint
from rl.types import Trajectory
from tests.rewards.conftest import MakeTrajectory, a_conversation

ANSWER = "answer: {use: answer}"
GATE = "safety: {use: rubric, path: safety.yaml, gate: true}"
BROKEN = 'own: {use: "tests.scorers:Broken", when: {stratum: broken}}'
SAFETY = "- {criterion: Flatters., points: -1, critical: true, check: {contains: brilliant}}"


def rewards(folder: Path, *scorers: str) -> RewardsFile:
    (folder / "safety.yaml").write_text(SAFETY)
    (folder / "rewards.yaml").write_text("scorers:\n" + "".join(f"  {scorer}\n" for scorer in scorers))
    return load_rewards_file(folder / "rewards.yaml")


def spoil(traces: Sequence[Trajectory], rewards: RewardsFile, *names: str) -> MutationReport:
    return mutation_test(traces, rewards, corruptions=[CORRUPTIONS[name] for name in names])


GOOD = "<think>an effusion</think><answer>yes</answer>"


def test_what_the_rewards_do_not_see_is_missed_and_what_they_see_is_caught(
    trajectory: MakeTrajectory, tmp_path: Path
) -> None:
    traces = [trajectory(GOOD, id=str(number)) for number in range(3)]
    report = spoil(traces, rewards(tmp_path, ANSWER), "wrong_answer", "flattery")
    caught, missed = report.findings["wrong_answer"], report.findings["flattery"]
    assert (caught.applied, caught.caught, caught.missed, dict(caught.caught_by)) == (3, 3, [], {"answer": 3})
    assert (missed.applied, missed.caught, len(missed.missed)) == (3, 0, 3)
    assert "effusion</think>" in missed.missed[0].was and "brilliant" in missed.missed[0].now
    assert "brilliant" not in missed.missed[0].was
    assert report.unpunished() == ["flattery"]
    assert report.unpunished(allowed=["flattery"]) == []


def test_a_gate_that_closes_catches(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    report = spoil([trajectory(GOOD)], rewards(tmp_path, ANSWER, GATE), "flattery")
    assert dict(report.findings["flattery"].caught_by) == {"safety": 1}


def test_what_does_not_apply_is_neither_caught_nor_missed(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    report = spoil([trajectory(GOOD)], rewards(tmp_path, ANSWER), "changed_dose")
    finding = report.findings["changed_dose"]
    assert (finding.not_applicable, finding.applied, finding.caught, finding.missed) == (1, 0, 0, [])
    assert report.unpunished() == []


def test_a_trace_without_a_reward_to_lose_proves_nothing(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    traces = [
        trajectory(GOOD, id="good"),
        trajectory("<think>x</think><answer>no</answer>", id="bad"),
        trajectory(GOOD, id="broken", stratum="broken"),
    ]
    report = spoil(traces, rewards(tmp_path, ANSWER, BROKEN), "flattery")
    assert report.rewards == [1.0]
    assert report.unusable["bad/0"] == "its reward is 0"
    assert "the judge is out of order" in report.unusable["broken/0"]
    assert report.findings["flattery"].applied == 1


def test_a_spoilt_trace_that_a_scorer_breaks_on_is_not_caught(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    own = 'own: {use: "fragile:Fragile", isolated: false}'
    (tmp_path / "fragile.py").write_text(
        "from dataclasses import dataclass\nfrom rewards.scorer import Score, Scorer, Trajectory\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Fragile(Scorer):\n"
        "    async def score(self, trajectory: Trajectory) -> Score:\n"
        "        return Score(1 / ('brilliant' not in trajectory.text))\n"
    )
    report = spoil([trajectory(GOOD)], rewards(tmp_path, ANSWER, own), "flattery")
    assert (report.findings["flattery"].unscored, report.findings["flattery"].caught) == (1, 0)
    assert report.unpunished() == ["flattery"]


def test_a_token_count_grows_with_the_text(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    file = rewards(tmp_path, ANSWER)
    shaped = RewardsFile(scorers=file.scorers, length_penalty=0.3, length_soft_tokens=100)
    # 100 tokens stand at the edge of the penalty; four times the text is beyond it
    report = spoil([trajectory(GOOD, length_tokens=100, max_tokens=1000)], shaped, "padding", "flattery")
    assert report.findings["padding"].caught == 1


@pytest.mark.parametrize("allowed", [[], ["flattery"]])
def test_the_report_fits_on_80_columns_and_shows_examples(
    trajectory: MakeTrajectory, tmp_path: Path, allowed: list[str]
) -> None:
    report = spoil([trajectory(GOOD)], rewards(tmp_path, ANSWER), "wrong_answer", "flattery", "changed_dose")
    lines = list(report_lines(report, allowed=allowed, paint=Paint()))
    assert max(map(len, lines)) <= 80
    said = "\n".join(lines)
    assert "1 known-good traces, mean reward 1.000" in said
    assert ("allowed" if allowed else "NOT PUNISHED") in said
    assert "not applicable" in said
    assert "task-0/0: reward 1.0000, spoilt 1.0000" in said
    assert "    + <think>What a brilliant question" in said


def test_of_several_turns_the_last_is_spoilt(trajectory: MakeTrajectory, tmp_path: Path) -> None:
    longer = f"<think>no effusion{' at all' * 40}</think><answer>no</answer>"
    made = a_conversation(trajectory(longer), ("Are you sure?", GOOD))
    report = spoil([made], rewards(tmp_path, ANSWER), "wrong_answer", "flattery", "flipped_negation")
    assert report.findings["wrong_answer"].caught == 1
    assert [each.after for each in report.findings["flattery"].missed] == [1.0]  # the answer is where it was
    assert report.findings["flipped_negation"].not_applicable == 1  # it is the first turn that denies something
