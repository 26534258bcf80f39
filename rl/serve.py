"""`medrl serve-rewards`: the reward service behind HTTP, on Ray Serve, until it is told to stop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.config import RewardsFile, load_rewards_file
from rewards.judges.config import reach_judges
from rewards.service import RewardWorker
from rl.cluster import ray_session
from rl.config_schema import RayConfig
from rl.listen import check_free, check_guarded, wait_for_signal
from rl.types import ScoredTrajectory, Trajectory, Unscored

if TYPE_CHECKING:
    from rewards.http import HttpSettings

ROWS_AT_A_TIME = 8
"""Rows of one request that go to one replica together."""
APPLICATION = "rewards"


def serve_rewards(
    path: Path, *, host: str, port: int, workers: int, max_body_mb: float, max_rows: int, address: str = ""
) -> None:
    """Serve the rewards of a file with ``workers`` scoring replicas until SIGINT or SIGTERM.

    Raises ConfigError for a rewards file that does not load, a port that is taken, and for a host that others can
    reach while no token is set.
    """
    from rewards.http import TOKEN_VARIABLE, HttpSettings

    rewards = load_rewards_file(path)
    token = os.environ.get(TOKEN_VARIABLE, "")
    check_guarded(host, token=token, variable=TOKEN_VARIABLE)
    check_free(host, port)
    rewards = dataclasses.replace(rewards, scorers=reach_judges(rewards.scorers))
    settings = HttpSettings(token=token, max_body_mb=max_body_mb, max_rows=max_rows)
    with ray_session(RayConfig(address=address), cpus_needed=workers + 1):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            serve.run(_application(rewards, workers=workers, settings=settings), name=APPLICATION, route_prefix="/")
            names = ", ".join(each.name for each in rewards.scorers)
            print(f"serving {names} of {path} on http://{host}:{port} (docs at /docs)", file=sys.stderr, flush=True)
            wait_for_signal()
        finally:
            serve.shutdown()


def _application(rewards: RewardsFile, *, workers: int, settings: HttpSettings) -> Any:
    """One replica that speaks HTTP, and behind it ``workers`` that score."""
    from ray import serve

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    scoring = serve.deployment(
        RewardWorker, name="scoring", num_replicas=workers, max_ongoing_requests=64, logging_config=quiet
    ).bind(
        rewards.scorers,
        length_penalty=rewards.length_penalty,
        length_soft_tokens=rewards.length_soft_tokens,
        cache=os.path.abspath(rewards.cache) if rewards.cache else "",
    )
    front = serve.deployment(
        serve.ingress()(HttpFront), name="http", num_replicas=1, max_ongoing_requests=1024, logging_config=quiet
    )
    return front.bind(scoring, {each.name: each.version for each in rewards.scorers}, settings)


class HttpFront:
    """Holds the application of `rewards.http` as Ray Serve wants it; what it scores goes to the scoring replicas."""

    def __init__(self, scoring: Any, versions: dict[str, str], settings: HttpSettings) -> None:
        self._scoring, self._versions, self._settings = scoring, versions, settings

    async def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory | Unscored]:
        parts = [trajectories[at : at + ROWS_AT_A_TIME] for at in range(0, len(trajectories), ROWS_AT_A_TIME)]
        scored = await asyncio.gather(*(self._scoring.score_many.remote(part) for part in parts))
        return [outcome for part in scored for outcome in part]

    def __serve_build_asgi_app__(self) -> Any:
        from rewards.http import build_app

        return build_app(self.score, versions=self._versions, settings=self._settings)
