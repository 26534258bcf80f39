"""From ``rollouts.tools`` of a config to tools that are ready to be called.

    rollouts:
      tools:
        zoom:    {use: zoom, side: 448}
        look_up: {use: look_up, path: guidelines.jsonl}
        dose:    {use: "my_hospital.tools:DailyDose", table: {aspirin: 100 mg}}

The policy calls a tool by the name that it has here. ``use`` is a built-in name, an entry point of the group
``medrl.tools`` or ``module.path:Class`` (see `rl.plugins`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rl.errors import ConfigError
from rl.json_schema import schema_fault
from rl.plugins import fit_parameters, plain, resolve_class
from rollouts.tools.tool import Tool

BUILT_IN = {
    "look_up": "rollouts.tools.knowledge:LookUp",
    "mcp": "rollouts.tools.mcp:McpTool",
    "measure_length": "rollouts.tools.record:MeasureLength",
    "read_record": "rollouts.tools.record:ReadRecord",
    "rotate": "rollouts.tools.images:Rotate",
    "zoom": "rollouts.tools.images:Zoom",
}
ENTRY_POINTS = "medrl.tools"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what chat completions allow for the name of a function


def build_tools(specs: Mapping[str, Any], base_dir: str | Path = ".") -> dict[str, Tool]:
    """Build and prepare every tool; relative paths start from ``base_dir``, then from the working folder.

    Raises ConfigError, naming the key, for whatever does not exist or does not fit together.
    """
    return {name: _build(name, plain(spec), Path(base_dir)) for name, spec in specs.items()}


def _build(name: str, spec: Any, base_dir: Path) -> Tool:
    where = f"rollouts.tools.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a tool's name has up to 64 letters, digits, _ and -; got {name!r}")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("use"), str):
        raise ConfigError(f"{where} must be a mapping with the key `use`; got {spec!r}")
    cls = resolve_class(
        spec["use"],
        Tool,  # type: ignore[type-abstract]
        noun="tool",
        built_in=BUILT_IN,
        entry_points=ENTRY_POINTS,
        base_dir=base_dir,
        where=f"{where}.use",
    )
    parameters = fit_parameters(cls, {key: value for key, value in spec.items() if key != "use"}, where=where)
    for key, value in ({each.name: each.default for each in fields(cls)} | parameters).items():
        if isinstance(value, Path):
            parameters[key] = _found(value, base_dir, where=f"{where}.{key}")
    try:
        tool = cls(**parameters)
        tool.prepare()
        fault = schema_fault(tool.declaration(name)["function"]["parameters"])
    except (TypeError, ValueError, OSError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if fault:
        raise ConfigError(f"{where}: its parameters cannot be checked: {fault}")
    return tool


def _found(path: Path, base_dir: Path, *, where: str) -> Path:
    tried = list(dict.fromkeys((folder / path).resolve() for folder in (base_dir, Path.cwd())))
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise ConfigError(f"{where}: there is no file {str(path)!r}; looked for {', '.join(map(str, tried))}")
