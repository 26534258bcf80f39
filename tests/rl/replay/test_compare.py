"""Two scorings of the same trajectories: every number by hand, or against scipy."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wasserstein_distance

from rl.cli import main
from rl.errors import LogError
from rl.replay.compare import EXAMPLES, Shift, _ranks, compare
from rl.replay.examples import example_lines
from rl.report.cards import Shown
from rl.types import Group, Message, Observation, Score, ScoredTrajectory, ScoreRecord, Unscored
from rollouts.log import LoggedStep, write_step
from tests.samples import a_task, a_trajectory

STEP = [("train", 1)]


def a_scoring(
    folder: Path, *groups: Sequence[float | None], version: str = "v1", text: str = "<answer>yes</answer>"
) -> Path:
    """A store of one step with these rewards, each from one scorer; None is unscored."""
    written = []
    for number, rewards in enumerate(groups):
        task = a_task(f"g{number}")
        scored, unscored = [], []
        for index, reward in enumerate(rewards):
            trajectory = a_trajectory(text, id=f"{task.id}/{index}", task=task, sample_index=index)
            if reward is None:
                lost = ScoreRecord(scorer="quality", version=version, outcome="failed", reason="time-out")
                unscored.append(Unscored(trajectory=trajectory, scores={"quality": lost}, reason="time-out"))
            else:
                score = ScoreRecord(scorer="quality", version=version, outcome="scored", score=Score(reward))
                scored.append(ScoredTrajectory(trajectory=trajectory, reward=reward, scores={"quality": score}))
        written.append(Group(task=task, scored=tuple(scored), unscored=tuple(unscored)))
    write_step(folder, LoggedStep(step=1, groups=written))
    return folder


def test_equal_scorings_differ_in_nothing(tmp_path: Path) -> None:
    before, after = (a_scoring(tmp_path / name, [1.0, 0.0], [0.5, None]) for name in "ab")
    found = compare(before, after, STEP)
    assert found.reproduced
    assert (found.trajectories, found.groups, found.unchanged) == (4, 2, 4)
    assert list(found.rank_correlations) == [pytest.approx(1.0)]
    assert (found.signs, found.winner_changes, found.examples) == ({}, 0, [])


def test_ranks_signs_and_winners_are_those_that_one_counts_by_hand(tmp_path: Path) -> None:
    # Ranks 4 3 2 1 against 4 2 1 3: differences 0 1 1 -2, so that 1 - 6 * (0 + 1 + 1 + 4) / (4 * 15) = 0.4.
    # Means 0.55 and 0.4: signs + + - - against + - - 0 (0.4 itself): the second flips, the fourth is lost.
    # In the second group 0.25 + - against - + : both flip, and the winner changes.
    # In the third all rewards become equal: both advantages are lost, and there is no winner to change.
    before = a_scoring(tmp_path / "a", [1.0, 0.6, 0.4, 0.2], [0.5, 0.0], [1.0, 0.0])
    after = a_scoring(tmp_path / "b", [0.9, 0.2, 0.1, 0.4], [0.0, 0.5], [1.0, 1.0], version="v2")
    found = compare(before, after, STEP)
    assert list(found.rank_correlations) == pytest.approx([0.4, -1.0])
    assert found.signs == {"flipped": 3, "lost": 3}
    assert (found.winner_changes, found.contested) == (1, 2)
    assert (found.shifts["quality"].changed, found.shifts["quality"].changed_alike) == (7, 0)
    assert found.unchanged == 1
    assert [(one.trajectory_id, one.size) for one in found.examples[:1]] == [("g2/1", 1.0)]


def test_a_scorer_that_says_something_else_under_the_same_version_is_told_apart(tmp_path: Path) -> None:
    found = compare(a_scoring(tmp_path / "a", [1.0, 0.0]), a_scoring(tmp_path / "b", [0.5, 0.0]), STEP)
    assert found.shifts["quality"].changed_alike == 1


def test_a_lost_score_counts_as_changed_and_stays_out_of_ranks_and_means(tmp_path: Path) -> None:
    # Scored are 1, 0 before and 1 alone after: no baseline is left, both advantages are lost.
    found = compare(a_scoring(tmp_path / "a", [1.0, 0.0]), a_scoring(tmp_path / "b", [1.0, None]), STEP)
    assert found.signs == {"lost": 2}
    assert list(found.rewards.after) == [1.0]
    assert found.shifts["quality"].outcomes_after == {"scored": 1, "failed": 1}
    assert (found.unchanged, len(found.rank_correlations)) == (1, 0)


def test_stores_of_other_trajectories_are_no_two_scorings(tmp_path: Path) -> None:
    before, after = a_scoring(tmp_path / "a", [1.0, 0.0]), a_scoring(tmp_path / "b", [1.0, 0.0, 0.0])
    with pytest.raises(
        LogError, match="do not hold the same trajectories: in train step 1, 'none' stands against 'g0/2'"
    ):
        compare(before, after, STEP)


def test_only_the_largest_changes_are_kept_as_examples(tmp_path: Path) -> None:
    many = [[index / 100, 0.0] for index in range(1, 40)]
    found = compare(a_scoring(tmp_path / "a", *many), a_scoring(tmp_path / "b", *[[0.0, 0.0]] * 39), STEP)
    assert [one.size for one in found.examples] == [(39 - place) / 100 for place in range(EXAMPLES)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_the_distance_is_scipys(before: list[float], after: list[float]) -> None:
    shift = Shift()
    shift.before.extend(before)
    shift.after.extend(after)
    assert shift.distance == pytest.approx(wasserstein_distance(before, after), abs=1e-12)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=9))
def test_ranks_are_scipys(values: list[float]) -> None:
    assert list(_ranks(values)) == list(rankdata(values))  # type: ignore[arg-type]


def test_the_command_shows_both_sides_and_a_page_on_which_a_model_can_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "<script>alert(1)</script>\x1b[2J<answer>yes</answer>"
    before = a_scoring(tmp_path / "a", [1.0, 0.0], text=text)
    after = a_scoring(tmp_path / "b", [0.0, 1.0], text=text, version="v2")
    assert main(["compare", str(before), str(after), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "advantages: 2 change sign (100.0%)" in shown
    assert "winners: 1 of 1 groups have another best trajectory" in shown
    assert "v1 → v2" in shown
    assert "quality: 0.000 → 1.000" in shown
    assert "\x1b" not in shown
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "100.0% of advantages change sign; 1 of 1 groups have another winner." in page


def test_an_example_of_several_turns_ends_with_the_last_of_them() -> None:
    told = Observation(message=Message(text="Sure?"), place=3)
    for text, observations, line in [("yes", (), "    … yes"), ("yes\n\nno", (told,), "    turn 2: … no")]:
        trajectory = a_trajectory(text, observations=observations)
        shown = Shown(
            step=1,
            group=Group(task=trajectory.task, scored=()),
            item=ScoredTrajectory(trajectory=trajectory, reward=1.0, scores={}),
        )
        assert list(example_lines([(shown, shown)]))[-1] == line
