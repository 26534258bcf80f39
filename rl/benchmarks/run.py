"""A suite of benchmarks on one model: a run folder for each, and the results of all in one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from entities.coverage import measure_coverage
from entities.tree import EntityTree
from rewards.config import ConfiguredScorer
from rewards.judges.config import reach_judges
from rewards.service import RewardService
from rl.benchmarks.decontaminate import contaminated
from rl.benchmarks.endpoint import EndpointPool
from rl.benchmarks.results import RECORD, RESULTS, SCHEMA_VERSION, benchmark_results, read_record
from rl.benchmarks.spec import Benchmark, benchmark_tasks
from rl.collect import Pool, collect, make_requests
from rl.config_schema import RewardsConfig, RunConfig
from rl.errors import ConfigError, LogError, RolloutError
from rl.launch import check_answer_keys, load_both_splits, load_scorers
from rl.metrics import MetricsLog, evaluation_metrics
from rl.progress import Progress
from rl.report.run import write_report, write_results_report
from rl.run_folder import open_run_folder, write_summary
from rl.settings import engine_settings, greedy_sampling, training_sampling
from rl.types import SamplingParams, ScoredTrajectory, Task, Trajectory, Unscored
from rollouts.engine import GenerationRequest
from rollouts.log import LoggedStep, write_step
from rollouts.prompts import messages_by_task
from rollouts.tools.config import build_tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How benchmarks are asked: ``samples`` of each task (1 is greedy), the ``k`` of pass@k, at most ``limit`` tasks of
    each benchmark (0: all), the judge of those that need one, the entity tree and the training config that results are
    broken down and checked by. ``resume`` goes on with what an earlier call left in ``out``."""

    out: Path
    resume: bool = False
    data: Path | None = None
    samples: int = 1
    pass_at: tuple[int, ...] = ()
    limit: int = 0
    judge: Path | None = None
    tree: Path | None = None
    trained_on: RunConfig | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"--samples must be >= 1; got {self.samples}")
        if too_many := [k for k in self.pass_at if not 1 <= k <= self.samples]:
            raise ConfigError(f"pass@{too_many[0]} needs --samples of at least {too_many[0]}; got {self.samples}")


@dataclass(frozen=True, slots=True)
class _Prepared:
    benchmark: Benchmark
    config: RunConfig
    scorers: tuple[ConfiguredScorer, ...]
    tasks: tuple[Task, ...]


def run_benchmarks(
    config: RunConfig,
    benchmarks: Sequence[Benchmark],
    *,
    plan: Plan,
    policy: str = "",
    pool: EndpointPool | None = None,
) -> dict[str, Any]:
    """Evaluate a ``policy``, or the model behind ``pool``, and write ``results.json`` and reports into ``plan.out``.

    All that can be checked is checked before anything is asked. The results are written anew after every benchmark, so
    that whatever ends the call costs the benchmark that it was at. Returns the results. Raises RolloutError where an
    endpoint answered nothing at all of a benchmark.
    """
    sampling = greedy_sampling(config) if plan.samples == 1 else training_sampling(config)
    told = {
        "model": str(pool.endpoint) if pool else policy,
        "seed": config.seed,
        "sampling": dataclasses.asdict(sampling),
    }
    names = [benchmark.name for benchmark in benchmarks]
    done = _done_before(plan, names, told)
    prepared = [_prepare(benchmark, config, plan) for benchmark in benchmarks]
    training = load_both_splits(plan.trained_on)[0] if plan.trained_on else None
    tree = EntityTree.load(plan.tree) if plan.tree else None
    for each in prepared:
        _open(each, _record(each, plan, training=training, tree=tree))

    def written(*finished: str) -> dict[str, Any]:
        done.extend(finished)
        return write_results(plan.out, sorted(done, key=names.index), asked=names, **told)

    results = written()
    if left := [each for each in prepared if each.benchmark.name not in done]:
        with contextlib.ExitStack() as stack:
            asked = pool or stack.enter_context(_policy_pool(config, policy))
            asyncio.run(_ask_all(left, asked, plan=plan, sampling=sampling, seed=config.seed, finished=written))
        results = written()
    return results


