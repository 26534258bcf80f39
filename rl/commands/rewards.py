"""The ``medrl rewards`` commands: argument parsing, and where each command's input comes from and its output goes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.errors import ConfigError
from rl.progress import say

if TYPE_CHECKING:
    from rewards.config import RewardsFile
    from rl.types import ScoredTrajectory, Unscored

ROWS_HELP = "a JSONL file of rows, or the folder of a run"
REWARDS_HELP = "a rewards file, or a config with a `rewards` section"


def add_rewards_commands(commands: Any) -> None:
    """Add ``rewards`` and the commands under it to the parser of ``medrl``."""
    rewards = commands.add_parser("rewards", help="try, explain and check rewards; needs no model")
    commands = rewards.add_subparsers(title="commands", metavar="COMMAND", required=True)

    score = commands.add_parser("score", help="score rows, or the trajectories of a run: one row in, one row out")
    score.add_argument("rewards", type=Path, metavar="REWARDS", help=REWARDS_HELP)
    score.add_argument("--in", dest="source", type=Path, required=True, metavar="ROWS", help=ROWS_HELP)
    score.add_argument("--out", type=Path, required=True, metavar="SCORES", help="the JSONL file to write")
    score.add_argument("--concurrency", type=_at_least_one, default=32, metavar="N", help="rows under way at a time")
    score.set_defaults(command=_score)

    listing = commands.add_parser("list", help="what exists: scorers, answer types, rules, claims")
    listing.add_argument("kinds", nargs="*", metavar="KIND", help="scorers, answers, rules, claims; default all")
    listing.set_defaults(command=_list)

    explain = commands.add_parser("explain", help="why one trajectory got its score, claim by claim")
    explain.add_argument("id", metavar="ID", help="the id of a row, or of a trajectory of a run")
    explain.add_argument("--in", dest="source", type=Path, required=True, metavar="ROWS", help=ROWS_HELP)
    explain.add_argument(
        "--rewards", type=Path, help=f"{REWARDS_HELP}, to score with; left out, what a run has logged is explained"
    )
    explain.set_defaults(command=_explain)

    lint = commands.add_parser("lint", help="problems in rewards that load, and do not do what they seem to")
    lint.add_argument("rewards", type=Path, metavar="REWARDS", help=REWARDS_HELP)
    lint.add_argument(
        "--in", dest="source", type=Path, metavar="ROWS", help=f"look for criteria that never differ: {ROWS_HELP}"
    )
    lint.add_argument("--allow", action="append", default=[], metavar="NAME", help="accept problems of this name")
    lint.add_argument("--strict", action="store_true", help="let warnings fail as errors do")
    lint.set_defaults(command=_lint)

    test = commands.add_parser("test", help="spoil known-good traces and say which corruptions go unpunished")
    test.add_argument("rewards", type=Path, metavar="REWARDS", help=REWARDS_HELP)
    test.add_argument(
        "--in", dest="source", type=Path, metavar="ROWS", help=f"known-good traces: {ROWS_HELP}; default cytology cases"
    )
    test.add_argument(
        "--allow", action="append", default=[], metavar="NAME", help="accept that this corruption goes unpunished"
    )
    test.set_defaults(command=_test)

    agree = commands.add_parser("agree", help="agreement of rewards, or of one scorer, with human labels")
    agree.add_argument(
        "--labels", type=Path, required=True, metavar="HUMAN", help='a JSONL file of {"id", "label": true or a number}'
    )
    agree.add_argument(
        "--scores", type=Path, required=True, help="what `medrl rewards score` wrote, or the folder of a run"
    )
    agree.add_argument("--scorer", metavar="NAME", help="compare this scorer's values; default the rewards")
    agree.add_argument(
        "--threshold", type=float, default=0.5, metavar="T", help="a value from T on counts as true; default 0.5"
    )
    agree.add_argument(
        "--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="labels that could be given; default those given"
    )
    agree.set_defaults(command=_agree)


def _score(arguments: argparse.Namespace) -> int:
    from rewards.config import load_rewards_file
    from rewards.rows import score_row
    from rewards.tools.scoring import score_stream
    from rl.commands.trajectory_sources import open_source
    from rl.progress import Progress

    rewards = load_rewards_file(arguments.rewards)
    out: Path = arguments.out
    if out.exists() and out.samefile(arguments.source):
        raise ConfigError(f"--out {out} is the file that is read; name another one")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    source = open_source(arguments.source)
    _say_what_shaping_does(rewards, total=source.total, without_tokens=source.without_tokens)
    progress = Progress(source.total, noun="row", every_s=2)
    tally = _Tally()
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:

            def receive(scored: ScoredTrajectory | Unscored) -> None:
                row = score_row(scored)
                file.write(json.dumps(row) + "\n")
                tally.add(row)
                progress.update(tally.rows)

            score_stream(source, rewards, receive=receive, concurrency=arguments.concurrency)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    say(f"{tally.summary()}; wrote {out}")
    return 0 if tally.outcomes["scored"] else 1


def _list(arguments: argparse.Namespace) -> int:
    from rewards.tools.catalog import catalog, listing
    from rewards.tools.terminal import Paint

    chapters = catalog()
    kinds = [chapter.kind for chapter in chapters]
    if unknown := [kind for kind in arguments.kinds if kind not in kinds]:
        raise ConfigError(f"there is no kind {unknown[0]!r}; there are {', '.join(kinds)}")
    wanted = tuple(chapter for chapter in chapters if chapter.kind in (arguments.kinds or kinds))
    for line in listing(wanted, paint=Paint.on(sys.stdout)):
        print(line)
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from rewards.config import load_rewards_file
    from rewards.tools.explain import explain
    from rewards.tools.scoring import score_stream
    from rewards.tools.terminal import Paint
    from rl.commands.trajectory_sources import find_logged, open_source, rewards_of_run

    explained: list[ScoredTrajectory | Unscored] = []
    if arguments.rewards:
        rewards = load_rewards_file(arguments.rewards)
        trajectory = open_source(arguments.source).find(arguments.id)
        score_stream([trajectory], rewards, receive=explained.append)
    elif arguments.source.is_dir():
        rewards = rewards_of_run(arguments.source)
        explained.append(find_logged(arguments.source, arguments.id))
    else:
        raise ConfigError(f"{arguments.source} holds no scores; say with --rewards REWARDS.yaml what to score it with")
    for line in explain(explained[0], rewards, paint=Paint.on(sys.stdout)):
        print(line)
    return 0


def _lint(arguments: argparse.Namespace) -> int:
    from rewards.config import load_rewards_file
    from rewards.places import place_in_rewards
    from rewards.tools.lint import CHECKS, lint, lint_scored
    from rewards.tools.scoring import score_stream
    from rewards.tools.terminal import Paint, printable
    from rl.commands.trajectory_sources import open_source

    _check_names(arguments.allow, CHECKS, flag="--allow")
    rewards = load_rewards_file(arguments.rewards)

    def place_of(key: str) -> str:
        return place_in_rewards(arguments.rewards, key) or str(arguments.rewards)

    found = lint(rewards, place_of=place_of)
    if arguments.source:
        scored: list[ScoredTrajectory | Unscored] = []
        score_stream(open_source(arguments.source), rewards, receive=scored.append)
        found += lint_scored(scored, rewards, place_of=place_of)
    shown = [problem for problem in found if problem.check not in arguments.allow]
    paint = Paint.on(sys.stdout)
    for problem in shown:
        severity = paint(problem.severity, "red" if problem.severity == "error" else "yellow")
        print(f"{problem.place}: {severity} [{problem.check}] {printable(problem.message)}")
    errors = sum(problem.severity == "error" for problem in shown)
    allowed = f", allowed {len(found) - len(shown)}" if len(found) > len(shown) else ""
    say(f"errors {errors}, warnings {len(shown) - errors}{allowed}")
    return 1 if errors or (arguments.strict and shown) else 0


def _test(arguments: argparse.Namespace) -> int:
    from rewards.config import load_rewards_file
    from rewards.tools.corruptions import CORRUPTIONS
    from rewards.tools.mutation import mutation_test, report_lines
    from rewards.tools.terminal import Paint
    from rl.commands.trajectory_sources import built_in_known_good, open_source

    allowed = arguments.allow
    _check_names(allowed, CORRUPTIONS, flag="--allow")
    rewards = load_rewards_file(arguments.rewards)
    source = open_source(arguments.source) if arguments.source else built_in_known_good()
    report = mutation_test(source, rewards)
    if not report.rewards:
        id, reason = next(iter(report.unusable.items()))
        raise ConfigError(f"none of the traces gets a reward that could drop; {id}: {reason}. Name good ones with --in")
    for line in report_lines(report, allowed=allowed, paint=Paint.on(sys.stdout)):
        print(line)
    unpunished = report.unpunished(allowed=allowed)
    print(f"\nunpunished: {', '.join(unpunished)}" if unpunished else "\nevery corruption is punished, or allowed")
    return 1 if unpunished else 0


def _agree(arguments: argparse.Namespace) -> int:
    from rewards.rows import score_row
    from rewards.tools.agreement import pair, read_labels, read_scores, report_lines
    from rewards.tools.terminal import Paint
    from rl.commands.trajectory_sources import logged_scores

    scale = tuple(arguments.scale) if arguments.scale else None
    labels = read_labels(arguments.labels, scale=scale)
    path: Path = arguments.scores
    scores = map(score_row, logged_scores(path)) if path.is_dir() else read_scores(path)
    paired = pair(labels, scores, scorer=arguments.scorer)
    for line in report_lines(
        paired, labels, scorer=arguments.scorer, threshold=arguments.threshold, paint=Paint.on(sys.stdout)
    ):
        print(line)
    return 0


def _check_names(names: Sequence[str], known: Collection[str], *, flag: str) -> None:
    from rl.plugins import suggestion

    for name in names:
        if name not in known:
            raise ConfigError(f"{flag} {name}: there are {', '.join(known)}." + suggestion(name, known))


class _Tally:
    """Outcomes and rewards of the rows so far."""

    def __init__(self) -> None:
        self.rows = 0
        self.outcomes: Counter[str] = Counter()
        self._sum = 0.0
        self._first_reason = ""

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self.outcomes[row["outcome"]] += 1
        self._sum += row["reward"] or 0.0
        if row["reward"] is None and not self._first_reason:
            scores = row["scores"].items()
            said = (f"{name}: {entry['reason']}" for name, entry in scores if entry["outcome"] == row["outcome"])
            self._first_reason = f"{row['id']}: {next(said, 'aborted, so that no scorer was asked')}"

    def summary(self) -> str:
        scored = self.outcomes["scored"]
        parts = [f"scored {scored:,} of {self.rows:,} rows"]
        if scored:
            parts.append(f"mean reward {self._sum / scored:.3f}")
        parts += [f"{outcome} {count:,}" for outcome, count in self.outcomes.items() if outcome != "scored"]
        first = f" (first: {self._first_reason})" if self._first_reason else ""
        return ", ".join(parts) + first


def _say_what_shaping_does(rewards: RewardsFile, *, total: int, without_tokens: int) -> None:
    if rewards.length_penalty and rewards.length_soft_tokens and without_tokens:
        say(
            f"length_penalty {rewards.length_penalty:g} counts tokens: {without_tokens:,} of {total:,} rows have no "
            "length_tokens and max_tokens, and are rewarded without it"
        )


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1; got {number}")
    return number
