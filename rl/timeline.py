"""When each phase of each step ran, and on which worker: ``timeline.jsonl``; it shows what waited for what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from rl.metrics import keep_steps_before, whole_lines

Phase = Literal["generate", "score", "forward", "update", "publish", "evaluate", "checkpoint", "log"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(slots=True, kw_only=True)
class Span:
    """Part of a step: seconds since the epoch, so that the parts of a resumed run keep their distance.

    ``worker`` numbers the rollout worker that a generation ran on, -1 where that says nothing.
    """

    phase: Phase
    began_s: float
    ended_s: float
    worker: int = -1

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s

    def after(self, moment_s: float) -> float:
        """Seconds of it that lie after a moment."""
        return max(0.0, self.ended_s - max(self.began_s, moment_s))


class Timeline:
    """A run's ``timeline.jsonl``: one line per span, flushed at once.

    ``resume_at`` is the first step that will be recorded again: lines from it on are cut. Steps may overlap.
    """

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        if resume_at is not None:
            keep_steps_before(resume_at, path)
        self._file = path.open("a", encoding="utf-8")

    def record(self, step: int, spans: Sequence[Span]) -> None:
        for span in spans:
            self._file.write(json.dumps({"step": step} | asdict(span)) + "\n")
        self._file.flush()

    @contextmanager
    def during(self, phase: Phase, step: int) -> Iterator[Span]:
        """Record what runs inside, unless it fails; the span that is yielded has its end afterwards."""
        span = Span(phase=phase, began_s=time.time(), ended_s=float("nan"))
        yield span
        span.ended_s = time.time()
        self.record(step, [span])

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_timeline(path: Path) -> dict[int, list[Span]]:
    """The spans of each step, in order of steps; a last line that a crash cut is left out. Empty without the file."""
    steps: dict[int, list[Span]] = {}
    for line in whole_lines(path):
        record = json.loads(line)
        steps.setdefault(record.pop("step"), []).append(Span(**record))
    return {step: steps[step] for step in sorted(steps)}
