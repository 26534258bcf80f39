"""A judge that the run starts itself: vLLM's server in a Ray actor, asked by the reward service's actors."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.config import ConfiguredScorer, load_rewards
from rewards.judges.prompt import Question
from rewards.rubric import RubricScorer
from rl.cluster import start_judges, start_rewards
from rl.config_schema import RayConfig, RewardsConfig
from rl.errors import RolloutError
from rl.types import Unscored
from tests.samples import a_task, a_trajectory

pytestmark = pytest.mark.slow

ONLY_A_VERDICT = {
    "type": "object",
    "properties": {"criteria_met": {"type": "boolean"}},
    "required": ["criteria_met"],
    "additionalProperties": False,
}


def scorers(policy: Path, folder: Path) -> tuple[ConfiguredScorer, ...]:
    (folder / "rubric.yaml").write_text("- {criterion: Is kind, points: 1}")
    judge = {"policy": str(policy), "dtype": "float32", "kv_cache_mb": 64, "max_tokens": 24, "attempts": 2}
    rubric = {"use": "rubric", "path": "rubric.yaml", "judge": "own"}
    return load_rewards({"judges": {"own": judge}, "scorers": {"quality": rubric}}, folder)


def servers_of(policy: Path) -> list[psutil.Process]:
    """The processes of the servers for a policy, and the engines that these have started."""
    found = [each for each in psutil.process_iter(["cmdline"]) if str(policy) in (each.info["cmdline"] or [])]
    return [*found, *(child for each in found for child in each.children(recursive=True))]


async def test_nonsense_of_the_runs_own_judge_is_a_failure_and_a_forced_verdict_is_one(
    ray_session: Any, tiny_policy: Path, tmp_path: Path
) -> None:
    (placed,), servers = await start_judges(scorers(tiny_policy, tmp_path), local=True)
    pool = await start_rewards([placed], RewardsConfig(), RayConfig())  # its engine runs already
    trajectories = [a_trajectory(f"text {n}", id=f"t/{n}", task=a_task()) for n in range(3)]
    for outcome in await pool.score(trajectories):
        assert isinstance(outcome, Unscored)
        assert outcome.scores["quality"].outcome == "failed"
        assert "the verdict was cut off" in outcome.reason  # 24 tokens of nonsense inside of a JSON string

    assert isinstance(placed.scorer, RubricScorer)
    assert placed.scorer.judge
    question = Question(instructions="Judge.", material={"text": "x"}, task="Is it so?", schema=ONLY_A_VERDICT)
    reply = await placed.scorer.judge.ask(question)
    assert isinstance(reply.content["criteria_met"], bool)
    assert reply.model.startswith(f"{tiny_policy.name}@")

    processes = servers_of(tiny_policy)
    assert len(processes) >= 3  # a warden, a server and its engine
    for server in servers:
        ray_session.kill(server)
    _, left = psutil.wait_procs(processes, timeout=20)
    assert not left


async def test_a_policy_that_is_none_ends_the_start_with_the_servers_words(
    ray_session: Any, tiny_policy: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(RolloutError, match=r"the engine for .*broken ended as it started: .*[Ee]rror"):
        await asyncio.wait_for(start_judges(scorers(broken, tmp_path), local=True), 300)
    assert not servers_of(broken)
