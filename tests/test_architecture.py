"""The rules of the house, read off the syntax trees: who imports whom, and where, sizes, and what is never done.

Each rule gives the lines that break it, and is itself shown to find a line that does.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("rl", "entities", "rollouts", "rewards", "policies")
SIBLINGS = frozenset({"rollouts", "rewards", "policies"})
FOUNDATION = frozenset({"rl.types", "rl.errors", "rl.plugins", "rl.regex", "rl.json_schema"})

SLOW_IMPORTS = frozenset(
    {"torch", "ray", "vllm", "deepspeed", "transformers", "trl", "peft", "accelerate", "datasets", "sklearn"}
)
STACK_MODULES = frozenset(
    {
        "policies.attention",
        "policies.broadcast",
        "policies.learner",
        "policies.learner_state",
        "policies.logprobs",
        "policies.packing",
        "policies.policy_model",
        "policies.deepspeed_engine",
        "policies.group_logprobs",
        "policies.warmstart",
        "policies.weights",
        "rl.loss",
        "rollouts.weight_transfer",
    }
)
"""Modules that import the accelerator stack as they load. Only actors load them, in a function."""

CATCH_ALL_MODULES = frozenset({"rewards.service", "rollouts.pool", "rollouts.tools.toolbox"})
"""Where any exception of foreign code is turned into an outcome."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = frozenset({"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc", "data", "info"})
FORBIDDEN_CALLS = frozenset(
    {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
)
UNSAFE_IMPORTS = frozenset({"cloudpickle", "dill", "marshal", "shelve", "_pickle"})
UNPICKLING = frozenset({"pickle.load", "pickle.loads", "pickle.Unpickler"})
UNPICKLING_MODULES = frozenset({"rewards.isolation.nursery"})
"""Reads what its own parent process wrote, over a socket that nobody else has; the other direction is JSON."""

HOSTS = ("pypi.org", "pythonhosted.org", "pytorch.org", "npmjs.org", "anaconda.org", "huggingface.co")
"""Registries and hubs: which of them is used is the machine's configuration, not the project's."""
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:work|root|home|Users)/")
TEXT_FILES = (
    "*.md",
    "Makefile",
    "*.toml",
    ".ci/*",
    *(f"{package}/**/*" for package in (*PACKAGES, "configs", "tests")),
)
TEXT_SUFFIXES = frozenset(
    {"", ".md", ".toml", ".py", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".jinja", ".sh"}
)


