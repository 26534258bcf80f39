"""A training run that kills itself with SIGKILL at a moment of one's choice.

    python -m tests.killing PHASE CALL DELAY_S train CONFIG key=value …

``PHASE`` names a call of the loop (see `PHASES`), ``CALL`` which of these calls in this process, from 1. The kill comes
``DELAY_S`` seconds after that call began, from a thread, wherever the process then is; with ``DELAY_S`` "after" it
comes as soon as the call has returned.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PHASES = {
    "evaluation": "rl.train:evaluate",
    "generation": "rl.train:collect",
    "scoring": "rewards.pool:RewardPool.score",
    "update": "policies.worker:LearnerGroup.update",
    "gathering": "policies.worker:LearnerGroup.weights",
    "publication": "rollouts.pool:RolloutPool.load_weights",
    "log": "rl.step_log:write_step",
    "metrics": "rl.metrics:MetricsLog.record",
    "checkpoint": "rl.train:save_checkpoint",
    "checkpoint shards": "policies.worker:LearnerGroup.save",
    "checkpoint flush": "rl.checkpoint:_flush",
    "final policy": "policies.worker:LearnerGroup.save_policy",
    "report": "rl.launch:write_report",
}


@dataclass(frozen=True)
class Moment:
    """When to die: in which call of a phase, and how long after it began; None is when it has returned."""

    phase: str
    call: int
    delay_s: float | None = 0.0

    @property
    def arguments(self) -> list[str]:
        return [self.phase, str(self.call), "after" if self.delay_s is None else str(self.delay_s)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: Moment) -> None:
    """Wrap the phase's call so that it kills this process."""
    module, _, path = PHASES[moment.phase].partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    setattr(owner, name, _deadly(getattr(owner, name), moment))


def _deadly(call: Callable[..., Any], moment: Moment) -> Callable[..., Any]:
    calls = 0

    def enter() -> bool:
        nonlocal calls
        calls += 1
        if calls == moment.call and moment.delay_s is not None:
            threading.Timer(moment.delay_s, die).start() if moment.delay_s else die()
        return calls == moment.call and moment.delay_s is None

    @functools.wraps(call)
    def plain(*args: Any, **kwargs: Any) -> Any:
        at_end = enter()
        result = call(*args, **kwargs)
        if at_end:
            die()
        return result

    @functools.wraps(call)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        at_end = enter()
        result = await call(*args, **kwargs)
        if at_end:
            die()
        return result

    return coroutine if inspect.iscoroutinefunction(call) else plain


if __name__ == "__main__":
    phase, number, delay, *arguments = sys.argv[1:]
    arm(Moment(phase, int(number), None if delay == "after" else float(delay)))
    from rl.cli import main

    sys.exit(main(arguments))
