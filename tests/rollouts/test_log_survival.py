"""The trajectory store under a writer that is killed, and larger than memory."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rollouts.log import LoggedStep, drop_steps_from, logged_steps, read_step, row_count, write_step
from tests.made_up_log import write_made_up
from tests.rollouts.test_log import a_group


@pytest.mark.slow
def test_a_sigkill_at_any_call_of_the_writer_leaves_whole_steps_and_no_row_twice(tmp_path: Path) -> None:
    # The child counts the calls of a whole write, then is killed at forty places spread over them and at the last.
    writer = textwrap.dedent("""
        import os, pathlib, signal, sys
        from rollouts.log import LoggedStep, write_step
        from tests.rollouts.test_log import JPEG, PNG, a_group

        def step(number):
            return LoggedStep(step=number, groups=[a_group(f"{number}-{n}", image=PNG + bytes([n])) for n in range(4)])

        def killed_at(moment, run_dir):
            calls = 0
            def count(frame, event, argument):
                nonlocal calls
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
            sys.setprofile(count)
            write_step(run_dir, step(2))
            sys.setprofile(None)
            return calls

        root = pathlib.Path(sys.argv[1])
        write_step(root / "whole", step(1))
        total = killed_at(-1, root / "whole")
        for moment in (*range(1, total, total // 30), *range(total - 10, total)):
            run_dir = root / str(moment)
            if os.fork() == 0:
                write_step(run_dir, step(1))
                killed_at(moment, run_dir)
                os._exit(0)
            os.wait()
    """)
    subprocess.run([sys.executable, "-c", writer, str(tmp_path)], check=True, timeout=300)
    runs = [path for path in tmp_path.iterdir() if path.name != "whole"]
    assert len(runs) >= 40
    left = [logged_steps(run) for run in runs]
    assert {tuple(steps) for steps in left} == {(1,), (1, 2)}  # killed before the step was in place, or after
    for run in runs:
        for number in logged_steps(run):
            names = [item.trajectory.id for group in read_step(run, number).groups for item in group.scored]
            assert sorted(names) == [f"{number}-{n}/{sample}" for n in range(4) for sample in range(2)]
        write_step(run, LoggedStep(step=2, groups=[a_group()]))  # what was left behind is in nobody's way
        drop_steps_from(run, 2)
        assert [path.name for path in (run / "trajectories").iterdir()] == ["step_000001.parquet"]


@pytest.mark.slow
def test_a_store_is_filtered_and_scored_anew_without_being_held_in_memory(tmp_path: Path) -> None:
    # 40,000 rows are 0.1 GB on disk and 2 GB as Python objects; a tenth of them must need about as much memory.
    script = textwrap.dedent("""
        import pathlib, resource, sys
        from rl.replay.rescore import replay
        from rollouts.log import iter_rows

        run = pathlib.Path(sys.argv[1])
        right = sum(row["reward"] == 1.0 for row in iter_rows(run, columns=["reward", "trajectory_id"]))
        replay(run, run.with_suffix(".out"), rewards=pathlib.Path(sys.argv[2]), workers=1)
        print(right, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """)
    rewards = tmp_path / "rewards.yaml"
    rewards.write_text("scorers: {letters: {use: 'tests.scorers:LetterShare'}}")
    peak_mb = {}
    for rows in (4_000, 40_000):
        run = tmp_path / str(rows)
        write_made_up(run, rows=rows)
        command = [sys.executable, "-c", script, str(run), str(rewards)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        right, peak_mb[rows] = map(int, done.stdout.split())
        assert 0.4 * rows < right < 0.6 * rows
        assert row_count(run.with_suffix(".out"), 1) == rows
    assert peak_mb[40_000] < peak_mb[4_000] + 150
