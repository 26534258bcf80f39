"""The commands ``medrl import`` and ``medrl schema``: what enters the trajectory store, and what stands in it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_log_commands(commands: Any) -> None:
    """Add the commands to the parser of ``medrl``."""
    importing = commands.add_parser("import", help="bring the log of another system into the trajectory store")
    importing.add_argument("sources", type=Path, nargs="+", metavar="FILE", help="JSONL files, or folders of them")
    importing.add_argument("--format", choices=("openai", "verl", "verifiers"), required=True)
    importing.add_argument("--out", type=Path, required=True, metavar="RUN", help="new folder for the trajectories")
    importing.add_argument("--kind", choices=("train", "eval"), help="default train for verl, eval for the others")
    importing.add_argument(
        "--answer-type",
        default="text",
        metavar="TYPE",
        help="what the reference answers are, where they do not say it: text (default), yes_no, choice, number …",
    )
    importing.add_argument(
        "--skip-malformed", action="store_true", help="leave out rows that do not fit, and list them in import.json"
    )
    importing.set_defaults(command=_import)

    schema = commands.add_parser("schema", help="print the columns of the trajectory store")
    schema.set_defaults(command=_schema)


def _import(arguments: argparse.Namespace) -> int:
    from rollouts.log_import import import_log

    found = import_log(
        arguments.sources,
        arguments.out,
        format=arguments.format,
        kind=arguments.kind,
        answer_type=arguments.answer_type,
        skip_malformed=arguments.skip_malformed,
    )
    if found.left_out:
        print(
            f"left out: {len(found.left_out):,} malformed rows, listed in {arguments.out / 'import.json'}; the first: "
            f"{found.left_out[0]}",
            file=sys.stderr,
        )
    print(
        f"{found.trajectories:,} trajectories in {found.groups:,} groups of {found.steps:,} steps: {arguments.out}\n"
        f"score them with: medrl replay {arguments.out} --rewards FILE --out DIR"
    )
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from rollouts.log import schema
    from rollouts.log_schema import SCHEMA_VERSION

    print(f"trajectory schema {SCHEMA_VERSION}: RUN/trajectories/step_*.parquet and eval_*.parquet, a row a trajectory")
    for column in schema():
        print(f"{column.name:21} {_type_name(column.type):12} {column.metadata[b'doc'].decode()}")
    return 0


def _type_name(type_: Any) -> str:
    """``string``, ``list<float>`` …, with the fields of a nested type left to the file itself."""
    return str(type_).split("<")[0] + (f"<{_type_name(type_.value_type)}>" if hasattr(type_, "value_type") else "")