def _done_before(plan: Plan, names: Sequence[str], told: Mapping[str, Any]) -> list[str]:
    """The benchmarks that the call which this one resumes has done. Raises ConfigError where ``plan.out`` holds what
    must not be overwritten, or another evaluation."""
    path = plan.out / RESULTS
    if not plan.resume:
        if plan.out.exists() and any(plan.out.iterdir()):
            raise ConfigError(
                f"--out {plan.out} already exists and is not empty; add --resume to go on with the evaluation in it, "
                f"or name another folder"
            )
        return []
    if not path.is_file():
        raise ConfigError(f"there is no evaluation to resume in {plan.out}: it has no {RESULTS} (--out)")
    was = json.loads(path.read_text(encoding="utf-8"))
    before = {key: was[key] for key in told} | {"benchmarks": [*was["benchmarks"], *was.get("unfinished", [])]}
    now = json.loads(json.dumps({**told, "benchmarks": names}))
    before["benchmarks"], now["benchmarks"] = sorted(before["benchmarks"]), sorted(now["benchmarks"])
    if changed := [f"{key} ({before[key]!r} -> {now[key]!r})" for key in now if now[key] != before[key]]:
        raise ConfigError(f"--resume: {plan.out} holds another evaluation: {', '.join(changed)}")
    return list(was["benchmarks"])


def _open(each: _Prepared, record: dict[str, Any]) -> None:
    """The benchmark's folder with what was known of it beforehand; one to resume must hold the very same."""
    folder = open_run_folder(each.config)
    if each.config.resume:
        was, now = read_record(folder), json.loads(json.dumps(record))
        if changed := [key for key in now if now[key] != was.get(key)]:
            raise ConfigError(f"--resume: {', '.join(changed)} differ from {folder / RECORD}")
    write_summary(folder, record, name=RECORD)


def rescore_benchmarks(evaluation: Path, out: Path) -> dict[str, Any]:
    """The results of an evaluation made again from its log alone, into the new folder ``out``: every answer is scored
    anew by the rewards that it was scored by. Raises LogError where ``evaluation`` is none."""
    from rl.replay.rescore import replay

    path = evaluation / RESULTS
    if not path.is_file():
        raise LogError(f"{evaluation} has no {RESULTS}; is it the folder of `medrl evaluate --benchmarks`?")
    logged = json.loads(path.read_text(encoding="utf-8"))
    for name in logged["benchmarks"]:
        replay(evaluation / name, out / name, kinds=["eval"], workers=1)
        write_summary(out / name, read_record(evaluation / name), name=RECORD)
    told = {key: logged[key] for key in ("model", "seed", "sampling")}
    names = list(logged["benchmarks"])
    return write_results(out, names, asked=[*names, *logged.get("unfinished", [])], **told)


def write_results(out: Path, names: Sequence[str], *, asked: Sequence[str], **told: Any) -> dict[str, Any]:
    """``results.json`` and ``report.html`` of the benchmarks whose folders lie in ``out``; the others that were
    ``asked`` for are named as unfinished."""
    found = {name: benchmark_results(out / name) for name in names}
    left = [name for name in asked if name not in found]
    results = {"schema_version": SCHEMA_VERSION, **told, "benchmarks": found, "unfinished": left}
    write_summary(out, results, name=RESULTS)
    write_results_report(out, results)
    return results


def _prepare(benchmark: Benchmark, config: RunConfig, plan: Plan) -> _Prepared:
    """Read tasks and scorers, reach the judge. Raises the MedrlError of whatever is wrong."""
    section = dict(benchmark.rewards)
    if benchmark.judge:
        section["judges"] = _judges(benchmark, plan.judge)
    folder = plan.out / benchmark.name
    own = dataclasses.replace(
        config,
        output_dir=str(folder),
        resume=plan.resume and (folder / RECORD).is_file(),
        rewards=RewardsConfig(**section, base_dir=str(benchmark.path.parent.resolve())),
    )
    scorers = load_scorers(own)
    pixels = config.tasks.max_image_pixels
    tasks = benchmark_tasks(benchmark, data=plan.data, max_image_pixels=pixels, limit=plan.limit)
    check_answer_keys(tasks, scorers)
    return _Prepared(benchmark, own, reach_judges(scorers), tasks)


def _judges(benchmark: Benchmark, path: Path | None) -> Any:
    if path is None:
        raise ConfigError(
            f"benchmark {benchmark.name} is scored by a judge: pass --judge FILE, a YAML such as "
            f"{{judges: {{main: {{url: …, model: …}}}}}}"
        )
    try:
        section = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--judge {path} cannot be read as YAML: {error}") from error
    if not isinstance(section, Mapping) or "main" not in (section.get("judges") or {}):
        raise ConfigError(f"--judge {path} must describe the judge `main` under `judges` (see rewards/judge.py)")
    return section["judges"]


