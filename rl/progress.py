"""Progress of long work as plain lines, the same on a terminal and in a log file."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

_WINDOW = 20  # lines that the time left is judged by: long enough to even out, short enough to follow a change

_SHOWN = (
    ("loss/supervised", "loss {:.3f}"),
    ("reward/mean", "reward {:.2f}"),
    ("accuracy/train", "accuracy {:.2f}"),
    ("eval/reward", "held-out reward {:.2f}"),
    ("eval/accuracy", "held-out accuracy {:.2f}"),
    ("throughput/tokens_per_s", "{:,.0f} tokens/s"),
)


class Progress:
    """Prints ``step 12/80  reward 0.61  accuracy 0.70  1,830 tokens/s  left 3:12`` as work goes on.

    ``done`` is what a resumed run starts with. At most one line is printed in ``every_s`` seconds, except for the last,
    however often there is an update. Lines go to ``stream``, standard error by default; nothing is ever overwritten.
    """

    def __init__(
        self,
        total: int,
        *,
        noun: str = "step",
        done: int = 0,
        every_s: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._noun = noun
        self._every_s = every_s
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._printed_at = clock()
        self._marks = deque([(self._printed_at, done)], maxlen=_WINDOW + 1)

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Say that ``done`` of the total are done; of ``values``, by metric name, the telling ones are shown."""
        now = self._clock()
        if done < self._total and now - self._printed_at < self._every_s:
            return
        self._printed_at = now
        self._marks.append((now, done))
        numbers = [form.format(values[name]) for name, form in _SHOWN if values and name in values]
        ending = f"left {duration(left)}" if (left := self._left_s()) is not None else ""
        parts = [f"{self._noun} {done:,}/{self._total:,}", *numbers, ending]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """Say something that deserves a look, at once."""
        print(f"warning: {text}", file=self._stream, flush=True)

    def _left_s(self) -> float | None:
        (began, done_then), (now, done) = self._marks[0], self._marks[-1]
        if done <= done_then:
            return None
        return (self._total - done) * (now - began) / (done - done_then)


def say(line: str) -> None:
    """One line on standard error, at once: results alone go to standard output."""
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``3:12`` or ``1:02:45``."""
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_s:02}" if hours else f"{minutes}:{whole_s:02}"
