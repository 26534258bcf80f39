"""The commands over the trajectory store, ``medrl replay`` and ``medrl compare``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rl.errors import ConfigError


def add_replay_commands(commands: Any) -> None:
    """Add the commands to the parser of ``medrl``."""
    replay = commands.add_parser("replay", help="score what a run has logged anew; with --step, make a step again")
    replay.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of imported trajectories")
    replay.add_argument("--rewards", type=Path, metavar="FILE", help="a rewards file; default the run's own rewards")
    replay.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the new scores, their comparison and report"
    )
    replay.add_argument("--steps", type=_steps, metavar="N,N-N", help="steps such as 3 or 1,10-20; default all")
    replay.add_argument("--kind", choices=("train", "eval"), help="only steps of this kind; default both")
    replay.add_argument("--workers", type=int, default=0, metavar="N", help="processes; default one for each core")
    replay.add_argument("--address", default="", help="share the work over the Ray cluster at this address")
    _add_step_arguments(replay)
    replay.set_defaults(command=_replay)

    compare = commands.add_parser(
        "compare", help="compare two scorings of the same trajectories, or two models on the same benchmarks"
    )
    compare.add_argument("before", type=Path, metavar="BEFORE", help="folder of a run, a replay or an evaluation")
    compare.add_argument(
        "after", type=Path, metavar="AFTER", help="folder of another scoring, or of another model's evaluation"
    )
    compare.add_argument("--out", type=Path, metavar="DIR", help="folder for comparison.json and report.html")
    compare.set_defaults(command=_compare)

    explain = commands.add_parser("explain", help="from an optimizer step back to trajectories, scores and evidence")
    explain.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    explain.add_argument("--step", type=int, required=True, metavar="N", help="optimizer step of the run, from 1")
    explain.add_argument("--trajectory", metavar="ID", help="one trajectory of the step, down to its evidence")
    explain.add_argument(
        "--gradients", action="store_true", help="measure every trajectory's part of the gradient with a learner"
    )
    explain.set_defaults(command=_explain)


def _add_step_arguments(replay: argparse.ArgumentParser) -> None:
    again = replay.add_argument_group("one step again, with the learner where it takes one")
    again.add_argument(
        "--step", type=int, metavar="N", help="make this training step again and compare it with the log"
    )
    again.add_argument(
        "--through", choices=("advantages", "loss", "update"), default="update", help="how far; default update"
    )
    again.add_argument(
        "--what-if",
        nargs="+",
        default=[],
        metavar="key=value",
        help="settings of rewards, advantage or loss: how each would have turned the gradient",
    )
    again.add_argument("--tolerance", type=float, metavar="X", help="default 0, to the bit, wherever that can hold")


def _replay(arguments: argparse.Namespace) -> int:
    if arguments.step is not None:
        return _replay_step(arguments)
    from rl.replay.compare import compare
    from rl.replay.compare_text import verdict
    from rl.replay.rescore import replay
    from rollouts.log import KINDS

    if arguments.what_if:
        raise ConfigError("--what-if needs --step N: the step whose gradient is to be laid beside others")
    if arguments.out is None:
        raise ConfigError("--out DIR must name a folder for the new scores")
    done = replay(
        arguments.run,
        arguments.out,
        rewards=arguments.rewards,
        steps=arguments.steps,
        kinds=(arguments.kind,) if arguments.kind else KINDS,
        workers=arguments.workers,
        address=arguments.address,
    )
    found = compare(done.source, done.out, done.steps)
    _show(found, before=done.source, after=done.out, out=done.out)
    if not done.own_rewards:
        return 0
    print(verdict(found))
    return 0 if found.reproduced else 1


def _replay_step(arguments: argparse.Namespace) -> int:
    from rl.replay.update import described, replay_step

    replayed = replay_step(
        arguments.run,
        step=arguments.step,
        through=arguments.through,
        what_if=arguments.what_if,
        tolerance=arguments.tolerance,
    )
    for line in described(replayed):
        print(line)
    return 0 if replayed.same else 1


def _explain(arguments: argparse.Namespace) -> int:
    from rewards.tools.terminal import Paint
    from rl.replay.explain import explain_step

    for line in explain_step(
        arguments.run,
        step=arguments.step,
        trajectory=arguments.trajectory,
        gradients=arguments.gradients,
        paint=Paint.on(sys.stdout),
    ):
        print(line)
    return 0


def _compare_models(arguments: argparse.Namespace) -> int:
    from rl.benchmarks.paired import compare_evaluations
    from rl.benchmarks.results_text import COMPARED_HEAD, compared

    print(COMPARED_HEAD)
    for name, found in compare_evaluations(arguments.before, arguments.after, out=arguments.out).items():
        print(compared(name, found))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from rl.benchmarks.paired import is_evaluation
    from rl.replay.compare import compare
    from rl.replay.rescore import choose_steps
    from rollouts.log import KINDS

    if is_evaluation(arguments.before) and is_evaluation(arguments.after):
        return _compare_models(arguments)
    steps = tuple(choose_steps(arguments.after, steps=None, kinds=KINDS))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    found = compare(arguments.before, arguments.after, steps)
    _show(found, before=arguments.before, after=arguments.after, out=arguments.out)
    return 0


def _show(found: Any, *, before: Path, after: Path, out: Path | None) -> None:
    from rl.replay.compare_text import as_json, lines
    from rl.replay.examples import example_lines, read_examples
    from rl.replay.rescore import roles_of
    from rl.report.run import write_comparison_report
    from rl.run_folder import write_summary

    examples = read_examples(found, before, after)
    for line in (*lines(found), *example_lines(examples)):
        print(line)
    if out is not None:
        write_summary(out, as_json(found), name="comparison.json")
        report = write_comparison_report(out, found, examples, roles=roles_of(after), before=before)
        print(f"report: {report}")


def _steps(text: str) -> set[int]:
    """``1,10-20`` → the numbers that it names."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"must be numbers and ranges such as 1,10-20; got {text!r}")
        chosen.update(range(int(first), int(last or first) + 1))
    return chosen
