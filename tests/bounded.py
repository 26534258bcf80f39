"""What hostile text may cost: many times what it takes on an idle core, so that only another exponent meets the bound,
never a busy machine. How fast it is read is the benchmarks' to say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

BOUND_S = 10.0
"""Processor seconds of one thread. Nothing that is tried takes half a second."""


@contextmanager
def bounded_work() -> Iterator[None]:
    """Fails if what is done inside, in this thread, takes more than ``BOUND_S``."""
    began = time.thread_time()
    yield
    spent_s = time.thread_time() - began
    assert spent_s < BOUND_S, f"took {spent_s:.1f} s of processor time"
