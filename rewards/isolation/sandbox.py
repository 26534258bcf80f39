"""Runs one foreign scorer in processes of its own, so that a hang or a crash costs one score and nothing else."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rewards.isolation.attempt import Attempt, failed
from rewards.isolation.nursery import FORK, MAX_REPLY_BYTES, REAP, REQUEST, UNKNOWN_STATUS, receive_frame, send_frame
from rewards.scorer import Scorer, Trajectory

STRAGGLER_S = 0.05
"""A score may compute for so long in any case, however fast the others are, before it counts as a straggler."""
FIRST_LOOK_S = 0.002
"""When a score is first looked at; one that only waits, as for a judge elsewhere, gives its slot to the next."""
LAST_LOOK_S = 0.01
"""Between two looks at a score whose deadline is all but over."""
SLOT_SHARE = 0.05
"""The share of its deadline for which a score may hold its slot, divided by how many go on outside of theirs: of n
slots, 16 hung scores hold the others up for (1 + 1/2 + … + 1/16) * 0.05 / n = 0.17 / n of a deadline."""
IDLE_PER_SLOT = 8
MAX_PROCESSES = 64
START_TIMEOUT_S = 120.0
MAX_STARTS = 3
POLL_S = 0.1
_DIED = "the scorer's process died"
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from rewards.isolation.nursery import main; main(int(sys.argv[2]))"
)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Sandbox:
    """Scores with one scorer, each score in a worker process that is replaced when it fails.

    As many scores as ``slots`` begin to compute at once. One that waits, or that takes long, leaves its slot and goes
    on beside the others, so that hung ones, up to ``max_processes``, hold nobody up. The deadline stands still while a
    score waits for a processor, so that a busy machine costs nobody its score; a straggler, which has computed for much
    longer than others did, loses this grace and its priority. A worker that uses more than ``max_memory_mb`` is ended.
    Safe to use from several event loops.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        slots: int | None = None,
        max_processes: int = MAX_PROCESSES,
        max_memory_mb: float = 4096.0,
    ) -> None:
        self._pickled = pickle.dumps(scorer)
        self._max_memory_mb = max_memory_mb
        slots = slots or os.cpu_count() or 1
        self._keep_idle = min(max_processes, IDLE_PER_SLOT * slots)
        self._slots = _Slots(slots)
        self._threads = ThreadPoolExecutor(max_processes, thread_name_prefix="sandbox")
        self._lock = threading.Lock()  # of everything below
        self._nursery: _Nursery | None = None
        self._idle: list[_Worker] = []
        self._starts = 0
        self._closed_because = ""
        self._cpu_s: deque[float] = deque(maxlen=64)

    async def score(self, trajectory: Trajectory, *, timeout_s: float) -> tuple[Attempt, float]:
        """The outcome, and the seconds that it took. The deadline runs from when a worker has the trajectory."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._score, trajectory, timeout_s)

    def close(self) -> None:
        """End all processes. Scores that are under way fail."""
        with self._lock:
            self._closed_because = self._closed_because or "the reward service is closed"
            self._forget_nursery()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _score(self, trajectory: Trajectory, timeout_s: float) -> tuple[Attempt, float]:
        with _Slot(self._slots) as slot:
            question = _Question(
                frame=pickle.dumps(trajectory),
                timeout_s=timeout_s,
                patience_s=self._patience_s,
                max_memory_mb=self._max_memory_mb,
            )
            while True:
                try:
                    worker = self._take_worker()
                except _NoWorker as error:
                    return failed(str(error)), 0.0
                began = time.monotonic()
                reply = worker.ask(question, slot)
                duration_s = time.monotonic() - began
                if isinstance(reply, bytes):
                    self._give_back(worker)
                    return Attempt.from_json(reply), duration_s
                fault = self._end(worker, reply)
                if reply != _DIED or not worker.used:
                    return failed(fault), duration_s
                # What an earlier score left behind in this process may have ended it: ask a fresh one.

    def _patience_s(self) -> float:
        """How much processor time makes a score a straggler: none does until it is known what others took."""
        cpu_s = list(self._cpu_s)
        return max(STRAGGLER_S, 8 * statistics.median(cpu_s)) if len(cpu_s) >= 8 else math.inf

    def _take_worker(self) -> _Worker:
        with self._lock:
            while not self._closed_because:
                if self._idle:
                    return self._idle.pop()
                try:
                    if self._nursery is None:
                        self._starts += 1
                        self._nursery = _Nursery(self._pickled)
                    return self._nursery.fork()
                except (OSError, _NoWorker) as error:
                    self._forget_nursery()
                    if isinstance(error, _NoWorker) or self._starts >= MAX_STARTS:
                        self._closed_because = f"no process for the scorer: {error}"
            raise _NoWorker(self._closed_because)

    def _give_back(self, worker: _Worker) -> None:
        _, cpu_s = _state_and_cpu_s(worker.pid)
        taken_s, worker.cpu_s = cpu_s - worker.cpu_s, cpu_s
        worn_out = worker.demoted or _memory_mb(worker.pid) > self._max_memory_mb
        worker.used = True
        with self._lock:
            self._starts = 0
            self._cpu_s.append(taken_s)
            if not worn_out and len(self._idle) < self._keep_idle and not self._closed_because:
                self._idle.append(worker)
                return
        self._end(worker, "")

    def _end(self, worker: _Worker, fault: str) -> str:
        """End a worker for good and say what was wrong with it."""
        worker.kill()
        with self._lock:
            status = self._nursery.reap(worker.pid) if self._nursery else UNKNOWN_STATUS
        if fault != _DIED or status == UNKNOWN_STATUS:
            return fault
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return f"the scorer's process {how}"

    def _forget_nursery(self) -> None:
        for worker in self._idle:
            worker.kill()
        if self._nursery:
            self._nursery.close()
        self._nursery, self._idle = None, []


class _NoWorker(Exception):
    """There is no process to score in, and there will be none."""


class _Slots:
    """The places for those that compute, and how many go on ``beside`` them."""

    def __init__(self, count: int) -> None:
        self.free = threading.Semaphore(count)
        self.beside = 0
        self.lock = threading.Lock()


class _Slot:
    """A place among those that compute, left early by whoever turns out to be slow."""

    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self._held = False

    def __enter__(self) -> _Slot:
        self._slots.free.acquire()
        self._held = True
        return self

    def __exit__(self, *_: object) -> None:
        if not self._held:
            self._count_beside(-1)
        else:
            self._slots.free.release()

    def share_of(self, timeout_s: float) -> float:
        """For how long the slot may be held, in seconds of the clock."""
        return SLOT_SHARE * timeout_s / (1 + self._slots.beside)

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._count_beside(+1)
            self._slots.free.release()

    def _count_beside(self, change: int) -> None:
        with self._slots.lock:
            self._slots.beside += change


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A pickled trajectory, and what its score may cost."""

    frame: bytes
    timeout_s: float
    patience_s: Callable[[], float]
    max_memory_mb: float


