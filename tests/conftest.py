"""What tests share: the environment of their processes, one local Ray, and the check that nothing is left behind."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

# Set before any test module imports torch, and inherited by every process that a test starts.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",  # spinning threads of two processes slow each other ten-fold
    TORCHDYNAMO_DISABLE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MEDRL_TEST_SESSION=uuid.uuid4().hex,
)
os.environ.pop("RAY_ADDRESS", None)  # a test must never join a cluster that happens to run here

# The same examples in every run, and no deadline: the machine may be busy.
hypothesis.settings.register_profile("medrl", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("medrl")


MODELS = frozenset({"tiny_policy", "tiny_qwen", "tiny_qwen3"})
"""Fixtures that build a model: a test that asks for one is slow."""
LONGEST = "test_killed"


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the marks, and before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests a process of `pytest -n` takes together: those that share what takes long to make.

    That is a training run, or else the fixtures of a file. The longest go first, so that none is left for the end.
    """
    for item in items:
        fixtures = frozenset(getattr(item, "fixturenames", ()))
        if fixtures & MODELS:
            item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.xdist_group("undisturbed" if "undisturbed" in fixtures else item.path.stem))
    items.sort(key=lambda item: (item.path.stem != LONGEST, item.get_closest_marker("slow") is None))


def pytest_collection_finish() -> None:
    gc.freeze()  # the modules stay; without this every full collection looks through them again


@pytest.fixture(scope="session", autouse=True)
def no_process_survives() -> Iterator[None]:
    """Fail the session if an engine, a learner, a raylet or anything else that a test started outlives it."""
    yield
    survivors = _processes_of_this_session()
    if survivors:
        _, survivors = psutil.wait_procs(survivors, timeout=20)
    described = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in survivors if process.is_running()]
    for process in survivors:
        process.kill()
    assert not described, "processes outlived the tests that started them:\n" + "\n".join(described)


def _processes_of_this_session() -> list[psutil.Process]:
    """Those that inherited the session's mark, whoever their parent is by now."""
    mark = os.environ["MEDRL_TEST_SESSION"]
    found = []
    for process in psutil.process_iter():
        try:
            inherited = process.environ().get("MEDRL_TEST_SESSION") == mark
            tracker = "resource_tracker" in " ".join(process.cmdline())  # Python's own; ends with this process
        except psutil.Error:
            continue
        if inherited and not tracker and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A local Ray with four logical CPUs, shared by all slow tests. Yields the ``ray`` module."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # as in `rl.cluster.ray_session`: the tests beside it compute too
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's policy with random weights."""
    from policies.vlm import build_seed_vlm

    return build_seed_vlm("tiny", tmp_path_factory.mktemp("policies") / "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of another architecture, with three-dimensional rotary positions."""
    from tests.tiny_qwen import build_tiny_qwen

    return build_tiny_qwen(tmp_path_factory.mktemp("policies") / "qwen", seed=0)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One more, whose decoder takes images between its layers too."""
    from tests.tiny_qwen import build_tiny_qwen3

    return build_tiny_qwen3(tmp_path_factory.mktemp("policies") / "qwen3", seed=0)
