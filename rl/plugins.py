"""Code that a config names: where its modules are looked for, what their import may raise, and its parameters.

    use: my_hospital.scorers:RedFlags      # a built-in name, an entry point, or module.path:Class

Modules are found as ``python -m`` would find them: installed ones first, then those in the config's folder and in the
working folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, Union

from rl.errors import ConfigError

Base = TypeVar("Base")


def resolve_class(
    use: str,
    base: type[Base],
    *,
    noun: str,
    built_in: Mapping[str, str],
    entry_points: str,
    base_dir: str | Path = ".",
    where: str,
) -> type[Base]:
    """The dataclass of a built-in name, of an entry point of that group or of ``module.path:Class``, below ``base``.

    ``noun`` is what messages call it. Raises ConfigError.
    """
    path = built_in.get(use, use)
    if ":" not in path:
        points = {point.name: point.value for point in importlib.metadata.entry_points(group=entry_points)}
        if path not in points:
            names = sorted({*built_in, *points})
            raise ConfigError(
                f"{where}: no {noun} is called {path!r}; known: {', '.join(names)}, or module.path:Class."
                + suggestion(path, names)
            )
        path = points[path]
    module_name, _, class_name = path.partition(":")
    make_importable(import_folders(base_dir))
    module = import_module(module_name, where=where)
    cls = getattr(module, class_name, None)
    fitting = {name: value for name, value in vars(module).items() if _is_below(base, value)}
    if cls is None:
        own = [name for name, value in fitting.items() if value.__module__ == module_name]
        raise ConfigError(
            f"{where}: the module {module_name} has no {class_name!r}; its {noun}s: {', '.join(own) or 'none'}."
            + suggestion(class_name, own)
        )
    if not _is_below(base, cls):
        raise ConfigError(f"{where}: {path} is {cls!r}, not a subclass of {base.__module__}.{base.__name__}")
    if "__dataclass_fields__" not in vars(cls):  # dataclasses.is_dataclass would be content with a base class
        raise ConfigError(f"{where}: {path} must be decorated with @dataclass(frozen=True, kw_only=True)")
    return typing.cast(type[Base], cls)


def _is_below(base: type, value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def import_module(name: str, *, where: str) -> Any:
    """Import a module that a config names. Raises ConfigError for one that is not there or cannot be imported."""
    with Importing(f"the module {name}", where=where):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                raise ConfigError(
                    f"{where}: there is no module {error.name!r}; looked for in the installed packages, in "
                    f"the config's folder and in {os.getcwd()}"
                ) from error
            raise ConfigError(f"{where}: the module {name} needs {error.name!r}, which is not installed") from error


class Importing(AbstractContextManager[None]):
    """Turns whatever foreign code raises while it is imported, errors of its own classes included, into ConfigError."""

    def __init__(self, what: str, *, where: str) -> None:
        self._what, self._where = what, where

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, Exception | SystemExit) and not isinstance(error, ConfigError):
            said = f"cannot be imported: {type(error).__name__}: {error}"
            raise ConfigError(f"{self._where}: {self._what} {said}") from error


def import_folders(base_dir: str | Path) -> tuple[str, ...]:
    """Where a module that a config names may lie, besides the installed packages."""
    return (str(Path(base_dir).resolve()), os.getcwd())


def make_importable(folders: Iterable[str]) -> None:
    """Have modules in these folders found, after the installed ones."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def suggestion(word: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest allowed word, or nothing."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def plain(value: Any) -> Any:
    """Mappings and sequences of any kind (OmegaConf's among them) as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def fit_parameters(cls: type, values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Check and convert keyword arguments for a dataclass.

    Numbers widen (int to float), lists become tuples and strings become paths where the annotation says so; nothing
    else is converted. Raises ConfigError for an unknown, a missing and a wrongly typed parameter, naming it as
    ``where.parameter``.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in values:
        if name not in fields:
            allowed = ", ".join(fields) or "none"
            raise ConfigError(
                f"{where}.{name}: {cls.__name__} has no such parameter; allowed: {allowed}." + suggestion(name, fields)
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}.{name}: {cls.__name__} needs this parameter and it is missing")
    annotations = _annotations(cls, where=where)
    return {name: _fit(value, annotations[name], where=f"{where}.{name}") for name, value in values.items()}


def _annotations(cls: type, *, where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: the annotations of {cls.__qualname__} cannot be resolved: {error}") from error


def _fit(value: Any, annotation: Any, *, where: str) -> Any:
    """The value as the annotation wants it. An annotation that is not known here takes any value."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _fit_union(value, typing.get_args(annotation), where=where)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            allowed = ", ".join(map(repr, choices))
            raise ConfigError(f"{where} must be one of {allowed}; got {value!r}." + suggestion(str(value), choices))
        return value
    if origin in _SEQUENCES:
        return _fit_sequence(value, annotation, origin, where=where)
    if origin in (dict, Mapping):
        return _fit_mapping(value, typing.get_args(annotation), where=where)
    return _fit_scalar(value, annotation, where=where)


_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)


def _fit_scalar(value: Any, annotation: Any, *, where: str) -> Any:
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    known = (str, int, float, bool, list, dict, tuple, Path, type(None))
    if annotation in known and (
        not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool)
    ):
        raise ConfigError(f"{where} must be {_name(annotation)}; got {value!r} ({_name(type(value))})")
    return value


def _fit_sequence(value: Any, annotation: Any, origin: Any, *, where: str) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ConfigError(f"{where} must be a list; got {value!r} ({_name(type(value))})")
    arguments = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    if origin is tuple and len(arguments) > 1 and len(arguments) != len(value):
        raise ConfigError(f"{where} must have {len(arguments)} items; got {len(value)}")
    items = [
        _fit(item, arguments[index % len(arguments)], where=f"{where}[{index}]") for index, item in enumerate(value)
    ]
    build = origin if origin in (list, tuple, set, frozenset) else list
    return build(items)


def _fit_mapping(value: Any, arguments: tuple[Any, ...], *, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping; got {value!r} ({_name(type(value))})")
    of_key, of_item = arguments
    return {
        _fit(key, of_key, where=f"{where}: the key {key!r}"): _fit(item, of_item, where=f"{where}.{key}")
        for key, item in value.items()
    }


def _fit_union(value: Any, members: tuple[Any, ...], *, where: str) -> Any:
    """The first member that the value fits without conversion, else the first that it fits."""
    exact = [member for member in members if isinstance(member, type) and type(value) is member]
    for member in (*exact, *members):
        try:
            return _fit(value, member, where=where)
        except ConfigError:
            continue
    raise ConfigError(f"{where} must be {' or '.join(map(_name, members))}; got {value!r} ({_name(type(value))})")


def _name(annotation: Any) -> str:
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    names |= {dict: "a mapping", list: "a list", tuple: "a list", Path: "a path"}
    return names.get(annotation, str(getattr(annotation, "__name__", annotation)))
