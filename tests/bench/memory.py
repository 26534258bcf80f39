"""How much memory a process has had at most, by the kernel's own book."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mb() -> float:
    """The most that this process has held since it began, or since `reset_peak`."""
    return _field("VmHWM")


def reset_peak() -> float:
    """Begin to watch for the peak anew; what is held now, in MB.

    What is free goes back to the kernel first: what is taken anew from a heap that was kept would not be seen.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")
    return _field("VmRSS")


def _field(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024
