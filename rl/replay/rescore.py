"""Logged trajectories under other rewards: no model, no accelerator stack, every core, and no row held for long.

A replay is a trajectory store of its own, beside a record of what it was made of. A step is the unit of work: it is
read, scored and written in one process and is there whole or not at all, so that a broken-off replay can go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.config import RewardsFile, load_rewards_file
from rewards.judges.config import reach_judges
from rewards.service import RewardService
from rl.errors import ConfigError, LogError, ScorerError
from rl.progress import Progress
from rl.run_folder import write_summary
from rl.types import ScoredTrajectory, Trajectory, Unscored
from rollouts.log import KINDS, Kind, iter_rows, logged_steps, rescore_step, row_count, step_path

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

RECORD = "replay.json"
_LOOK_S = 1.0  # between two looks at how far the processes are

Step = tuple[Kind, int]
Tell = Callable[[int], None]
"""Takes how many more trajectories are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A replay that is done: its folder, that of the scores it is compared with, and what was replayed."""

    source: Path
    out: Path
    steps: tuple[Step, ...]
    own_rewards: bool


def replay(
    run_dir: Path,
    out: Path,
    *,
    rewards: Path | None = None,
    steps: Collection[int] | None = None,
    kinds: Sequence[Kind] = KINDS,
    workers: int = 0,
    address: str = "",
) -> Replay:
    """Score the logged ``steps`` (None for all) of a run anew and write them into the folder ``out``.

    ``rewards`` is a rewards file; None takes the run's own rewards. ``workers`` processes share the work (0 for one per
    core), or the CPUs of the Ray cluster at ``address``, which must see both folders under the same paths. Steps that
    an earlier call left in ``out`` are kept. Raises ConfigError, LogError, and ScorerError where a worker dies.
    """
    file = rewards or own_rewards(run_dir)
    loaded = load_rewards_file(file)
    chosen = tuple(choose_steps(run_dir, steps=steps, kinds=kinds))
    _open_folder(run_dir, out, rewards=file, loaded=loaded)
    _say_what_shaping_misses(run_dir, chosen, loaded)
    rows = {(kind, step): row_count(run_dir, step, kind=kind) for kind, step in chosen}
    left = {(kind, step): rows[kind, step] for kind, step in chosen if not step_path(out, step, kind=kind).exists()}
    done = sum(rows.values()) - sum(left.values())
    progress = Progress(sum(rows.values()), noun="trajectory", done=done, every_s=5.0)

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress.update(done)

    _rescore_all(run_dir, out, left, rewards=loaded, workers=workers, address=address, tell=tell)
    return Replay(source=run_dir, out=out, steps=chosen, own_rewards=rewards is None)


def own_rewards(run_dir: Path) -> Path:
    """The config that the run was made with. Raises ConfigError where it has none, as an imported log."""
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{run_dir} has no config.yaml that says by what rewards to score; pass --rewards FILE")
    return config


def roles_of(folder: Path) -> dict[str, str]:
    """What each scorer's score is used for, in the words of a report; empty where the folder is no replay."""
    record = folder / RECORD
    scorers = json.loads(record.read_text())["scorers"] if record.is_file() else {}
    return {name: "gate" if each["gate"] else f"weight {each['weight']:g}" for name, each in scorers.items()}


def choose_steps(run_dir: Path, *, steps: Collection[int] | None, kinds: Sequence[Kind]) -> Iterator[Step]:
    """The steps of ``kinds`` that are logged and wanted. Raises LogError where there are none, or one is missing."""
    logged = [(kind, step) for kind in kinds for step in logged_steps(run_dir, kind=kind)]
    there = {step for _, step in logged}
    if not logged:
        raise LogError(f"{run_dir} holds no trajectories of {' or '.join(kinds)} steps; is it a run's folder?")
    if missing := sorted(set(steps or ()) - there):
        raise LogError(f"{run_dir} has no step {missing[0]}; its steps are {min(there)} to {max(there)}")
    yield from (each for each in logged if steps is None or each[1] in steps)


def _say_what_shaping_misses(run_dir: Path, steps: Sequence[Step], rewards: RewardsFile) -> None:
    if rewards.length_penalty and rewards.length_soft_tokens:
        kind, step = steps[0]
        first = next(iter_rows(run_dir, kind=kind, steps=[step]))
        if first.get("source"):
            print(
                f"length_penalty {rewards.length_penalty:g} counts tokens, which no log of {first['source']} has: "
                f"these trajectories are rewarded without it",
                file=sys.stderr,
            )


