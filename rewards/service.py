"""The reward service: every scorer within its deadline, every failure a failure and never a zero.

`RewardService` is a plain class for one process; `reward_actor` makes Ray actors of it.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from rewards.cache import ScoreCache
from rewards.combine import NoReward, Reward, combine, largest_penalty, length_shaping
from rewards.config import ConfiguredScorer
from rewards.isolation.attempt import Attempt, checked_evidence, failed
from rewards.isolation.deadline import Clock
from rewards.isolation.sandbox import Sandbox
from rewards.provenance import inputs_of
from rewards.scorer import Abstain, InvalidInput, Score, Scorer, Trajectory
from rewards.turns import joined, parts_of
from rl.types import Outcome, ScoredTrajectory, ScoreRecord, Unscored

ABORTED = "the completion was aborted: there is no answer to score"
MAX_RESULT_CHARS = 200
MIN_WAIT_S = 0.05  # between two looks at a clock that stands still


class RewardService:
    """Scores trajectories with the scorers of a run and combines the scores.

    ``length_penalty`` is the most that an overlong completion loses, from ``length_soft_tokens`` tokens on; it is cut
    to what the weights bear (see `rewards.combine`). ``cache`` names a file that keeps scores across restarts. Close
    the service, or use it as a context manager, to end the processes of isolated scorers.
    """

    def __init__(
        self,
        scorers: Sequence[ConfiguredScorer],
        *,
        length_penalty: float = 0.0,
        length_soft_tokens: int = 0,
        cache: str | Path = "",
    ) -> None:
        self._scorers = tuple(scorers)
        self._weights = {each.name: each.weight for each in scorers if not each.gate or each.weight > 0}
        self._shapers = {each.name: each.shaping for each in scorers if each.shaping > 0}
        self._rising = frozenset(each.name for each in scorers if each.rising)
        self._gates = tuple(each.name for each in scorers if each.gate)
        self._correctness = tuple(each.name for each in scorers if each.scorer.decides_correctness)
        self._max_shaping = largest_penalty(self._weights, correctness=self._correctness)
        self._length_penalty, self._length_soft_tokens = length_penalty, length_soft_tokens
        self._cache = ScoreCache(cache or None)
        self._sandboxes = {each.name: Sandbox(each.scorer) for each in scorers if each.isolated}
        self._counts: dict[str, Counter[Outcome]] = {each.name: Counter() for each in scorers}
        self._abandoned: set[asyncio.Task[Attempt]] = set()
        for each in scorers:
            if not each.isolated:
                each.scorer.prepare()

    async def score(
        self, trajectory: Trajectory, *, known: Mapping[str, ScoreRecord] = MappingProxyType({})
    ) -> ScoredTrajectory | Unscored:
        """Ask all scorers at once. A scorer that counts and fails leaves the trajectory unscored, and so does a
        completion that was aborted: whatever broke it off, it is not what the policy answered.

        ``known`` are scores of this trajectory by name: those of the same version of a scorer are not asked for again.
        """
        if trajectory.finish_reason == "abort":
            return Unscored(trajectory=trajectory, scores={}, reason=_aborted(trajectory))
        inputs = inputs_of(trajectory)
        made = await asyncio.gather(*(self._known_or_new(each, trajectory, inputs, known) for each in self._scorers))
        records = {record.scorer: record for record in made}
        reward = self.combined(trajectory, records)
        if isinstance(reward, NoReward):
            return Unscored(trajectory=trajectory, scores=records, reason=reward.reason)
        return ScoredTrajectory(
            trajectory=trajectory, reward=reward.value, scores=records, correct=self._correct(records)
        )

    def combined(self, trajectory: Trajectory, records: Mapping[str, ScoreRecord]) -> Reward | NoReward:
        """The reward that these scores of a trajectory make, with what it is made of."""
        shaping = length_shaping(
            trajectory.length_tokens,
            penalty=self._length_penalty,
            soft_tokens=self._length_soft_tokens,
            max_tokens=trajectory.sampling.max_tokens,
        )
        return combine(
            records,
            weights=self._weights,
            gates=self._gates,
            shapers=self._shapers,
            rising=self._rising,
            shaping=shaping,
            max_shaping=self._max_shaping,
        )

    async def score_many(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        """One outcome per trajectory, in order."""
        return list(await asyncio.gather(*map(self.score, trajectories)))

    def counts(self) -> Mapping[str, Mapping[Outcome, int]]:
        """How often each scorer scored, abstained, failed, or could not read its input, since the start."""
        return {name: dict(counter) for name, counter in self._counts.items()}

    def cache_counts(self) -> tuple[int, int]:
        """How many scores were there already, and how many were looked for and had to be made."""
        return self._cache.hits, self._cache.misses

    def close(self) -> None:
        self._cache.close()
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def __enter__(self) -> RewardService:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def _known_or_new(
        self, configured: ConfiguredScorer, trajectory: Trajectory, inputs: str, known: Mapping[str, ScoreRecord]
    ) -> ScoreRecord:
        record = known.get(configured.name)
        if record is not None and record.version == configured.version:
            return record
        return await self._record(configured, trajectory, inputs)

    async def _record(self, configured: ConfiguredScorer, trajectory: Trajectory, inputs: str) -> ScoreRecord:
        key = (configured.version, inputs)
        if not configured.applies_to(trajectory.task):
            attempted, duration_s = Attempt(outcome="abstained", reason="not for this task (`when`)"), 0.0
        elif not (configured.deterministic and configured.version):
            attempted, duration_s = await self._ask(configured, trajectory)
        elif known := self._cache.get(key):
            attempted, duration_s = known, 0.0
        else:
            attempted, duration_s = await self._ask(configured, trajectory)
            self._cache.put(key, attempted)
        self._counts[configured.name][attempted.outcome] += 1
        return ScoreRecord(
            scorer=configured.name,
            version=configured.version,
            outcome=attempted.outcome,
            score=attempted.score,
            reason=attempted.reason,
            duration_s=duration_s,
            inputs=inputs,
        )

    async def _ask(self, configured: ConfiguredScorer, trajectory: Trajectory) -> tuple[Attempt, float]:
        """What came of all that the scorer reads of the trajectory, asked at once, and the seconds that all took."""
        parts = parts_of(trajectory, configured.turns)
        asking = [self._ask_of(configured, part.trajectory) for part in parts]
        made = (
            [await asking[0]] if len(asking) == 1 else await asyncio.gather(*asking)
        )  # a task costs as much as a rule
        attempts = [attempted for attempted, _ in made]
        counted = configured.scorer.counted_metrics
        return joined(parts, attempts, counted_metrics=counted), sum(duration_s for _, duration_s in made)

    async def _ask_of(self, configured: ConfiguredScorer, trajectory: Trajectory) -> tuple[Attempt, float]:
        """The outcome of the last try, and the seconds that all of them took."""
        sandbox = self._sandboxes.get(configured.name)
        total_s = 0.0
        for _ in range(1 + configured.retries):
            if sandbox:
                attempted, duration_s = await sandbox.score(trajectory, timeout_s=configured.timeout_s)
            else:
                attempted, duration_s = await self._score_here(configured, trajectory)
            total_s += duration_s
            if attempted.outcome != "failed":
                return attempted, total_s
        tries = f" (the last of {1 + configured.retries} tries)" if configured.retries else ""
        return failed(attempted.reason + tries), total_s

    async def _score_here(self, configured: ConfiguredScorer, trajectory: Trajectory) -> tuple[Attempt, float]:
        """Score in this process. The deadline runs from when the scorer is first given control, and stands still while
        the scorer waits behind others for what they share (`rewards.isolation.deadline.in_queue`).

        A scorer that swallows its cancellation is left behind: waiting for it would be waiting without a deadline.
        """
        clock = Clock()
        began = time.monotonic()

        async def scoring() -> Attempt:
            nonlocal began
            began = time.monotonic()
            clock.start()
            clock.time_this_task()
            return await attempt(configured.scorer, trajectory)

        task = asyncio.create_task(scoring())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        try:
            while not task.done() and (left_s := configured.timeout_s - clock.elapsed_s) > 0:
                await asyncio.wait({task}, timeout=max(left_s, MIN_WAIT_S) if clock.stands_still else left_s)
        finally:
            task.cancel()
        duration_s = time.monotonic() - began
        if not task.done():
            return failed(f"no score within {configured.timeout_s:g} s"), duration_s
        return failed("the scorer cancelled itself") if task.cancelled() else task.result(), duration_s

    def _correct(self, records: Mapping[str, ScoreRecord]) -> bool | None:
        said = (records[name].score for name in self._correctness)
        return next((score.value == 1.0 for score in said if score is not None), None)


def _aborted(trajectory: Trajectory) -> str:
    """Why, where a tool broke it off: the calls of its last turn that were not answered."""
    last = len(trajectory.turns) - 1
    broken = [call for call in trajectory.tool_calls if call.turn == last and not call.ok]
    said = "; ".join(f"the tool {call.name!r} said: {call.result[:MAX_RESULT_CHARS]}" for call in broken)
    return f"{ABORTED} ({said})" if said else ABORTED


async def attempt(scorer: Scorer, trajectory: Trajectory) -> Attempt:
    """Ask for one score; whatever goes wrong is an outcome with its reason."""
    try:
        return Attempt(outcome="scored", score=_checked(await scorer.score(trajectory)))
    except Abstain as error:
        return Attempt(outcome="abstained", reason=str(error))
    except InvalidInput as error:
        return Attempt(outcome="invalid_input", reason=str(error))
    except (Exception, SystemExit) as error:
        return failed(_described(error))


def _checked(score: Any) -> Score:
    """The score in plain numbers. Raises TypeError for another type, ValueError for a value outside [0, 1] and for a
    metric that is not finite, which would spoil the step's mean."""
    if not isinstance(score, Score):
        raise TypeError(f"a scorer must return a Score; got {score!r:.100}")
    metrics = {str(name): float(value) for name, value in score.metrics.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"a score's metrics must be finite numbers; got {name!r}: {value}")
    return Score(
        float(score.value),
        reason=str(score.reason),
        evidence=tuple(map(checked_evidence, score.evidence)),
        gate_open=bool(score.gate_open),
        metrics=metrics,
    )


def _described(error: BaseException) -> str:
    """The error and the line of the scorer's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error!s:.500}{place}"


class RewardWorker:
    """A `RewardService` as a Ray actor holds it (see `reward_actor`)."""

    def __init__(self, scorers: Sequence[ConfiguredScorer], **settings: Any) -> None:
        self._service = RewardService(scorers, **settings)

    async def score_many(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        return await self._service.score_many(trajectories)

    async def counts(self) -> Mapping[str, Mapping[Outcome, int]]:
        return self._service.counts()

    async def close(self) -> None:
        self._service.close()


def reward_actor(*, num_cpus: float = 1.0) -> Any:
    """`RewardWorker` as a Ray actor class: ``reward_actor(num_cpus=1).remote(scorers, length_penalty=…)``."""
    import ray

    return ray.remote(num_cpus=num_cpus)(RewardWorker)
