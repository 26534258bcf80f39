"""The training loop. `Run.loop` reads like the algorithm; what stands around it starts, records, saves and stops."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from policies.contract import Update
from rl.advantage import has_signal
from rl.ahead import Ahead, EarlyAnchors, check_staleness, staleness_metrics
from rl.batch import make_train_batch, reward_columns, train_sample
from rl.checkpoint import save_checkpoint
from rl.collect import Collected, Rewards, check_unscored, collect, make_requests
from rl.config_schema import RunConfig
from rl.curriculum import TaskSampler
from rl.errors import LearnerError, PublicationError
from rl.evaluate import evaluate
from rl.metrics import MetricsLog, group_metrics, read_metrics
from rl.progress import Progress
from rl.publication import transfer_weights
from rl.settings import greedy_sampling, has_early_forward, training_sampling
from rl.step_log import StepLog, logged_step
from rl.stopping import Interrupted, unless_stopped
from rl.timeline import Span, Timeline
from rl.types import Group, SamplingParams, Task, TrainBatch, WeightsVersion
from rl.watch import StepWatch
from rollouts.log import LoggedStep
from rollouts.pool import RolloutPool
from rollouts.prompts import messages_by_task

PROBE_TASKS = 2
PROBE_TOKENS = 8


class Run:
    """A run in progress: the parts that it drives and the state that a checkpoint holds."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        pool: RolloutPool,
        rewards: Rewards,
        learner: Any,
        tasks: tuple[Task, ...],
        eval_tasks: tuple[Task, ...],
        weights: dict[str, float],
        gates: frozenset[str],
        max_shaping: float,
        metrics: MetricsLog,
        timeline: Timeline,
        stop: asyncio.Event,
    ) -> None:
        self.config, self.folder = config, folder
        self.pool, self.rewards, self.learner = pool, rewards, learner
        self.tasks, self.eval_tasks = tasks, eval_tasks
        self.weights, self.gates, self.max_shaping = weights, gates, max_shaping
        self.metrics, self.timeline = metrics, timeline
        self.log = StepLog(folder if config.logging.trajectories else None, metrics=metrics, timeline=timeline)
        self.max_staleness = config.async_.max_staleness
        self.sampler = TaskSampler(tasks, seed=config.seed, balance=config.tasks.balance)
        self.step = 0
        self.reshaped = False
        self.published: WeightsVersion
        self.check_s = 0.0
        self.stop = stop
        self._undone: dict[int, list[Task]] = {}
        """Tasks that were drawn for steps that were not taken yet."""

    async def loop(self) -> None:
        """GRPO: generate, score, update, publish. Raises Interrupted at the first safe moment after `stop` is set."""
        config = self.config
        progress = Progress(config.max_steps, done=self.step)
        watch = StepWatch(self._first_length_tokens())
        await self.publish(self.step)
        if self.step == 0:
            await self.evaluate(0)
        async with self.log, Ahead(self.collect, max_staleness=self.max_staleness, last_step=config.max_steps) as ahead:
            for step in range(self.step + 1, config.max_steps + 1):
                began_s = time.time()
                collected = await unless_stopped(ahead.collected(step), self.stop)
                before = self.published
                async with self.log.kept_on_failure(step, [collected]):
                    batch = self.train_batch(collected.groups)
                    with self.timeline.during("update", step) as updating:
                        update = await self.learner.update(batch, known=collected.anchors)
                    await self.log.written()  # the step before, which had all this time
                    await self.publish(step)
                ahead.published(step)
                values = self.record(
                    step, collected, batch, update, weights_before=before, began_s=began_s, update_s=updating.duration_s
                )
                if step == config.max_steps or (
                    config.evaluation.every_steps and step % config.evaluation.every_steps == 0
                ):
                    values |= await self.evaluate(step)
                progress.update(step, values)
                for warning in watch.warnings(collected.groups, length_tokens=values["length/mean_tokens"]):
                    progress.warn(warning)
                if step == config.max_steps or step % config.checkpoint.every_steps == 0:
                    await self.save()
                if self.stop.is_set():
                    raise Interrupted

    async def collect(self, step: int) -> Collected:
        """The step's scored groups; with dynamic sampling, groups whose rewards are all equal are drawn anew."""
        config = self.config
        kept: list[Group] = []
        spare: list[Group] = []
        rounds: list[Collected] = []
        drawn = self._undone[step] = []
        async with EarlyAnchors(self.learner) as early:
            for _ in range(config.dynamic_sampling.max_rounds if config.dynamic_sampling.enabled else 1):
                tasks = self.sampler.next_batch(config.tasks_per_step - len(kept))
                requests = make_requests(
                    tasks,
                    kind="train",
                    step=step,
                    first=len(drawn),
                    num_samples=config.group_size,
                    sampling=training_sampling(config),
                    seed=config.seed,
                )
                drawn.extend(tasks)
                rounds.append(
                    await collect(
                        requests,
                        pool=self.pool,
                        rewards=self.rewards,
                        workers=len(self.pool.workers),
                        scored=early.begin if has_early_forward(config) else None,
                    )
                )
                async with self.log.kept_on_failure(step, rounds):
                    check_unscored(rounds[-1].groups, max_fraction=config.rewards.max_unscored_fraction)
                for group in rounds[-1].groups:
                    (kept if self._has_signal(group) else spare).append(group)
                if len(kept) == config.tasks_per_step:
                    break
            asked_s = time.time()
            anchors, computing = await early.known()
        # Without a refill, or where all rounds are spent, groups without signal fill the batch: no sample is lost.
        missing = config.tasks_per_step - len(kept)
        return Collected(
            sorted([*kept, *spare[:missing]], key=_request_id),
            spans=[*(span for each in rounds for span in each.spans), *computing],
            waits=[
                *(wait for each in rounds for wait in each.waits),
                Span(phase="forward", began_s=asked_s, ended_s=time.time()),
            ],
            drawn_anew=spare[missing:],
            anchors=anchors,
        )

    def train_batch(self, groups: list[Group]) -> TrainBatch:
        """Advantages and samples of the step. Raises LearnerError where nothing is left to train on, RolloutError where
        a token is older than the bound on staleness allows."""
        check_staleness(groups, learner_version=self.step, max_staleness=self.max_staleness)
        advantage = self.config.advantage
        batch = make_train_batch(
            groups,
            baseline=advantage.baseline,  # type: ignore[arg-type]
            scale=advantage.scale,  # type: ignore[arg-type]
            per_reward=advantage.per_reward,
            weights=self.weights,
            gates=self.gates,
            max_shaping=self.max_shaping,
            policy_version=self.step,
        )
        if not batch.loss_tokens:
            raise LearnerError(
                "no group of the step has two scored trajectories with tokens to train on; look at the scorers' "
                "reasons in the trajectory log"
            )
        return batch

    def _has_signal(self, group: Group) -> bool:
        """Whether the group's advantages will not all be zero."""
        if self.config.advantage.per_reward:
            return has_signal(reward_columns(group, weights=self.weights, gates=self.gates))
        return has_signal(np.array([scored.reward for scored in group.scored]))

    async def publish(self, version: int) -> None:
        """Hand the learner's weights to every engine, then compare both on a few fresh tokens.

        What an engine is writing meanwhile goes on with the new weights.
        """
        with self.timeline.during("publish", version):
            began = time.perf_counter()
            weights = await transfer_weights(
                self.learner, self.pool, version=version, over=self.config.rollouts.weight_transfer
            )
            self.published = WeightsVersion(
                number=version,
                size_bytes=weights.size_bytes,
                publish_s=time.perf_counter() - began,
                sha256=weights.sha256,
            )
            checking = time.perf_counter()
            difference = await self._publication_difference(version)
            self.check_s = time.perf_counter() - checking
        if version > self.step or version == 0:  # a resumed run has recorded the version that it starts from
            self.metrics.record(
                version, {"publication/check_difference": difference, "publication/size_bytes": weights.size_bytes}
            )
        bound = self.config.rollouts.max_logprob_difference
        if not difference <= bound:
            raise PublicationError(
                f"engine and learner disagree after publishing version {version}: the mean difference of their "
                f"logprobs is {difference:.4g}, above rollouts.max_logprob_difference={bound:g}. Either a weight did "
                f"not arrive (tied embeddings, a renamed parameter) or both compute in another precision: compare with "
                f"policy.dtype=float32 and learner.packing=false, and raise the bound only if that explains it"
            )

    async def evaluate(self, step: int) -> dict[str, float]:
        """Greedy accuracy and reward on the held-out tasks; logged with their trajectories."""
        await self.log.written()
        limit = self.config.evaluation.max_tasks or len(self.eval_tasks)
        with self.timeline.during("evaluate", step) as evaluating:
            evaluation = await evaluate(
                self.eval_tasks[:limit],
                step=step,
                pool=self.pool,
                rewards=self.rewards,
                sampling=greedy_sampling(self.config),
                seed=self.config.seed,
                with_tools=bool(self.config.rollouts.tools),
            )
        # Nothing is published meanwhile: what is written ahead shares the engines with it, and changes no version.
        check_staleness(evaluation.groups, learner_version=step, max_staleness=0)
        if not self.max_staleness:
            await self.pool.drop_caches()  # a run that is resumed after this step has not seen these prompts
        values = evaluation.metrics | {"time/eval_s": evaluating.duration_s}
        groups = evaluation.groups
        self.log.begin(LoggedStep(step=step, groups=groups, kind="eval", messages=messages_by_task(groups)), values)
        return values

    def record(
        self,
        step: int,
        collected: Collected,
        batch: TrainBatch,
        update: Update,
        *,
        weights_before: WeightsVersion,
        began_s: float,
        update_s: float,
    ) -> dict[str, float]:
        """Begin to write the step's trajectories and metrics, and move the run's state behind it."""
        advantages = np.array([sample.advantage for sample in batch.samples])
        self.timeline.record(step, collected.spans)
        step_s = time.time() - began_s
        values = group_metrics(
            collected.groups, drawn_anew=collected.drawn_anew, with_tools=bool(self.config.rollouts.tools)
        )
        generated = values["throughput/tokens"]
        values |= {
            f"{'rollout' if 'difference' in name else 'loss'}/{name}": value for name, value in update.stats.items()
        }
        values |= staleness_metrics(collected.groups, learner_version=self.step)
        values |= {
            "loss/tokens": batch.loss_tokens,
            "advantage/abs_mean": float(np.abs(advantages).mean()),
            "advantage/std": float(advantages.std()),
            "group/refilled": len(collected.drawn_anew),
            "policy_version": batch.policy_version,
            "time/generate_s": collected.waited_s("generate", since_s=began_s),
            "time/score_s": collected.waited_s("score", since_s=began_s),
            "time/forward_s": collected.waited_s("forward", since_s=began_s),
            "time/update_s": update_s,
            "time/publish_s": self.published.publish_s,
            "time/check_s": self.check_s,
            "time/log_s": self.log.waited_s,
            "time/step_s": step_s,
            "throughput/tokens_per_s": generated / step_s,
            "throughput/generate_tokens_per_s": generated / collected.waited_s("generate"),
        }
        made = self._update_record(update, weights_before)
        self.log.begin(logged_step(step, collected, batch, update, record=made), values)
        self.step = step
        del self._undone[step]
        return values

    def _update_record(self, update: Update, weights_before: WeightsVersion) -> dict[str, Any]:
        """What the update of a step did, for whoever makes it again."""
        return {
            "stats": dict(update.stats),
            "weights_before": weights_before.sha256,
            "weights_after": self.published.sha256,
        } | self._learner_shape()

    def _learner_shape(self) -> dict[str, int]:
        """Over what the learner's sums run: another shape rounds them otherwise."""
        return {"ranks": self.config.learner.ranks, "zero_stage": self.config.learner.zero_stage}

    def _first_length_tokens(self) -> float | None:
        """The mean length of a completion in the run's first step, where a resumed run has one."""
        recorded = read_metrics(self.folder / "metrics.jsonl")
        return next((step["length/mean_tokens"] for step in recorded if "length/mean_tokens" in step), None)

    def state(self) -> dict[str, Any]:
        """Where the run stands after its last whole step, as JSON."""
        return {
            "step": self.step,
            "sampler": self.sampler.state(undone=[task for _, tasks in sorted(self._undone.items()) for task in tasks]),
            "learner": self._learner_shape(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after the step that ``state`` was taken at; the learner restores its own part."""
        self.step = state["step"]
        self.reshaped = state["learner"] != self._learner_shape()
        self.sampler.restore(state["sampler"])

    async def save(self) -> Path:
        """Write a checkpoint of the last whole step."""
        await self.log.written()
        with self.timeline.during("checkpoint", self.step) as saving:
            folder = await save_checkpoint(
                self.folder,
                step=self.step,
                state=self.state(),
                save_learner=self.learner.save,
                keep=self.config.checkpoint.keep,
            )
        self.metrics.record(self.step, {"time/checkpoint_s": saving.duration_s})
        return folder

    async def _publication_difference(self, version: int) -> float:
        """Mean absolute difference between the logprobs of every engine and of the learner on a few tokens."""
        requests = make_requests(
            self.tasks[:PROBE_TASKS],
            kind="probe",
            step=version,
            first=0,
            num_samples=1,
            sampling=SamplingParams(temperature=self.config.sampling.temperature, max_tokens=PROBE_TOKENS),
            seed=self.config.seed,
        )
        trajectories = await self.pool.probe(requests)
        samples = [train_sample(t, group=index, advantage=0.0) for index, t in enumerate(trajectories)]
        learned = await self.learner.logprobs(samples)
        drawn = [trajectory.rollout_logprobs[trajectory.completion_mask] for trajectory in trajectories]
        return float(np.abs(np.concatenate(learned) - np.concatenate(drawn)).mean())


def _request_id(group: Group) -> str:
    return (group.scored or group.unscored)[0].trajectory.id
