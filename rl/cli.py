"""The ``medrl`` command: argument parsing and nothing else. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rl.commands.evaluate import add_evaluate_commands
from rl.commands.log import add_log_commands
from rl.commands.replay import add_replay_commands
from rl.commands.rewards import add_rewards_commands
from rl.commands.view import add_view_commands
from rl.errors import MedrlError

OVERRIDES_HELP = "overrides such as learner.learning_rate=1e-4 (see `medrl config CONFIG` for every key)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for what failed, 2 for what was asked wrongly, 130 if stopped."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except MedrlError as error:
        print(f"medrl: {type(error).__name__}: {error}", *getattr(error, "__notes__", ()), sep="\n  ", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # who reads the output, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("medrl: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medrl",
        description="Reinforcement-learning post-training for medical vision-language models.",
        epilog="Exit status: 0 done, 1 failed, 2 asked wrongly (config, data, policy), 130 interrupted.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train a policy as CONFIG says")
    _config_arguments(train)
    train.set_defaults(command=_train)

    submit = commands.add_parser("submit", help="submit the same as a Ray job and follow it")
    _config_arguments(submit)
    submit.add_argument("--address", default="", help="the cluster's dashboard address; default RAY_ADDRESS")
    submit.add_argument(
        "--working-dir", type=Path, help="folder that is sent along (config, rubrics, scorers); default the config's"
    )
    submit.add_argument(
        "--forward-env",
        action="append",
        default=[],
        metavar="NAME",
        help="send this environment variable along, such as a judge's key; Ray's dashboard shows it, so better set it "
        "where the cluster is started",
    )
    submit.set_defaults(command=_submit)

    add_evaluate_commands(commands)

    config = commands.add_parser("config", help="print the resolved config")
    _config_arguments(config)
    config.set_defaults(command=_config)

    report = commands.add_parser("report", help="write report.html of a run, a replay or an evaluation anew")
    report.add_argument("run", type=Path, metavar="RUN")
    report.set_defaults(command=_report)

    add_rewards_commands(commands)
    add_replay_commands(commands)
    add_log_commands(commands)
    add_view_commands(commands)

    serve = commands.add_parser("serve-rewards", help="serve the rewards of a file over HTTP, on Ray Serve")
    serve.add_argument("rewards", type=Path, metavar="REWARDS", help="a rewards file, or a config with such a section")
    serve.add_argument("--host", default="127.0.0.1", help="any other than a local one needs MEDRL_REWARDS_TOKEN set")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="replicas that score")
    serve.add_argument("--max-body-mb", type=float, default=16.0, metavar="MB", help="size of a request")
    serve.add_argument("--max-rows", type=int, default=256, metavar="N", help="rows in a request")
    serve.add_argument("--address", default="", help="a Ray cluster to join; by default a local one is started")
    serve.set_defaults(command=_serve_rewards)

    doctor = commands.add_parser("doctor", help="check the installation: versions, what is wrong, how to mend it")
    doctor.add_argument("--quick", action="store_true", help="leave out the checks that import torch and vLLM")
    doctor.set_defaults(command=_doctor)
    return parser


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped one such as quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)


def _train(arguments: argparse.Namespace) -> int:
    from rl.config import load_config
    from rl.launch import train

    summary = train(load_config(arguments.config, arguments.overrides))
    return 0 if summary["finished"] else 130


def _submit(arguments: argparse.Namespace) -> int:
    from rl.submit import submit

    return submit(
        arguments.config,
        arguments.overrides,
        address=arguments.address,
        working_dir=arguments.working_dir,
        forwarded=arguments.forward_env,
    )


def _config(arguments: argparse.Namespace) -> int:
    from rl.config import load_config, to_yaml

    print(to_yaml(load_config(arguments.config, arguments.overrides)), end="")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from rl.report.run import write_report

    print(write_report(arguments.run))
    return 0


def _serve_rewards(arguments: argparse.Namespace) -> int:
    from rl.serve import serve_rewards

    serve_rewards(
        arguments.rewards,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        max_body_mb=arguments.max_body_mb,
        max_rows=arguments.max_rows,
        address=arguments.address,
    )
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from rl.doctor import main_doctor

    return main_doctor(["--quick"] if arguments.quick else [])


if __name__ == "__main__":
    sys.exit(main())
