"""YAML whose keys are known by their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rl.errors import ConfigError

MAX_NODES = 200_000
_KEY = re.compile(r"\brewards((?:\.[\w-]+)+)")


def read_yaml(file: Path, *, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and its nodes, which know their lines; None where it is empty. JSON is YAML, too.

    Raises ConfigError with ``file:line`` for what is no YAML, for a key that stands twice, of which YAML would drop the
    first, and for aliases (``*name``) that contain themselves or make the file far larger than it is.
    """
    try:
        text = file.read_text(encoding="utf-8").expandtabs()  # a tab that JSON allows between tokens YAML does not
        root = yaml.compose(text, loader)
        if root is not None:
            _check_nodes(file, root)
        content = yaml.load(text, loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{file} is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{file}{f':{mark.line + 1}' if mark else ''} is not valid YAML: {problem}") from error
    return content, root


def _check_nodes(file: Path, root: yaml.Node) -> None:
    """Raise ConfigError for a key that stands twice, an alias inside of what it stands for, and too many values."""
    inside: set[int] = set()
    count = 0

    def visit(node: yaml.Node) -> None:
        nonlocal count
        count += 1
        place = f"{file}:{node.start_mark.line + 1}"
        if count > MAX_NODES:
            raise ConfigError(f"{file} holds more than {MAX_NODES} values, each alias counted as what it stands for")
        if id(node) in inside:
            raise ConfigError(f"{place}: an alias (`*name`) stands inside of what it stands for")
        inside.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(file, node)
        for child in _children(node):
            visit(child)
        inside.remove(id(node))

    visit(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refuse_repeated_keys(file: Path, mapping: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{file}:{key.start_mark.line + 1}: a key must be a word, not a list or a mapping")
        if key.value in seen:
            raise ConfigError(f"{file}:{key.start_mark.line + 1}: the key {key.value!r} stands here twice")
        seen.add(key.value)


def line_of(root: yaml.Node | None, at: Sequence[str | int]) -> int:
    """The line, from 1, of the node that a path of keys and indices leads to, or of the last one on the way."""
    node, line = root, 1 if root is None else root.start_mark.line + 1
    for part in at:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def place_in_rewards(file: Path, text: str) -> str | None:
    """``file:line`` of the first key (``rewards.scorers.form.path``) that a text names; None where it names none.

    The file is bare, or has the section under ``rewards``.
    """
    named = _KEY.search(text)
    if named is None:
        return None
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return str(file)
    keys = named[1].strip(".").split(".")
    under = isinstance(root, yaml.MappingNode) and any(key.value == "rewards" for key, _ in root.value)
    return f"{file}:{line_of(root, ['rewards', *keys] if under else keys)}"


@contextmanager
def lines_named(file: Path) -> Iterator[None]:
    """Put the place of the key that a ConfigError is about, or the file alone, in front of its message."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(str(file)):
            raise
        raise ConfigError(f"{place_in_rewards(file, str(error)) or file}: {error}") from error