def _open_folder(run_dir: Path, out: Path, *, rewards: Path, loaded: RewardsFile) -> None:
    """Make ``out``, or check that it holds this very replay, broken off. Raises ConfigError."""
    if out.resolve() == run_dir.resolve():
        raise ConfigError(f"--out {out} is the run itself; a replay never overwrites what it reads")
    record = {
        "source": str(run_dir.resolve()),
        "rewards": str(rewards.resolve()),
        "length_penalty": loaded.length_penalty,
        "length_soft_tokens": loaded.length_soft_tokens,
        "scorers": {
            each.name: {"version": each.version, "weight": each.weight, "gate": each.gate, "when": dict(each.when)}
            for each in loaded.scorers
        },
    }
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        out.mkdir(parents=True, exist_ok=True)
        write_summary(out, record, name=RECORD)
        return
    if not (out / RECORD).is_file():
        raise ConfigError(f"--out {out} already exists and is no replay; name another folder")
    if changed := _differing(json.loads((out / RECORD).read_text()), record):
        raise ConfigError(
            f"--out {out} holds another replay: {', '.join(changed)} differ from its {RECORD}; name another folder"
        )


def _differing(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys that make it another replay; the rewards file may have moved."""
    return [key for key in now if key != "rewards" and was.get(key) != now[key]]


def _rescore_all(
    run_dir: Path, out: Path, rows: Mapping[Step, int], *, rewards: RewardsFile, workers: int, address: str, tell: Tell
) -> None:
    """Score the steps, which have so many ``rows``, in whatever order they are done."""
    rewards = dataclasses.replace(rewards, scorers=reach_judges(rewards.scorers, kept_will_do=True))
    steps = tuple(rows)
    workers = min(workers or len(os.sched_getaffinity(0)), len(steps))
    if address:
        from rl.replay.cluster import rescored_on_ray

        for step in rescored_on_ray(run_dir.resolve(), out.resolve(), steps, rewards=rewards, address=address):
            tell(rows[step])
    elif workers > 1:
        _rescore_by_processes(run_dir, out, steps, rewards=rewards, workers=workers, tell=tell)
    else:
        with Rescorer(rewards, tell) as rescorer:
            for step in steps:
                rescorer.rescore(run_dir, out, step)


class Rescorer:
    """The scorers of one process, built once for all the steps that it is given."""

    def __init__(self, rewards: RewardsFile, tell: Tell = lambda _: None) -> None:
        self._tell = tell
        self._service = RewardService(
            rewards.scorers, length_penalty=rewards.length_penalty, length_soft_tokens=rewards.length_soft_tokens
        )
        self._runner = asyncio.Runner()

    def rescore(self, run_dir: Path, out: Path, step: Step) -> Step:
        kind, number = step
        rescore_step(run_dir, number, kind=kind, out=out, score=self.score)
        return step

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        # Not `run`, which puts up a handler of Ctrl-C that has all trajectories written out for a message.
        return self._runner.get_loop().run_until_complete(_scored(self._service, trajectories, self._tell))

    def __enter__(self) -> Rescorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.close()
        self._runner.close()


# No method of the class: Ray runs all of an actor that has a coroutine inside a loop of its own.
async def _scored(
    service: RewardService, trajectories: Sequence[Trajectory], tell: Tell
) -> list[ScoredTrajectory | Unscored]:
    async def scored(trajectory: Trajectory) -> ScoredTrajectory | Unscored:
        outcome = await service.score(trajectory)
        tell(1)
        return outcome

    return list(await asyncio.gather(*map(scored, trajectories)))


_rescorer: Rescorer
"""Of a process that `_prepare` has prepared."""


def _rescore_by_processes(
    run_dir: Path, out: Path, steps: Sequence[Step], *, rewards: RewardsFile, workers: int, tell: Tell
) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of Arrow in whatever state they are
    counter = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(rewards, counter)) as pool:
        try:
            _await_all({pool.submit(partial(_rescore, run_dir, out, step)) for step in steps}, counter, tell)
        except BrokenProcessPool:
            raise ScorerError(
                f"a scoring process died, killed for memory perhaps, or by a scorer that takes its process with it "
                f"(`isolated: true` keeps one in a process of its own). What is done is in {out}: repeat to go on"
            ) from None
        finally:  # also where nobody waits for the rest: after an error, or Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()


def _await_all(pending: set[Future[Step]], counter: Synchronized[int], tell: Tell) -> None:
    told = 0
    while pending:
        done, pending = wait(pending, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        counted = counter.get_obj().value  # without its lock, which a process that was killed may hold for ever
        if counted > told:
            tell(counted - told)
        told = counted


def _prepare(rewards: RewardsFile, counter: Synchronized[int]) -> None:
    import multiprocessing
    import signal
    import threading

    global _rescorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _rescorer = Rescorer(rewards, partial(_count, counter))


def _count(counter: Synchronized[int], more: int) -> None:
    with counter.get_lock():
        counter.value += more


def _end_with(parent: Any) -> None:
    """A worker waits for its next step for ever, also where the one who would give it was killed."""
    parent.join()
    os._exit(1)


def _rescore(run_dir: Path, out: Path, step: Step) -> Step:
    return _rescorer.rescore(run_dir, out, step)
