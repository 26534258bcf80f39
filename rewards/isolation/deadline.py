"""The time that counts against a deadline: what a score takes itself, not what it waits behind others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

_scoring: ContextVar[Clock | None] = ContextVar("scoring", default=None)


class Clock:
    """Stands at 0 until it is started, and stands still again while anything of what it times waits for its turn."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        self._running_since: float | None = None
        self._started = False
        self._waiting = 0

    @property
    def elapsed_s(self) -> float:
        running_s = 0.0 if self._running_since is None else time.monotonic() - self._running_since
        return self._elapsed_s + running_s

    @property
    def stands_still(self) -> bool:
        return self._running_since is None

    def start(self) -> None:
        self._started = True
        self._go_on()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self._elapsed_s, self._running_since = self.elapsed_s, None
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._go_on()

    def time_this_task(self) -> None:
        """Have `in_queue` stop this clock, in this asyncio task and those that it starts."""
        _scoring.set(self)

    def _go_on(self) -> None:
        if self._started and not self._waiting:
            self._running_since = time.monotonic()


@contextmanager
def in_queue(*clocks: Clock) -> Iterator[None]:
    """Wait for a turn: the clock of the score that this is done for stands still, and so do ``clocks``.

    Whatever is waited for must come to an end of itself, since no deadline ends it.
    """
    scoring = _scoring.get()
    with ExitStack() as stack:
        for clock in (*clocks, *((scoring,) if scoring else ())):
            stack.enter_context(clock.stopped())
        yield
