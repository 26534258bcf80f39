"""The commands ``medrl evaluate`` and ``medrl benchmarks``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.errors import ConfigError

if TYPE_CHECKING:
    from rl.benchmarks.endpoint import EndpointPool
    from rl.config_schema import RunConfig

DEFAULT_CONFIG = "evaluation"


def add_evaluate_commands(commands: Any) -> None:
    """Add the commands to the parser of ``medrl``."""
    evaluate = commands.add_parser(
        "evaluate",
        help="greedy evaluation of a policy, or of a model behind an endpoint, on held-out tasks or benchmarks",
        description="Without --benchmarks: the held-out tasks and the rewards of CONFIG.",
    )
    evaluate.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file or a shipped one; with --benchmarks default evaluation"
    )
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as sampling.max_tokens=2048")
    evaluate.add_argument("--policy", help="folder or hub id; default the policy that CONFIG names")
    evaluate.add_argument("--out", type=Path, required=True, help="new folder for results, trajectories and report")
    _add_benchmark_arguments(evaluate)
    _add_endpoint_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)

    benchmarks = commands.add_parser("benchmarks", help="list the benchmarks and check those whose data are here")
    benchmarks.add_argument(
        "names", nargs="*", metavar="NAME", help="shipped benchmarks, or files; default all shipped"
    )
    add_data_argument(benchmarks)
    benchmarks.set_defaults(command=_benchmarks)


def _add_benchmark_arguments(evaluate: argparse.ArgumentParser) -> None:
    group = evaluate.add_argument_group("benchmarks")
    group.add_argument(
        "--benchmarks", type=_names, metavar="NAME,NAME", help="shipped ones (see `medrl benchmarks`) or files"
    )
    group.add_argument(
        "--rescore", type=Path, metavar="DIR", help="make the numbers of this evaluation again from its log"
    )
    group.add_argument("--resume", action="store_true", help="go on with the evaluation that was stopped in --out")
    add_data_argument(group)
    group.add_argument("--limit", type=int, default=0, metavar="N", help="the first N tasks of each; default all")
    group.add_argument("--samples", type=int, default=1, metavar="N", help="samples of a task; above 1 not greedy")
    group.add_argument(
        "--pass-at", type=_numbers, default=(), metavar="K,K", help="default 1 and the number of samples"
    )
    group.add_argument(
        "--judge", type=Path, metavar="FILE", help="YAML with `judges: {main: …}`, for those that need one"
    )
    group.add_argument("--trained-on", metavar="CONFIG", help="look for overlaps with this config's training tasks")
    group.add_argument("--tree", type=Path, metavar="FILE", help="entity tree: a table by how frequent entities are")


def _add_endpoint_arguments(evaluate: argparse.ArgumentParser) -> None:
    group = evaluate.add_argument_group("a model behind an OpenAI-compatible endpoint, instead of --policy")
    group.add_argument("--endpoint", metavar="URL", help="its address up to /v1")
    group.add_argument("--model", help="its name there")
    group.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable that holds the key")
    group.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests under way at a time")
    group.add_argument("--timeout-s", type=float, default=300.0, metavar="S", help="of one attempt")
    group.add_argument("--attempts", type=int, default=4, metavar="N", help="before an answer counts as lost")


def add_data_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that the benchmarks' files lie in; default MEDRL_DATA"
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.rescore:
        return _rescore(arguments)
    if not arguments.benchmarks:
        return _evaluate_held_out(arguments)
    from rl.benchmarks.results import RESULTS
    from rl.benchmarks.run import Plan, run_benchmarks
    from rl.benchmarks.spec import find_benchmarks
    from rl.config import load_config

    config = _config(arguments, default=DEFAULT_CONFIG)
    pool = _endpoint(arguments, config) if arguments.endpoint else None
    policy = arguments.policy or config.policy.path
    if bool(pool) == bool(policy):
        raise ConfigError("name one model to evaluate: --policy FOLDER_OR_ID, or --endpoint URL with --model NAME")
    plan = Plan(
        out=arguments.out,
        resume=arguments.resume,
        data=arguments.data,
        samples=arguments.samples,
        pass_at=arguments.pass_at,
        limit=arguments.limit,
        judge=arguments.judge,
        tree=arguments.tree,
        trained_on=load_config(arguments.trained_on) if arguments.trained_on else None,
    )
    try:
        results = run_benchmarks(config, find_benchmarks(arguments.benchmarks), plan=plan, policy=policy, pool=pool)
    except KeyboardInterrupt:
        if not (arguments.out / RESULTS).is_file():
            raise
        print(f"medrl: interrupted; what is done stands in {arguments.out}: go on with --resume", file=sys.stderr)
        return 130
    _show(results, arguments.out)
    return 0


def _rescore(arguments: argparse.Namespace) -> int:
    import json

    from rl.benchmarks.results import RESULTS
    from rl.benchmarks.run import rescore_benchmarks

    results = rescore_benchmarks(arguments.rescore, arguments.out)
    _show(results, arguments.out)
    logged = json.loads((arguments.rescore / RESULTS).read_text(encoding="utf-8"))["benchmarks"]
    keys = ("value", "interval", "answered", "tables", "pass_at", "majority", "lost", "unscored")
    differing = [
        name for name in logged if any(logged[name].get(k) != results["benchmarks"][name].get(k) for k in keys)
    ]
    print(f"other numbers than before: {', '.join(differing)}" if differing else "the same numbers as before")
    return 1 if differing else 0


def _evaluate_held_out(arguments: argparse.Namespace) -> int:
    from rl.launch import evaluate_policy

    if arguments.endpoint:
        raise ConfigError("--endpoint goes with --benchmarks; a YAML of your own tasks serves as one, too")
    evaluate_policy(_config(arguments), policy=arguments.policy, out=arguments.out)
    return 0


def _config(arguments: argparse.Namespace, *, default: str = "") -> RunConfig:
    """The config that is named, or the default one where only overrides are."""
    from rl.config import load_config

    name, overrides = arguments.config or default, arguments.overrides
    if default and "=" in name and not os.path.exists(name):
        name, overrides = default, [name, *overrides]
    if not name:
        raise ConfigError("name the CONFIG whose held-out tasks are evaluated on, or --benchmarks")
    return load_config(name, overrides)


def _endpoint(arguments: argparse.Namespace, config: RunConfig) -> EndpointPool:
    from rewards.judges.config import read_endpoint
    from rl.benchmarks.endpoint import EndpointPool
    from rl.settings import tool_limits
    from rollouts.tools.config import build_tools
    from rollouts.tools.toolbox import Toolbox

    if not arguments.model or arguments.attempts < 1 or not arguments.timeout_s > 0:
        raise ConfigError("--endpoint needs --model NAME, --attempts of at least 1 and --timeout-s above 0")
    fields = {
        "url": arguments.endpoint,
        "model": arguments.model,
        "api_key_env": arguments.api_key_env,
        "max_concurrency": arguments.concurrency,
    }
    endpoint = read_endpoint(fields, where="--endpoint")
    endpoint.with_key()
    tools = Toolbox(build_tools(config.rollouts.tools, config.rollouts.tools_dir), tool_limits(config))
    return EndpointPool(endpoint=endpoint, attempts=arguments.attempts, timeout_s=arguments.timeout_s, tools=tools)


def _show(results: dict[str, Any], out: Path) -> None:
    from rl.benchmarks.results_text import lines

    for line in lines(results):
        print(line)
    print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}", file=sys.stderr)


def _benchmarks(arguments: argparse.Namespace) -> int:
    from rl.benchmarks.spec import benchmark_tasks, find_benchmarks, has_data
    from rl.config_schema import TasksConfig

    print(f"{'benchmark':25} {'metric':9} {'answers':17} {'checked':10} {'tasks':>6}  title")
    for each in find_benchmarks(arguments.names):
        tasks = "-"
        if has_data(each, arguments.data):
            pixels = TasksConfig().max_image_pixels
            tasks = f"{len(benchmark_tasks(each, data=arguments.data, max_image_pixels=pixels)):,}"
        answers = "judge" if each.judge else ", ".join(each.answer_types)
        print(f"{each.name:25} {each.metric:9} {answers:17} {each.checked:10} {tasks:>6}  {each.title}")
        if arguments.names:
            source = each.source.get("from") or each.source.get("hub") or "shipped"
            run = "run here" if each.checked == "run" else "not run here"
            print(f"  {each.citation}; licence: {each.licence}; from {source}\n  {run}; columns: {each.fields}")
            print(f"  {each.note}" if each.note else "", end="\n" if each.note else "")
    return 0