@dataclass(frozen=True)
class Module:
    """One source file of the packages; ``name`` is its dotted name."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Imported:
    """One imported module; ``at_load`` where importing the file imports it too, and not only type checkers do."""

    name: str
    line: int
    at_load: bool


Violations = Iterator[tuple[int, str]]
Rule = Callable[[Module], Violations]


def parse(path: Path, *, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    text = path.read_text(encoding="utf-8")
    return Module(".".join(parts).removesuffix(".__init__"), path, text, ast.parse(text, filename=str(path)))


@cache
def modules() -> tuple[Module, ...]:
    paths = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
    assert len(paths) > 10
    return tuple(parse(path, root=REPOSITORY) for path in paths)


@cache
def imports(module: Module) -> tuple[Imported, ...]:
    """Everything that a file imports. ``from rl import types`` counts as both ``rl`` and ``rl.types``."""
    deferred: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if is_function or (isinstance(node, ast.If) and _for_type_checkers(node.test)):
            bodies = node.body if isinstance(node, ast.If) else [node]
            deferred.update(inner for body in bodies for inner in ast.walk(body))
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(module, node)
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        found += [Imported(name, node.lineno, node not in deferred) for name in names]
    return tuple(found)


def _for_type_checkers(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = module.path.name == "__init__.py"
    parents = module.name.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
    return ".".join([*parents, *filter(None, [node.module])])


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


# The rules. Each yields line and reason.


def imports_only_what_lies_below(module: Module) -> Violations:
    for imported in imports(module):
        package = imported.name.split(".")[0]
        if package not in PACKAGES or imported.name == "rl":
            continue
        if module.name in FOUNDATION:
            allowed = imported.name in FOUNDATION or imported.name.rpartition(".")[0] in FOUNDATION
        elif module.package == "rl":
            allowed = True
        else:
            founded = any(imported.name == base or imported.name.startswith(f"{base}.") for base in FOUNDATION)
            below = package == "entities" and module.package in SIBLINGS
            allowed = founded or below or package == module.package
        if not allowed:
            yield (
                imported.line,
                f"{module.name} imports {imported.name}; rl.types, rl.errors, rl.plugins ← entities ← siblings ← rl",
            )


def loads_no_accelerator_stack(module: Module) -> Violations:
    """Followed through our own modules: whoever loads a stack module loads the stack."""
    if module.name in STACK_MODULES:
        return
    for imported in imports(module):
        if imported.at_load and imported.name.split(".")[0] in SLOW_IMPORTS:
            yield imported.line, f"imports {imported.name} as the module loads; import it in the function that needs it"
        if imported.at_load and imported.name in STACK_MODULES:
            yield imported.line, f"imports {imported.name}, which loads the accelerator stack; import it in a function"


def is_of_readable_size(module: Module) -> Violations:
    lines = module.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield lines, f"{lines} lines; at most {MAX_FILE_LINES}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines; at most {MAX_FUNCTION_LINES}"


def catches_only_what_it_can_name(module: Module) -> Violations:
    if module.name in CATCH_ALL_MODULES:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                [ast.unparse(name) for name in ast.walk(node.type) if isinstance(name, ast.Name)]
                if node.type
                else ["everything"]
            )
            for name in {"Exception", "BaseException", "everything"} & set(caught):
                yield node.lineno, f"catches {name}; only {' and '.join(sorted(CATCH_ALL_MODULES))} may"
        if isinstance(node, ast.Call) and call_name(node).endswith("suppress"):
            for argument in node.args:
                if ast.unparse(argument) in ("Exception", "BaseException"):
                    yield node.lineno, f"suppresses {ast.unparse(argument)}"


def runs_nothing_that_it_read(module: Module) -> Violations:
    for imported in imports(module):
        if imported.name in UNSAFE_IMPORTS | UNPICKLING:
            yield imported.line, f"imports {imported.name}: what it reads can run code"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            name = call_name(node)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN_CALLS or (name in UNPICKLING and module.name not in UNPICKLING_MODULES):
                yield node.lineno, f"calls {name}"
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield node.lineno, "calls torch.load without weights_only=True"
            if keywords.get("shell") == "True":
                yield node.lineno, f"calls {name} through a shell"


def has_a_clear_name_and_a_docstring(module: Module) -> Violations:
    for part in module.name.split(".")[-1].split("_"):
        if part in VAGUE_NAMES:
            yield 1, f"is named {module.path.name!r}: say what it is about"
    if not (ast.get_docstring(module.tree) or "").strip():
        yield 1, "has no docstring"


RULES: tuple[Rule, ...] = (
    imports_only_what_lies_below,
    loads_no_accelerator_stack,
    is_of_readable_size,
    catches_only_what_it_can_name,
    runs_nothing_that_it_read,
    has_a_clear_name_and_a_docstring,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module(rule: Rule) -> None:
    found = [
        f"{module.path.relative_to(REPOSITORY)}:{line}: {reason}"
        for module in modules()
        for line, reason in rule(module)
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_lists_of_exceptions_hold_nothing_that_needs_none() -> None:
    needing = {
        module.name
        for module in modules()
        if any(found.at_load and found.name.split(".")[0] in SLOW_IMPORTS for found in imports(module))
    }
    assert not STACK_MODULES - needing, f"no longer import the stack as they load: {sorted(STACK_MODULES - needing)}"


def test_tools_start_without_the_accelerator_stack() -> None:
    tools = [
        "rl.cli",
        "rl.config",
        "rl.report.run",
        "rl.types",
        "rl.view.server",
        "rewards.answer",
        "rewards.config",
        "rollouts.tasks",
    ]
    code = f"import sys, {', '.join(tools)}; print(*sorted({set(SLOW_IMPORTS)!r} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [], f"importing {', '.join(tools)} loads {ran.stdout.strip()}"


def test_no_text_names_a_registry_or_a_folder_of_one_machine() -> None:
    paths = {path for pattern in TEXT_FILES for path in REPOSITORY.glob(pattern) if path.suffix in TEXT_SUFFIXES}
    paths = {path for path in paths if path.is_file() and "__pycache__" not in path.parts} - {Path(__file__)}
    assert len(paths) > 20
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for path in sorted(paths)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if any(host in line for host in HOSTS) or MACHINE_PATH.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


# Every rule finds what it is for.

BROKEN: list[tuple[Rule, str, str, int]] = [
    (imports_only_what_lies_below, "rewards/a.py", "import rollouts.tasks", 1),
    (imports_only_what_lies_below, "rewards/a.py", "from rl import config", 1),
    (imports_only_what_lies_below, "policies/a.py", "def f():\n    from rewards.answer import check_key", 2),
    (imports_only_what_lies_below, "entities/a.py", "from rollouts import tasks", 1),
    (imports_only_what_lies_below, "rl/types.py", "from rl.config import RunConfig", 1),
    (imports_only_what_lies_below, "rollouts/tools/a.py", "from ...rewards import answer", 1),
    (loads_no_accelerator_stack, "rl/a.py", "import torch.nn as nn", 1),
    (loads_no_accelerator_stack, "rl/a.py", "try:\n    from vllm import LLM\nexcept ImportError:\n    pass", 2),
    (loads_no_accelerator_stack, "rl/a.py", "class A:\n    import ray", 2),
    (loads_no_accelerator_stack, "rl/a.py", "from rl.loss import policy_loss", 1),
    (loads_no_accelerator_stack, "policies/a.py", "from policies import packing", 1),
    (is_of_readable_size, "rl/a.py", "def f():\n" + "    x = 1\n" * 60, 1),
    (is_of_readable_size, "rl/a.py", "x = 1\n" * 401, 401),
    (catches_only_what_it_can_name, "rl/a.py", "try:\n    x\nexcept (OSError, Exception):\n    pass", 3),
    (catches_only_what_it_can_name, "rl/a.py", "try:\n    x\nexcept:\n    pass", 3),
    (catches_only_what_it_can_name, "rl/a.py", "with contextlib.suppress(Exception):\n    x", 1),
    (runs_nothing_that_it_read, "rl/a.py", "x = eval(text)", 1),
    (runs_nothing_that_it_read, "rl/a.py", "def f():\n    from pickle import loads", 2),
    (runs_nothing_that_it_read, "rl/a.py", "import pickle\nx = pickle.loads(text)", 2),
    (runs_nothing_that_it_read, "rl/a.py", "import dill", 1),
    (runs_nothing_that_it_read, "rl/a.py", "torch.load(path)", 1),
    (runs_nothing_that_it_read, "rl/a.py", "subprocess.run(command, shell=True)", 1),
    (has_a_clear_name_and_a_docstring, "rl/a.py", "x = 1", 1),
    (has_a_clear_name_and_a_docstring, "rl/text_utils.py", '"""Text."""', 1),
]


@pytest.mark.parametrize(("rule", "path", "text", "line"), BROKEN)
def test_a_rule_finds_the_line_that_breaks_it(tmp_path: Path, rule: Rule, path: str, text: str, line: int) -> None:
    assert line in [number for number, _ in rule(_written(tmp_path, path, text))]


SOUND = '''"""A module as it should be."""
from __future__ import annotations
from typing import TYPE_CHECKING
from rl.types import Task
from entities import tree
from rollouts.prompts import chat_messages
if TYPE_CHECKING:
    import torch

def load(path: str) -> object:
    import torch
    from rollouts.weight_transfer import BACKEND
    try:
        return torch.load(path, weights_only=True).eval()
    except (OSError, ValueError):
        return None
'''


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_objects_to_a_sound_module(tmp_path: Path, rule: Rule) -> None:
    assert list(rule(_written(tmp_path, "rollouts/sound.py", SOUND))) == []


def _written(root: Path, path: str, text: str) -> Module:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return parse(file, root=root)
