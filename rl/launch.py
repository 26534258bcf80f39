"""From a config to a finished run: check all that can be checked, start the actors, train, leave nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.config import ConfiguredScorer, load_rewards, max_shaping
from rewards.judges.config import reach_judges
from rewards.scorer import Abstain, InvalidInput
from rl.checkpoint import checkpoint_folders, latest_checkpoint
from rl.config_schema import RunConfig, SamplingConfig
from rl.errors import ConfigError, TaskError
from rl.metrics import MetricsLog, read_metrics
from rl.progress import Progress, say
from rl.report.run import write_report
from rl.run_folder import open_run_folder, read_summary, write_summary
from rl.types import Task
from rollouts.splits import tuning_split
from rollouts.tasks import check_disjoint, load_tasks
from rollouts.tools.config import build_tools

if TYPE_CHECKING:
    from policies.worker import LearnerGroup
    from rewards.pool import RewardPool
    from rl.train import Run
    from rollouts.pool import RolloutPool


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was read and checked before any process was started."""

    config: RunConfig
    folder: Path
    scorers: tuple[ConfiguredScorer, ...]
    tasks: tuple[Task, ...]
    eval_tasks: tuple[Task, ...]


def prepare(config: RunConfig) -> Prepared:
    """Read tasks and scorers, check the policy, open the run folder. Raises the MedrlError of whatever is wrong."""
    check_sampling(config.sampling)
    build_tools(config.rollouts.tools, config.rollouts.tools_dir)
    scorers = load_scorers(config)
    tasks, eval_tasks = load_both_splits(config)
    check_answer_keys((*tasks, *eval_tasks), scorers)
    scorers = reach_judges(scorers, starts_engines=True, warn=say)
    if config.policy.path:
        from policies.vlm import check_policy

        check_policy(config.policy.path, trust_remote_code=config.policy.trust_remote_code)
    elif config.policy.preset == "smollm2":
        from policies.smollm import find_gguf

        find_gguf()
    return Prepared(config, open_run_folder(config), scorers, tasks, eval_tasks)


def check_sampling(sampling: SamplingConfig) -> None:
    """Raise ConfigError where the engine's logprobs would be of another distribution than the learner's."""
    if sampling.temperature != 1.0 and (sampling.top_p < 1.0 or sampling.top_k > 0):
        raise ConfigError(
            f"sampling.top_p must be 1 and sampling.top_k 0 where sampling.temperature is not 1: the engine's logprobs "
            f"would be of the tokens that these leave, the learner's are of all; got top_p {sampling.top_p:g}, top_k "
            f"{sampling.top_k} and temperature {sampling.temperature:g}"
        )


def load_scorers(config: RunConfig) -> tuple[ConfiguredScorer, ...]:
    """The scorers of the ``rewards`` section."""
    section = dataclasses.asdict(config.rewards)
    base_dir = section.pop("base_dir")
    section.pop("path")  # its content stands in the section already
    return load_rewards(section, base_dir)


def check_answer_keys(tasks: Sequence[Task], scorers: Sequence[ConfiguredScorer]) -> None:
    """Raise TaskError for a task whose answer no scorer of verifiable answers could check."""
    from rewards.answer import AnswerScorer

    checking = [(each, each.scorer) for each in scorers if isinstance(each.scorer, AnswerScorer)]
    for task in tasks:
        for configured, scorer in checking:
            try:
                if configured.applies_to(task):
                    scorer.checker(task)("")
            except Abstain:
                continue
            except InvalidInput as error:
                raise TaskError(f"the answer of task {task.id!r} cannot be checked: {error}") from None


