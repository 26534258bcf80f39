"""A replay over the CPUs of a Ray cluster: one actor a CPU, each with the scorers, each taking a step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rewards.config import RewardsFile
from rl.config_schema import RayConfig
from rl.errors import ScorerError
from rl.replay.rescore import Rescorer, Step


def rescored_on_ray(
    run_dir: Path, out: Path, steps: Sequence[Step], *, rewards: RewardsFile, address: str
) -> Iterator[Step]:
    """Score the steps on the cluster at ``address``, in whatever order they are done.

    Raises ScorerError where an actor dies, MedrlError where there is no cluster.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    from rl.cluster import actor_environment, ray_session

    with ray_session(RayConfig(address=address), cpus_needed=1):
        try:
            actor = ray.remote(Rescorer).options(num_cpus=1, runtime_env={"env_vars": actor_environment(1)})
            count = min(len(steps), max(1, int(ray.cluster_resources().get("CPU", 1))))
            shared = ray.put(rewards)
            pool = ActorPool([actor.remote(shared) for _ in range(count)])
            yield from pool.map_unordered(lambda each, step: each.rescore.remote(run_dir, out, step), steps)
        except RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ScorerError(
                f"a scoring actor failed: {lines[-1] if lines else type(error).__name__} What is done is in {out}, "
                f"which the cluster must see under this path: repeat to go on"
            ) from None
