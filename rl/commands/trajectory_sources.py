"""Where the reward tools take trajectories from: a file of rows, or the trajectory store of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.config import RewardsFile, load_rewards_file
from rewards.rows import check_rows, read_rows, row_trajectory
from rl.errors import LogError, TaskError
from rl.replay.rescore import own_rewards
from rl.types import ScoredTrajectory, Trajectory, Unscored
from rollouts.log import KINDS, iter_rows, logged_steps, read_step

BUILT_IN_TRACES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectorySource:
    """Trajectories that were checked as a whole and are read anew each time that they are gone through.

    ``without_tokens`` of the ``total`` came without a token count.
    """

    path: Path
    total: int
    without_tokens: int
    read: Callable[[], Iterator[Trajectory]]

    def __iter__(self) -> Iterator[Trajectory]:
        return self.read()

    def find(self, id: str) -> Trajectory:
        """Raises TaskError where there is none of that id."""
        found = next((trajectory for trajectory in self if trajectory.id == id), None)
        if found is None:
            example = next(iter(self)).id
            raise TaskError(f"{self.path} has no trajectory of the id {id!r}; its ids are such as {example!r}")
        return found


def open_source(path: Path) -> TrajectorySource:
    """A file of rows, or a run's folder. All of it is checked first: raises the error of the first fault."""
    return _open_run(path) if path.is_dir() else _open_rows(path)


def _open_rows(path: Path) -> TrajectorySource:
    if path.exists() and not path.is_file():
        raise TaskError(f"{path} must be a regular file: it is read twice, once to check it and once to score it")
    total = without_tokens = 0
    for trajectory in _trajectories(path, check_rows(path)):
        total += 1
        without_tokens += not trajectory.length_tokens
    return TrajectorySource(
        path=path,
        total=total,
        without_tokens=without_tokens,
        read=lambda: _trajectories(path, read_rows(path)),
    )


def _trajectories(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Trajectory]:
    for number, row in rows:
        try:
            yield row_trajectory(row, image_folder=path.parent)
        except ValueError as error:
            raise TaskError(f"{path}:{number}: {error}") from error


def _open_run(folder: Path) -> TrajectorySource:
    total = 0
    seen: set[str] = set()
    for kind in KINDS:
        for row in iter_rows(folder, kind=kind, columns=["trajectory_id", "step"]):
            total += 1
            if row["trajectory_id"] in seen:
                raise LogError(
                    f"{folder} holds the trajectory {row['trajectory_id']!r} twice, again in {kind} step {row['step']}"
                )
            seen.add(row["trajectory_id"])
    if not total:
        raise LogError(f"{folder} holds no trajectories; is it a run's folder?")
    return TrajectorySource(
        path=folder,
        total=total,
        without_tokens=0,
        read=lambda: (scored.trajectory for scored in logged_scores(folder)),
    )


def logged_scores(folder: Path) -> Iterator[ScoredTrajectory | Unscored]:
    """What a run scored, with its scores, in the order of the log; one step in memory at a time."""
    for kind in KINDS:
        for step in logged_steps(folder, kind=kind):
            for group in read_step(folder, step, kind=kind).groups:
                yield from group.items


def find_logged(folder: Path, id: str) -> ScoredTrajectory | Unscored:
    """One trajectory of a run with the scores that it got. Raises LogError where the run has none of that id."""
    example = None
    for kind in KINDS:
        for row in iter_rows(folder, kind=kind, columns=["trajectory_id", "step"]):
            example = example or row["trajectory_id"]
            if row["trajectory_id"] == id:
                groups = read_step(folder, row["step"], kind=kind).groups
                return next(item for group in groups for item in group.items if item.trajectory.id == id)
    hint = f"; its ids are such as {example!r}" if example else "; is it a run's folder?"
    raise LogError(f"{folder} has no trajectory of the id {id!r}{hint}")


def rewards_of_run(folder: Path) -> RewardsFile:
    """The rewards that a run was scored with. Raises ConfigError where they cannot be built any more."""
    return replace(load_rewards_file(own_rewards(folder)), cache="")


def built_in_known_good() -> list[Trajectory]:
    """What a careful reader would write for some of the built-in training cases."""
    from rollouts.cytology import load_cytology, reference_trace

    return [
        replace(
            row_trajectory({"id": task.id, "question": task.question, "answer": task.answer, "completion": trace}),
            task=task,
        )
        for task in load_cytology("train")[:BUILT_IN_TRACES]
        for trace in [reference_trace(task, conclusion="malignant" if task.stratum == "yes" else "benign")]
    ]