def load_both_splits(config: RunConfig) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Training and evaluation tasks, which must not share a task."""
    source = config.tasks
    tasks = load_tasks(
        source.source,
        split="train",
        mapping=source.mapping,
        max_image_pixels=source.max_image_pixels,
        limit=source.limit,
        seed=config.seed,
    )
    if source.tuning_share:
        tasks, eval_tasks = tuning_split(tasks, share=source.tuning_share)
    else:
        eval_tasks = load_eval_tasks(config)
    if shared := check_disjoint(tasks, eval_tasks):
        say(f"{shared} of {len(eval_tasks)} held-out tasks ask about an image that is also trained on")
    for task in (*tasks, *eval_tasks):
        if len(task.all_images) > config.rollouts.max_images:
            raise ConfigError(
                f"task {task.id!r} has {len(task.all_images)} images; the engines are set up for at most "
                f"{config.rollouts.max_images} (rollouts.max_images)"
            )
    return tasks, eval_tasks


def load_eval_tasks(config: RunConfig) -> tuple[Task, ...]:
    """The held-out tasks."""
    source = config.tasks
    return load_tasks(
        source.eval_source or source.source,
        split="eval",
        mapping=source.mapping,
        max_image_pixels=source.max_image_pixels,
        seed=config.seed,
    )


def train(config: RunConfig) -> dict[str, Any]:
    """Train as ``config`` says; returns the summary that is written to ``summary.json``."""
    from rl.cluster import cpus_needed, gpus_needed, ray_session

    began = time.perf_counter()
    prepared = prepare(config)
    say(f"{len(prepared.tasks)} training tasks, {len(prepared.eval_tasks)} held out; run folder {prepared.folder}")
    with ray_session(config.ray, cpus_needed=cpus_needed(config), gpus_needed=gpus_needed(config)):
        interrupted = asyncio.run(_run(prepared))
    summary = _summarise(prepared, wall_s=time.perf_counter() - began, interrupted=interrupted)
    if (prepared.folder / "metrics.jsonl").exists():  # a run that was stopped before it began has nothing to report
        report = write_report(prepared.folder)
        say(_verdict(summary))
        say(f"report: {report}")
    return summary


async def _run(prepared: Prepared) -> bool:
    """Prepare the policy, then train it; true where the user stopped either."""
    from rl.stopping import Interrupted, stopping_on_signals, unless_stopped

    stop = asyncio.Event()
    with stopping_on_signals(stop):
        try:
            policy_path = await unless_stopped(_initial_policy(prepared), stop)
        except Interrupted:
            say("stopped before the first step; there is nothing to save. Begin again with resume=true")
            return True
        return await _train(prepared, policy_path, stop)


async def _train(prepared: Prepared, policy_path: str, stop: asyncio.Event) -> bool:
    """Start the actors and run the loop; true where the user stopped it."""
    from rl.sinks import open_sinks
    from rl.stopping import Interrupted
    from rl.timeline import Timeline
    from rl.train import Run
    from rollouts.log import drop_steps_from

    config, folder = prepared.config, prepared.folder
    checkpoint, state = None, None
    if config.resume and checkpoint_folders(folder):
        checkpoint, state = latest_checkpoint(folder, warn=say)
    resume_at = (state["step"] + 1 if state else 0) if config.resume else None
    if resume_at is not None:
        drop_steps_from(folder, resume_at)
    pool, rewards, learner = await _start_actors(prepared, policy_path)
    sinks = open_sinks(
        folder,
        dataclasses.asdict(config),
        tensorboard=config.logging.tensorboard,
        wandb_project=config.logging.wandb_project,
        mlflow_experiment=config.logging.mlflow_experiment,
        resume_at=resume_at,
    )
    with (
        MetricsLog(folder / "metrics.jsonl", resume_at=resume_at, sinks=sinks) as metrics,
        Timeline(folder / "timeline.jsonl", resume_at=resume_at) as timeline,
    ):
        run = Run(
            config,
            folder,
            pool=pool,
            rewards=rewards,
            learner=learner,
            tasks=prepared.tasks,
            eval_tasks=prepared.eval_tasks,
            weights={scorer.name: scorer.weight for scorer in prepared.scorers if scorer.weight > 0},
            gates=frozenset(scorer.name for scorer in prepared.scorers if scorer.gate),
            max_shaping=max_shaping(prepared.scorers, config.rewards.length_penalty),
            metrics=metrics,
            timeline=timeline,
            stop=stop,
        )
        if checkpoint and state:
            await learner.load((checkpoint / "learner").resolve())
            run.restore(state)
            _say_resumed(run, checkpoint, learner_was=state["learner"])
        try:
            await run.loop()
        except Interrupted:
            say(f"stopped after step {run.step}; saved {await run.save()}. Go on with resume=true")
            return True
        await learner.save_policy((folder / "policy").resolve())
    return False


async def _start_actors(prepared: Prepared, policy_path: str) -> tuple[RolloutPool, RewardPool, LearnerGroup]:
    """Engines, reward service and learner, each ready, and the engines where the learner's weights can reach them."""
    from rl.cluster import start_learner, start_rewards, start_rollout_pool
    from rl.publication import connect
    from rl.settings import engine_settings, learner_settings, loss_function

    config = prepared.config
    pool = start_rollout_pool(engine_settings(config, policy_path), config.rollouts)
    rewards = await start_rewards(prepared.scorers, config.rewards, config.ray)
    learner = await start_learner(learner_settings(config, policy_path), config.learner, loss_function(config))
    await pool.ready()
    if config.rollouts.weight_transfer == "nccl":
        await connect(learner, pool, tensor_parallel=config.rollouts.tensor_parallel)
    return pool, rewards, learner


