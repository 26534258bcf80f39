"""The benchmark's arithmetic, on numbers that can be checked by hand, and what it makes of a part that fails."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rl.config_schema import RunConfig
from rl.settings import learner_settings
from rl.types import TrainBatch
from tests.bench import gpu, pages
from tests.bench.__main__ import LIMITS_S, _ended
from tests.bench.harness import Figure, Part, Spread, Table, exponent, faster, grown, interleaved, spread
from tests.samples import a_sample


def test_a_ratio_is_taken_turn_by_turn() -> None:
    # 4/2, 9/3, 10/2 = 2, 3, 5; the ratio of the medians would be 9/2
    found = faster({"ours": [2.0, 3.0, 2.0], "theirs": [4.0, 9.0, 10.0]}, ours="ours", than="theirs")
    assert (found.median, found.low, found.high, found.turns) == (3.0, 2.5, 4.0, 3)


def test_a_single_turn_has_no_spread() -> None:
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_contestants_take_turns_after_one_that_is_not_counted_and_none_always_begins() -> None:
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = interleaved({name: lambda name=name: contestant(name) for name in "ab"}, turns=2)
    assert "".join(order) == "ab" + "ba" + "ab"
    assert seconds == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_the_exponent_is_that_of_the_power_law_through_the_points() -> None:
    assert exponent([(1, 5), (2, 20), (4, 80)]) == pytest.approx(2)  # 5 x²
    assert exponent([(1, 7), (8, 7)]) == pytest.approx(0)
    assert exponent([(3, 1)]) is None and exponent([(1, 1), (2, 0)]) is None


@pytest.mark.parametrize(
    ("better", "median", "aim", "reached"),
    [
        ("higher", 3.0, 3.0, True),
        ("higher", 2.9, 3.0, False),
        ("lower", 0.05, 0.05, True),
        ("lower", 0.1, 0.05, False),
        ("higher", 3.0, None, None),
    ],
)
def test_an_aim_is_reached_on_its_better_side(better: Any, median: float, aim: float | None, reached: bool) -> None:
    assert Figure(what="", value=spread([median]), aim=aim, better=better).reached is reached


PART = Part(
    config={"policy": "tiny"},
    figures=[
        Figure(what="step <b>", value=Spread(3.2, 3.0, 3.4, 7), aim=2.5, note="fair"),
        Figure(what="waiting", value=Spread(0.2, 0.1, 0.3, 7), unit="", aim=0.05, better="lower"),
    ],
    growths=[grown("memory", over="tasks", unit="MB", points=[(2.0, [4.0, 4.0, 5.0]), (4.0, [8.0, 4.0, 9.0])])],
    tables=[Table(title="seconds", columns=("", "s"), rows=[("ours", 1.5)])],
)
MEASURED = {"failed": "", "quick": False, "seconds": 12.0, "commit": "abc", "cores": 2, "versions": {"torch": "2"}}


def test_a_part_comes_back_from_its_record_as_it_was() -> None:
    again = Part.from_json(PART.as_json())
    assert again.figures == PART.figures and again.growths == PART.growths and again.tables == PART.tables


def test_the_pages_name_each_aim_and_whether_it_was_reached() -> None:
    record = {"step": PART.as_json() | MEASURED}
    text, page = pages.as_markdown(record), pages.as_html(record)
    assert "| step <b> | 3.20× | 3.00 to 3.40 | 7 | ≥ 2.5× | reached |" in text
    assert "| waiting | 0.200 | 0.100 to 0.300 | 7 | ≤ 0.05 | missed |" in text
    # Of the turns 8 / 4 = 2¹, 4 / 4 = 2⁰ and 9 / 5 = 2^0.848; of the points 4 and 8.
    said = "4 MB at 2 to 8 MB at 4; exponent 0.85 (0.42 to 0.92)"
    assert said in text and said in page
    assert "step &lt;b&gt;" in page and "step <b>" not in page
    assert "reached" in pages.as_text("step", record["step"])


def test_a_failed_part_says_why_and_keeps_its_place() -> None:
    record = Part(config={}).as_json() | MEASURED | {"failed": "exit status 1: no engine"}
    assert "failed, exit status 1: no engine" in pages.as_text("step", record)
    assert "**Failed**: exit status 1: no engine" in pages.as_markdown({"step": record})
    assert "Failed: exit status 1: no engine" in pages.as_html({"step": record})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('fine')", ""),
        ("raise SystemExit('no engine')", "exit status 1: no engine"),
        ("import time; time.sleep(60)", "more than 1 s"),
    ],
)
def test_a_part_that_fails_or_hangs_is_ended_and_named(tmp_path: Path, code: str, said: str) -> None:
    limit_s = 1 if "sleep" in code else 30
    assert _ended([sys.executable, "-c", textwrap.dedent(code)], tmp_path / "log", limit_s=limit_s).startswith(said)


def test_every_part_has_a_limit_that_adds_up_to_no_more_than_an_afternoon() -> None:
    folder = Path(__file__).parent / "bench"
    parts = {path.stem for path in folder.glob("*.py") if "def measure(" in path.read_text()}
    assert parts == set(LIMITS_S)
    assert math.fsum(LIMITS_S.values()) < 3 * 3600


@pytest.mark.slow
def test_broken_scorers_cost_innocent_trajectories_nothing() -> None:
    from tests.bench.broken_scorers import medrl_rows

    for row in asyncio.run(medrl_rows((6,), deadline_s=1.0)):
        assert row["scored"] == row["innocent"] == 58
        assert row["next batch scored"] == 64


@pytest.mark.slow
def test_a_kernel_that_does_not_run_here_is_told_from_one_that_does() -> None:
    assert gpu.why_missing("sdpa", "cpu") == ""
    assert "flash" in gpu.why_missing("flash", "cpu")


def test_the_plain_contestant_on_a_gpu_is_what_packing_false_gives(tiny_policy: Path) -> None:
    from policies.vlm import load_policy

    model, processor = load_policy(str(tiny_policy))
    engine = SimpleNamespace(module=SimpleNamespace(model=model))
    measured = object.__new__(gpu.Measured)
    measured.learner = SimpleNamespace(
        engine=engine, processor=processor, settings=learner_settings(RunConfig(), str(tiny_policy))
    )
    measured.trl = SimpleNamespace(rows_at_a_time=4)
    measured.batch = TrainBatch(samples=(a_sample([1] * 17),), loss_tokens=17, policy_version=0)
    measured._attend("sdpa")
    assert measured.learner.builder.encodes_once
    measured._attend(None)
    assert not measured.learner.builder.encodes_once  # but once for each trajectory
    assert measured.learner.settings.micro_batch_tokens == 4 * 20


def test_rows_that_find_no_room_on_a_gpu_are_not_those_that_suit_trl_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes a second, whatever its rows: two of them half a second each."""
    import torch

    from tests.bench import trl_trainer

    now_s = itertools.count()
    monkeypatch.setattr(trl_trainer, "time", SimpleNamespace(perf_counter=lambda: next(now_s)))

    def compute_loss(model: Any, rows: int) -> Any:
        if rows > 2:
            raise torch.OutOfMemoryError
        return SimpleNamespace(backward=lambda: None)

    update = object.__new__(trl_trainer.TrlUpdate)
    update.device = "cpu"
    update._micro_batches = lambda size: [size]
    optimizer = SimpleNamespace(zero_grad=lambda: None)
    trainer = SimpleNamespace(compute_loss=compute_loss, model=None, args=SimpleNamespace(), optimizer=optimizer)
    update.trainer = trainer
    assert update._fastest(8) == 2


@pytest.mark.slow
def test_the_measurement_for_gpus_runs_on_the_cpu(tmp_path: Path) -> None:
    """In a process of its own: it builds a learner, which joins a process group."""
    repository = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.gpu", "--device", "cpu", "--quick"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=os.environ | repository, capture_output=True, text=True, timeout=540
    )
    assert ran.returncode == 0, ran.stderr
    assert "packed, sdpa over plain" in ran.stdout and "packed, sdpa over TRL" in ran.stdout
    assert "Largest difference of a logprob from the plain path's" in ran.stdout
