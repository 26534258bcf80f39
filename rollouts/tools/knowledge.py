"""Looking things up in texts of the user's own, ranked by BM25; nothing leaves the machine."""

from __future__ import annotations

import functools
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.errors import ConfigError
from rollouts.tools.tool import Scene, Tool, ToolRefusal, ToolResult

_WORD = re.compile(r"\w+")
MAX_WORDS = 64


@dataclass(frozen=True, kw_only=True)
class LookUp(Tool):
    """Finds passages in a JSONL file, a line each: ``{"title": …, "text": …}``."""

    description = "Look something up in the reference texts; the passages that fit best are told."
    parameters = {  # noqa: RUF012 - shared by all, changed by none
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 1000}},
        "required": ["query"],
        "additionalProperties": False,
    }

    path: Path
    passages: int = 3
    """How many are told at most."""

    def __post_init__(self) -> None:
        if not 1 <= self.passages <= 20:
            raise ValueError(f"passages must be in [1, 20]; got {self.passages}")

    def prepare(self) -> None:
        _index(self.path)

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        words = list(dict.fromkeys(_WORD.findall(arguments["query"])))[:MAX_WORDS]
        # Each word quoted: to SQLite it is then a word to look for, and no operator.
        query = " OR ".join(f'"{word}"' for word in words)
        found = (
            _index(self.path).execute(
                "select title, text from passage where passage match ? order by rank, rowid limit ?",
                (query, self.passages),
            )
            if words
            else ()
        )
        told = [f"{title}\n{text}" for title, text in found]
        if not told:
            raise ToolRefusal(f"nothing was found about {arguments['query']!r}")
        return ToolResult(text="\n\n".join(told))


@functools.cache
def _index(path: Path) -> sqlite3.Connection:
    """SQLite's full-text index over the passages, in memory. Raises ConfigError for a file that is none of passages."""
    index = sqlite3.connect(":memory:", check_same_thread=False)
    index.execute("create virtual table passage using fts5(title, text, tokenize='porter unicode61')")
    index.executemany("insert into passage values (?, ?)", _passages(path))
    return index


def _passages(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _passage(line, where=f"{path}:{number}")


def _passage(line: str, *, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("title", "text")):
        raise ConfigError(f'{where} must be {{"title": …, "text": …}} with two texts; got {line[:80]!r}')
    return row["title"], row["text"]
