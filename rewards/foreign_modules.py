"""Code that a config names: where its modules are looked for, and what their import may raise."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from rl.errors import ConfigError


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
