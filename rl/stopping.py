"""A run that is asked to stop does so at the first safe moment."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):
    """The user asked the run to stop; what was done up to the last whole step is kept."""


async def unless_stopped(work: Any, stop: asyncio.Event) -> Any:
    """Await ``work``, but give it up and raise Interrupted as soon as ``stop`` is set."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Interrupted
        return task.result()
    finally:
        stopped.cancel()
        task.cancel()


@contextlib.contextmanager
def stopping_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets ``stop``, so that the run saves and ends; a second one ends it at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def request_stop() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, request_stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