def _record(each: _Prepared, plan: Plan, *, training: Sequence[Task] | None, tree: EntityTree | None) -> dict[str, Any]:
    benchmark = each.benchmark
    told = ("name", "title", "citation", "licence", "split", "metric", "checked", "modality")
    overlaps = None if training is None else contaminated(each.tasks, training)
    return {
        **{key: getattr(benchmark, key) for key in told},
        "slices": list(benchmark.slices),
        "limit": plan.limit,
        "samples": plan.samples,
        "pass_at": list(plan.pass_at or (1, plan.samples)),
        "contaminated": overlaps,
        "entity_frequency": entity_frequencies(each.tasks, tree, corpus=training or each.tasks) if tree else None,
    }


def entity_frequencies(tasks: Sequence[Task], tree: EntityTree, *, corpus: Sequence[Task]) -> dict[str, int]:
    """For each task that names an entity of the tree: how many texts of the corpus name the rarest one it names."""
    counts = measure_coverage(tree, (task.question for task in corpus)).texts_by_entity
    named = {task.id: {mention.entity_id for mention in tree.find(task.question)} for task in tasks}
    return {id: min(counts.get(entity, 0) for entity in entities) for id, entities in named.items() if entities}


@contextlib.contextmanager
def _policy_pool(config: RunConfig, policy: str) -> Iterator[Pool]:
    """Rollout workers with the policy, on a Ray of their own or a cluster."""
    from policies.vlm import check_policy
    from rl.cluster import cpus_needed, gpus_needed, ray_session, start_rollout_pool

    check_policy(policy, trust_remote_code=config.policy.trust_remote_code)
    build_tools(config.rollouts.tools, config.rollouts.tools_dir)
    gpus = gpus_needed(config, learning=False)
    with ray_session(config.ray, cpus_needed=cpus_needed(config), gpus_needed=gpus):
        yield start_rollout_pool(engine_settings(config, policy), config.rollouts)


async def _ask_all(
    prepared: Sequence[_Prepared],
    pool: Pool,
    *,
    plan: Plan,
    sampling: SamplingParams,
    seed: int,
    finished: Callable[[str], object],
) -> None:
    for each in prepared:
        name, folder = each.benchmark.name, Path(each.config.output_dir)
        print(f"{name}: {len(each.tasks):,} tasks", file=sys.stderr, flush=True)
        followed = _Followed(pool)
        async with _scoring(each.scorers, pool) as rewards:
            requests = make_requests(
                each.tasks, kind="eval", step=0, first=0, num_samples=plan.samples, sampling=sampling, seed=seed
            )
            groups = (await collect(requests, pool=followed, rewards=rewards)).groups
        write_step(folder, LoggedStep(step=0, groups=groups, kind="eval", messages=messages_by_task(groups)))
        with MetricsLog(folder / "metrics.jsonl") as log:
            log.record(0, evaluation_metrics(groups))
        write_report(folder)
        unscored = [item for group in groups for item in group.unscored]
        if all(item.trajectory.finish_reason == "abort" for item in unscored) and not any(g.scored for g in groups):
            raise RolloutError(
                f"no answer came to any of the {len(unscored)} requests of {name}. The first: {unscored[0].reason}"
            )
        finished(name)


@dataclass(frozen=True, slots=True)
class _Followed:
    """A pool whose progress is shown."""

    pool: Pool

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[Trajectory, ...]]:
        progress, done = Progress(len(requests), noun="task", every_s=10.0), 0
        async for group in self.pool.generate(requests):
            done += 1
            progress.update(done)
            yield group


class _Scoring:
    """The reward service in this process; a lost answer keeps the reason of its loss."""

    def __init__(self, service: RewardService, lost: Mapping[str, str]) -> None:
        self._service, self._lost = service, lost

    async def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        outcomes = await self._service.score_many(trajectories)
        return [
            dataclasses.replace(each, reason=self._lost[each.trajectory.id])
            if isinstance(each, Unscored) and each.trajectory.id in self._lost
            else each
            for each in outcomes
        ]


@contextlib.asynccontextmanager
async def _scoring(scorers: Sequence[ConfiguredScorer], pool: Pool) -> AsyncIterator[_Scoring]:
    with RewardService(scorers) as service:
        yield _Scoring(service, pool.lost if isinstance(pool, EndpointPool) else {})
