"""Ray: start or join a cluster, place the actors of a run, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from policies.contract import LearnerSettings
from policies.worker import LearnerGroup, LearnerWorker
from rewards.config import ConfiguredScorer
from rewards.judge import EngineEndpoint, endpoint_with_key
from rewards.judges.config import engines_of, read_judges, with_endpoints
from rewards.pool import RewardPool
from rewards.service import RewardWorker
from rewards.tools.terminal import shortened
from rl.config_schema import LearnerConfig, RayConfig, RewardsConfig, RolloutsConfig, RunConfig
from rl.errors import ConfigError, MedrlError
from rl.settings import chat_server_settings
from rollouts.chat_server import ChatServer
from rollouts.engine import EngineSettings
from rollouts.pool import RolloutPool, last_line
from rollouts.worker import RolloutWorker

PROCESS_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # a spinning thread pool starves whatever shares its core
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in its actor: deterministic, and takes weights in memory
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines on one host would all bind to the first cores
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}

SCORING_ROUNDS = 10  # deadlines that may pass before the next score is done, or its worker is taken to hang
_REASON_CHARS = 400


@contextmanager
def ray_session(config: RayConfig, *, cpus_needed: float, gpus_needed: float = 0.0) -> Iterator[None]:
    """Join the cluster at ``address`` (or RAY_ADDRESS), or start a Ray of this run's own; shut it down at the end.

    A local Ray counts logical CPUs, at least ``cpus_needed``: actors of a synchronous loop take turns on the cores.
    Raises MedrlError where Ray does not start or does not answer, ConfigError where a local one has too few GPUs.
    """
    import ray

    address = _address(config)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES to the user
    with _Explained(address):
        if address:
            ray.init(address=address, log_to_driver=False)
        else:
            # Ray's default of 15 leaves engines and learner a thirtieth of a core beside anything else that computes.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(
                num_cpus=config.num_cpus or max(os.cpu_count() or 1, int(cpus_needed + 0.999)),
                object_store_memory=config.object_store_mb << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    try:
        if gpus_needed and not address:  # a cluster may grow
            _check_gpus(gpus_needed)
        yield
    finally:
        ray.shutdown()


def _check_gpus(needed: float) -> None:
    """Ray would let actors wait for ever for a GPU that there is not."""
    import ray

    there = ray.cluster_resources().get("GPU", 0.0)
    if needed > there:
        raise ConfigError(
            f"engines, learners and judges ask for {needed:g} GPUs, but there are {there:g}; lower rollouts.workers × "
            f"rollouts.gpus_per_worker, learner.ranks × learner.gpus_per_rank or the gpus of a judge, name a cluster "
            f"(ray.address), or see what CUDA_VISIBLE_DEVICES and `medrl doctor` say"
        )


class _Explained:
    """What Ray raises where it does not start or is not there, as one clear error."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        from ray.exceptions import RayError

        # A node that does not come up in time is a bare Exception.
        if kind is Exception or isinstance(error, RayError | OSError | RuntimeError | ValueError):
            reason = shortened(str(error), _REASON_CHARS).rstrip(".") or type(error).__name__
            raise MedrlError(self._told(reason)) from None

    def _told(self, reason: str) -> str:
        if self._address:
            return (
                f"no Ray cluster could be joined at {self._address}: {reason}. Check it (--address, ray.address, "
                f"RAY_ADDRESS), that it can be reached from here, and that it runs the same Ray and Python as "
                f"{sys.executable} (`medrl doctor`)"
            )
        return (
            f"a local Ray could not be started: {reason}. Look for free memory (ray.object_store_mb is taken from "
            f"/dev/shm), free disk under /tmp, and a Ray that was left running; its logs are in "
            f"/tmp/ray/session_latest/logs, or under RAY_TMPDIR; `medrl doctor` checks the installation"
        )


