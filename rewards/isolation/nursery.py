"""The process in which a foreign scorer lives: it loads the scorer once and forks a worker for whoever asks for one.

A worker is then there in milliseconds, so that one that hung or crashed can be replaced, and others can work beside one
that is slow. Started by `rewards.isolation.sandbox`; imports neither torch nor ray unless the scorer does.

Frames on every socket: eight bytes of length, then the content. On the control socket the sandbox sends the pickled
scorer; then fork requests (with a socket for the new worker, answered with its process id) and reap requests (a process
id, answered with its exit status).
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rewards.isolation.attempt import Attempt
from rl.types import Trajectory

Scoring = Callable[[Trajectory], Coroutine[Any, Any, Attempt]]

REQUEST = struct.Struct("!ci")
FORK, REAP = b"f", b"r"
MAX_FRAME_BYTES = 1 << 28
MAX_REPLY_BYTES = 1 << 24
UNKNOWN_STATUS = -(1 << 16)
_LENGTH = struct.Struct("!Q")
_REAP_TIMEOUT_S = 2.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def send_frame(connection: socket.socket, content: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive_frame(connection: socket.socket, *, max_bytes: int = MAX_FRAME_BYTES) -> bytes | None:
    """The next frame, or None at the end of the stream. Raises ValueError for a frame that is too large."""
    head = _receive(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > max_bytes:
        raise ValueError(f"a frame of {length} bytes; at most {max_bytes} are read")
    return _receive(connection, length)


def _receive(connection: socket.socket, length: int) -> bytes | None:
    content = bytearray()
    while len(content) < length:
        piece = connection.recv(min(1 << 20, length - len(content)))
        if not piece:
            return None
        content += piece
    return bytes(content)


def main(control_fd: int) -> None:
    """Serve until the sandbox closes its end, then end every worker."""
    from rewards.service import attempt  # before any fork, so that no worker has to

    control = socket.socket(fileno=control_fd)
    pickled = receive_frame(control)
    if pickled is None:
        return
    scorer = pickle.loads(pickled)  # imports the scorer's module; what goes wrong is on stderr for the sandbox to read
    scorer.prepare()
    _silence()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a worker leaves behind becomes a child of this process, and is found
    send_frame(control, b"loaded")
    workers: set[int] = set()
    while True:
        request, fds, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if not request:
            break
        operation, pid = REQUEST.unpack(request)
        if operation == FORK:
            pid = _fork_worker(control, fds[0], functools.partial(attempt, scorer))
            workers.add(pid)
            send_frame(control, struct.pack("!i", pid))
        else:
            workers.discard(pid)
            send_frame(control, struct.pack("!i", _reap(pid)))
            _end_orphans(workers)
    for pid in workers:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _reap(pid)
    _end_orphans(set())


def _silence() -> None:
    """What a scorer prints goes nowhere: it could be a gigabyte."""
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _fork_worker(control: socket.socket, fd: int, scoring: Scoring) -> int:
    pid = os.fork()
    if pid == 0:
        control.close()
        _work(socket.socket(fileno=fd), scoring)
    os.close(fd)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # also here, so that the group exists before anyone hears of it
    return pid


def _work(connection: socket.socket, scoring: Scoring) -> NoReturn:
    """Answer one trajectory after the other until the sandbox hangs up. Never returns to the nursery's loop."""
    status = 1
    try:
        with suppress(PermissionError):
            os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also while the scorer hangs
        _go_first()
        with asyncio.Runner() as runner:
            while (frame := receive_frame(connection)) is not None:
                send_frame(connection, runner.run(scoring(pickle.loads(frame))).to_json())
        status = 0
    finally:
        os._exit(status)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where there is such a thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _go_first() -> None:
    """Where memory runs out before a leak is noticed, Linux ends this process and not one that has done no harm."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_orphans(workers: set[int]) -> None:
    """End what workers that are gone have left behind outside of their process group, a daemon for instance."""
    while orphans := _children() - workers:
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> set[int]:
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def _reap(pid: int) -> int:
    """The exit code of an ended worker, negative for the signal that ended it."""
    deadline = time.monotonic() + _REAP_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            break
        if ended:
            return os.waitstatus_to_exitcode(status)
        select.select([], [], [], 0.002)
    return UNKNOWN_STATUS