def _say_resumed(run: Run, checkpoint: Path, *, learner_was: Mapping[str, int]) -> None:
    """Where the run goes on, and why it will not be equal to the bit where it will not."""
    say(f"resuming after step {run.step} from {checkpoint}")
    if run.reshaped:
        say(f"it was written by another learner ({learner_was}): equal up to rounding, not to the bit")
    if run.max_staleness:
        say("what was being written ahead is written anew (async.max_staleness > 0): not equal to the bit")


async def _initial_policy(prepared: Prepared) -> str:
    """The policy that RL starts from: the one that the config names, or one that is built and warm-started here."""
    from rl.cluster import run_apart
    from rl.warmstart import labelled_cases, prepare_policy

    config = prepared.config
    if config.policy.path:
        return config.policy.path
    path = (prepared.folder / "initial_policy").resolve()
    if not (path / "config.json").is_file():
        say(f"building the {config.policy.preset} policy, then {config.warmstart.steps} supervised steps")
        log = (prepared.folder / "warmstart.jsonl").resolve()
        working = run_apart(
            prepare_policy,
            path,
            preset=config.policy.preset,
            warmstart=config.warmstart,
            source=config.tasks.source,
            labelled=labelled_cases(prepared.tasks, count=config.warmstart.labelled_cases),
            seed=config.seed,
            log=log,
            threads=config.learner.threads,
            gpus=min(config.learner.gpus_per_rank, 1.0),  # with all of them in sight it would train on all of them
        )
        measured = await _followed(working, log, steps=config.warmstart.steps)
        say("  ".join([f"built {path}", *(f"{name} {value:.3g}" for name, value in measured.items())]))
    return str(path)


async def _followed(working: Any, log: Path, *, steps: int) -> dict[str, float]:
    """Await the supervised stage, showing its progress from the ``log`` that it writes."""
    from rl.cluster import failures_of

    progress = Progress(max(steps, 1), noun="supervised step", every_s=5)
    result = asyncio.ensure_future(working)
    seen = 0
    while not (await asyncio.wait({result}, timeout=1))[0]:
        lines = [line for line in log.read_text().split("\n")[:-1] if line] if log.exists() else []
        if len(lines) > seen:
            seen = len(lines)
            last = json.loads(lines[-1])
            progress.update(last["step"], {"loss/supervised": last["loss"]})
    with failures_of("the process that prepares the policy"):
        measured: dict[str, float] = result.result()
    return measured


