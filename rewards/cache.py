"""What was made before, scores and judges' verdicts: in memory, and in a file where asked for."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rewards.isolation.attempt import Attempt
from rl.errors import ConfigError

MAX_IN_MEMORY = 16_384
_BUSY_TIMEOUT_S = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    maker TEXT NOT NULL, inputs TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (maker, inputs)
) WITHOUT ROWID
"""
_FIND = "SELECT content FROM kept WHERE maker = ? AND inputs = ?"
_KEEP = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?)"

Key = tuple[str, str]
"""What made it (a scorer's version, a judge's model), and a hash of what that was given."""


class ScoreCache:
    """Outcomes of deterministic scorers, never a failed one: what was broken is asked for again.

    What is read from ``path`` is checked like any scorer's reply; a damaged entry counts as none.
    """

    def __init__(self, path: str | Path | None = None, *, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._contents = ContentCache(path, where="rewards.cache", max_in_memory=max_in_memory)
        self.hits = self.misses = 0

    def get(self, key: Key) -> Attempt | None:
        content = self._contents.get(key)
        found = Attempt.from_json(content) if content is not None else None
        if found is not None and found.outcome == "failed":
            found = None
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, key: Key, attempt: Attempt) -> None:
        """Keep an outcome, unless it is a failure."""
        if attempt.outcome != "failed":
            self._contents.put(key, attempt.to_json())

    def close(self) -> None:
        self._contents.close()


class ContentCache:
    """The last ``max_in_memory`` contents, and behind them all those in ``path``, which several processes may share.

    Raises ConfigError, naming the key ``where``, where ``path`` cannot be used. Nothing in the file is trusted: whoever
    reads it checks it. Writing is left to a thread; `close` waits for it.
    """

    def __init__(self, path: str | Path | None = None, *, where: str, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._recent: OrderedDict[Key, bytes] = OrderedDict()
        self._max_in_memory = max_in_memory
        self._lock = threading.Lock()
        self._file = _File(Path(path), where=where) if path else None

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            found = self._recent.get(key)
            if found is not None:
                self._recent.move_to_end(key)
        if found is None and self._file:
            found = self._file.get(key)
            if found is not None:
                self._remember(key, found)
        return found

    def put(self, key: Key, content: bytes) -> None:
        self._remember(key, content)
        if self._file:
            self._file.put(key, content)

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _remember(self, key: Key, content: bytes) -> None:
        with self._lock:
            self._recent[key] = content
            self._recent.move_to_end(key)
            if len(self._recent) > self._max_in_memory:
                self._recent.popitem(last=False)


class _File:
    """The SQLite file: read in place, written by one thread, so that no score waits for the disk."""

    def __init__(self, path: Path, *, where: str) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reader, self._writer = self._open(), self._open()
            self._writer.execute("PRAGMA journal_mode=WAL")
            self._writer.execute(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{where}: {path} cannot be used as a cache: {error}") from error
        self._reading = threading.Lock()
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self._closed = self._complained = False

    def get(self, key: Key) -> bytes | None:
        try:
            with self._reading:
                row = self._reader.execute(_FIND, key).fetchone()
        except sqlite3.Error as error:
            self._complain(error)
            return None
        return row[0] if row and isinstance(row[0], bytes) else None

    def put(self, key: Key, content: bytes) -> None:
        if not self._closed:
            self._writing.submit(self._write, key, content)

    def close(self) -> None:
        self._closed = True
        self._writing.shutdown(wait=True)
        self._reader.close()
        self._writer.close()

    def _write(self, key: Key, content: bytes) -> None:
        try:
            self._writer.execute(_KEEP, (*key, content))
        except sqlite3.Error as error:
            self._complain(error)

    def _complain(self, error: sqlite3.Error) -> None:
        """A cache that breaks costs time and no score; said once."""
        if not self._complained:
            self._complained = True
            print(f"medrl: the cache {self._path} fails and is done without: {error}", file=sys.stderr)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may cost the last scores, no more
        return connection