@dataclass(slots=True)
class _Worker:
    """One forked process and the socket to it.

    ``used``: it has scored before, for ``cpu_s`` seconds of a processor; ``demoted``: it has lost its priority, and
    cannot get it back.
    """

    pid: int
    connection: socket.socket
    used: bool = False
    cpu_s: float = 0.0
    demoted: bool = False

    def ask(self, question: _Question, slot: _Slot) -> bytes | str:
        """The reply, or what went wrong."""
        began = looked = time.monotonic()
        spent_s, pause_s, cpu_before_s = 0.0, FIRST_LOOK_S, self.cpu_s
        try:
            self.connection.settimeout(question.timeout_s)
            send_frame(self.connection, question.frame)
            while not self._has_replied(within_s=pause_s):
                state, cpu_s = _state_and_cpu_s(self.pid)
                since_s, looked = time.monotonic() - looked, time.monotonic()
                spent_s += min(since_s, cpu_s - cpu_before_s) if state == "R" else since_s
                cpu_before_s = cpu_s
                left_s = question.timeout_s - (looked - began if self.demoted else spent_s)
                if left_s <= 0:
                    return f"no score within {question.timeout_s:g} s"
                if state == "Z" and not self._has_replied(within_s=0.0):
                    return _DIED  # and what it has forked holds the socket open
                if _memory_mb(self.pid) > question.max_memory_mb:
                    return f"the scorer's process used more than {question.max_memory_mb:g} MB"
                if state == "R" and cpu_s - self.cpu_s > question.patience_s():
                    self._demote()
                if state != "R" or self.demoted or looked - began > slot.share_of(question.timeout_s):
                    slot.leave()
                pause_s = min(2 * pause_s, POLL_S, max(left_s, LAST_LOOK_S))
            return receive_frame(self.connection, max_bytes=MAX_REPLY_BYTES) or _DIED
        except TimeoutError:
            return f"no score within {question.timeout_s:g} s"
        except ValueError as error:
            return f"the scorer's process sent {error}"
        except OSError:
            return _DIED

    def _has_replied(self, *, within_s: float) -> bool:
        poll = select.poll()  # select() knows no descriptor above 1023, of which a busy service has many
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(1000 * within_s))

    def _demote(self) -> None:
        if not self.demoted:
            self.demoted = True
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.pid, 19)

    def kill(self) -> None:
        """End the process and what it has forked."""
        self.connection.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class _Nursery:
    """This side of the process of `rewards.isolation.nursery`. Not thread-safe. Raises _NoWorker or OSError."""

    def __init__(self, pickled_scorer: bytes) -> None:
        self._control, theirs = socket.socketpair()
        single_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a fork copies one thread alone
        with theirs, tempfile.TemporaryFile() as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=[theirs.fileno()],
                env=os.environ | single_thread,
                start_new_session=True,  # an interrupt at the terminal is the run's to handle
            )
            theirs.close()
            self._load(pickled_scorer, complaints)

    def _load(self, pickled_scorer: bytes, complaints: object) -> None:
        self._control.settimeout(START_TIMEOUT_S)
        try:
            send_frame(self._control, pickled_scorer)
            reply = receive_frame(self._control)
        except TimeoutError:
            self.close()
            raise _NoWorker(f"it was not loaded within {START_TIMEOUT_S:g} s") from None
        except OSError:
            reply = None
        if reply is None:
            self.close()
            complaints.seek(0)  # type: ignore[attr-defined]
            lines = complaints.read()[-4000:].decode(errors="replace").strip().splitlines()  # type: ignore[attr-defined]
            raise _NoWorker(f"it cannot be loaded: {lines[-1] if lines else 'its process died'}")

    def fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [REQUEST.pack(FORK, 0)], [theirs.fileno()])
            return _Worker(self._answer(), ours)
        except OSError:
            ours.close()
            raise

    def reap(self, pid: int) -> int:
        """The exit status of a worker that has ended or was killed."""
        try:
            self._control.sendall(REQUEST.pack(REAP, pid))
            return self._answer()
        except OSError:
            return UNKNOWN_STATUS

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> int:
        reply = receive_frame(self._control)
        if reply is None:
            raise ConnectionError("its process died")
        (number,) = struct.unpack("!i", reply)
        return int(number)


def _memory_mb(pid: int) -> float:
    """Resident memory of a process; 0 where the system does not say."""
    pages = _stat(pid, "statm").split()
    return int(pages[1]) * _PAGE_BYTES / 2**20 if len(pages) > 1 else 0.0


def _state_and_cpu_s(pid: int) -> tuple[str, float]:
    """R for a process that computes or would, Z for one that has ended; and the seconds that it has computed."""
    fields = _stat(pid, "stat").rpartition(")")[2].split()
    return (fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S) if len(fields) > 12 else ("", 0.0)


def _stat(pid: int, name: str) -> str:
    """What Linux says of a process; empty on other systems, and once it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