def evaluate_policy(config: RunConfig, *, policy: str | None, out: Path) -> dict[str, Any]:
    """Greedy evaluation of ``policy`` on the held-out tasks of ``config``, with its rewards.

    Writes ``summary.json``, the trajectories and ``report.html`` into the new folder ``out``; returns the summary.
    """
    from policies.vlm import check_policy
    from rl.cluster import cpus_needed, gpus_needed, ray_session

    path = policy or config.policy.path
    if not path:
        raise ConfigError("nothing to evaluate: pass --policy FOLDER_OR_ID, or set policy.path in the config")
    began = time.perf_counter()
    build_tools(config.rollouts.tools, config.rollouts.tools_dir)
    scorers = reach_judges(load_scorers(config), starts_engines=True, warn=say)
    tasks = load_eval_tasks(config)[: config.evaluation.max_tasks or None]
    check_policy(path, trust_remote_code=config.policy.trust_remote_code)
    config.output_dir, config.resume = str(out), False
    folder = open_run_folder(config)
    say(f"evaluating {path} on {len(tasks)} tasks")
    gpus = gpus_needed(config, learning=False)
    with ray_session(config.ray, cpus_needed=cpus_needed(config), gpus_needed=gpus):
        metrics = asyncio.run(_evaluate(config, folder, path, scorers, tasks))
    summary = {"policy": path, "tasks": len(tasks), "seed": config.seed, "metrics": metrics}
    summary |= {"accuracy": metrics.get("eval/accuracy"), "reward": metrics["eval/reward"]}
    write_summary(folder, summary | {"wall_s": round(time.perf_counter() - began, 1)})
    for name, value in sorted(metrics.items()):
        say(f"{name:44} {value:.4f}")
    say(f"report: {write_report(folder)}")
    return summary


async def _evaluate(
    config: RunConfig, folder: Path, policy_path: str, scorers: tuple[ConfiguredScorer, ...], tasks: tuple[Task, ...]
) -> dict[str, float]:
    from rl.cluster import start_rewards, start_rollout_pool
    from rl.evaluate import evaluate
    from rl.settings import engine_settings, greedy_sampling
    from rollouts.log import LoggedStep, write_step
    from rollouts.prompts import messages_by_task

    pool = start_rollout_pool(engine_settings(config, policy_path), config.rollouts)
    rewards = await start_rewards(scorers, config.rewards, config.ray)
    evaluation = await evaluate(
        tasks,
        step=0,
        pool=pool,
        rewards=rewards,
        sampling=greedy_sampling(config),
        seed=config.seed,
        with_tools=bool(config.rollouts.tools),
    )
    groups = evaluation.groups
    write_step(folder, LoggedStep(step=0, groups=groups, kind="eval", messages=messages_by_task(groups)))
    with MetricsLog(folder / "metrics.jsonl") as log:
        log.record(0, evaluation.metrics)
    return evaluation.metrics


def _summarise(prepared: Prepared, *, wall_s: float, interrupted: bool) -> dict[str, Any]:
    """What ``summary.json`` holds. Held-out numbers are greedy; ``wall_s`` adds up over resumed parts of the run."""
    records = read_metrics(prepared.folder / "metrics.jsonl")
    evaluated = [record for record in records if "eval/reward" in record]
    trained = [record for record in records if "reward/mean" in record]
    before, after = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
    summary = {
        "finished": not interrupted,
        "steps": int(trained[-1]["step"]) if trained else 0,
        "accuracy_before": before.get("eval/accuracy"),
        "accuracy_after": after.get("eval/accuracy"),
        "reward_before": before.get("eval/reward"),
        "reward_after": after.get("eval/reward"),
        "tokens_total": int(sum(record["throughput/tokens"] for record in trained)),
        "unscored": int(sum(record["outcome/unscored"] for record in trained)),
        "policy_version": int(trained[-1]["step"]) if trained else 0,
        "seed": prepared.config.seed,
        "wall_s": round(wall_s + read_summary(prepared.folder).get("wall_s", 0.0), 1),
    }
    if prepared.config.tasks.source == "cytology":
        from rollouts.cytology import logistic_yardstick

        summary["yardstick_accuracy"] = logistic_yardstick()
    write_summary(prepared.folder, summary)
    return summary


def _verdict(summary: Mapping[str, Any]) -> str:
    def change(name: str) -> str:
        before, after = summary[f"{name}_before"], summary[f"{name}_after"]
        return f"held-out {name} " + ("not evaluated" if before is None else f"{before:.3f} -> {after:.3f}")

    yardstick = summary.get("yardstick_accuracy") if summary["accuracy_after"] is not None else None
    beside = f" (logistic regression on the same measurements: {yardstick:.3f})" if yardstick is not None else ""
    return f"{summary['steps']} steps in {summary['wall_s']:.0f} s: {change('accuracy')}{beside}, {change('reward')}"