def _address(config: RayConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS", "")


def cpus_needed(config: RunConfig) -> float:
    """CPUs that the actors of a run ask for."""
    learners = config.learner.ranks * config.learner.cpus_per_rank
    engines = config.rollouts.workers * config.rollouts.cpus_per_worker
    return learners + engines + config.rewards.workers + sum(engine.cpus for engine in _judging(config))


def gpus_needed(config: RunConfig, *, learning: bool = True) -> float:
    """GPUs that the actors of a run, or of an evaluation, which is not ``learning``, ask for."""
    learners = config.learner.ranks * config.learner.gpus_per_rank if learning else 0.0
    engines = config.rollouts.workers * config.rollouts.gpus_per_worker
    return learners + engines + sum(engine.gpus for engine in _judging(config))


def _judging(config: RunConfig) -> Iterator[EngineEndpoint]:
    """The engines that judge."""
    for judge in read_judges(config.rewards.judges).values():
        yield from (endpoint for endpoint in judge.endpoints if isinstance(endpoint, EngineEndpoint))


def start_rollout_pool(settings: EngineSettings, config: RolloutsConfig) -> RolloutPool:
    """Start the rollout workers; they build their engines while the caller goes on (see `RolloutPool.ready`)."""
    actor = _actor(
        RolloutWorker,
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
        threads=config.threads,
    )
    return RolloutPool([actor.remote(settings) for _ in range(config.workers)], timeout_s=config.timeout_s)


async def start_rewards(
    scorers: Sequence[ConfiguredScorer], config: RewardsConfig, ray_config: RayConfig
) -> RewardPool:
    """Start the judges that are the run's own, then the actors of the reward service, all with the same scorers."""
    scorers, servers = await start_judges(scorers, local=not _address(ray_config))
    actor = _actor(RewardWorker, cpus=1, gpus=0, threads=1)
    workers = [
        actor.remote(
            scorers,
            length_penalty=config.length_penalty,
            length_soft_tokens=config.length_soft_tokens,
            cache=os.path.abspath(config.cache) if config.cache else "",
        )
        for _ in range(config.workers)
    ]
    slowest = max(scorer.timeout_s * (1 + scorer.retries) for scorer in scorers)
    return RewardPool(workers, timeout_s=SCORING_ROUNDS * slowest, servers=servers)


async def start_judges(
    scorers: Sequence[ConfiguredScorer], *, local: bool
) -> tuple[tuple[ConfiguredScorer, ...], list[Any]]:
    """Start an engine for every judge that is a policy; the scorers with its address, and the actors to keep.

    ``local`` engines answer to processes of this host alone. Raises RolloutError for one that does not start,
    MedrlError for one whose process dies.
    """
    engines = dict.fromkeys(engine for each in scorers for engine in engines_of(each))
    servers = [
        _actor(ChatServer, cpus=engine.cpus, gpus=engine.gpus, threads=engine.threads).remote(
            chat_server_settings(engine), local=local
        )
        for engine in engines
    ]
    with failures_of("the engine of a judge"):
        addresses = await asyncio.gather(*(server.ready.remote() for server in servers))
    started = {
        engine: endpoint_with_key(
            address.key, url=address.url, model=address.model, max_concurrency=engine.max_num_seqs
        )
        for engine, address in zip(engines, addresses, strict=True)
    }
    return tuple(with_endpoints(each, started) for each in scorers), servers


async def start_learner(settings: LearnerSettings, config: LearnerConfig, loss: Any) -> LearnerGroup:
    """Start one learner actor per rank and build the DeepSpeed engine across them."""
    actor = _actor(LearnerWorker, cpus=config.cpus_per_rank, gpus=config.gpus_per_rank, threads=config.threads)
    group = LearnerGroup([actor.remote(rank, config.ranks) for rank in range(config.ranks)], timeout_s=config.timeout_s)
    await group.build(settings, loss)
    return group


def run_apart(function: Any, *args: Any, threads: int, gpus: float = 0.0, **kwargs: Any) -> Any:
    """Call ``function`` once in a worker process of its own, which ends with it; returns a reference to the result."""
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=1)(function)
    environment = {"env_vars": actor_environment(threads)}
    return remote.options(runtime_env=environment).remote(*args, **kwargs)


@contextmanager
def failures_of(process: str) -> Iterator[None]:
    """What a process of Ray's fails with: the error that it raised, without the remote traceback, or that it died."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), MedrlError):
            raise cause from None
        raise MedrlError(f"{process} died: {last_line(error)}") from None


def actor_environment(threads: int) -> dict[str, str]:
    """Environment of an actor's process, set before it imports anything."""
    inherited = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "TORCHDYNAMO_DISABLE") if name in os.environ}
    # Without a device nothing is compiled: the CPU path is eager, and a compile would cost more than it ever saves.
    eager = {} if has_gpu() else {"TORCHDYNAMO_DISABLE": "1"}
    return PROCESS_ENVIRONMENT | eager | inherited | {"OMP_NUM_THREADS": str(threads)}


def has_gpu() -> bool:
    """Whether the cluster that this process has joined holds a GPU."""
    import ray

    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0


def _actor(cls: type, *, cpus: float, gpus: float, threads: int) -> Any:
    import ray

    return ray.remote(cls).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,  # a restarted actor would have lost its weights
        runtime_env={"env_vars": actor_environment(threads)},
    )
