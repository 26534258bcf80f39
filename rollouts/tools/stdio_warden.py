"""Runs a server that speaks over standard input and output, and ends it when whoever speaks with it is gone.

    python stdio_warden.py BYTES COMMAND...      BYTES: the longest line that the server may write

As `rollouts.warden`, which keeps servers that listen on a port, this is nobody's child, so that it outlives what ends
its owner together with the owner's children. It needs the standard library alone.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE_S = 2.0  # for a server that ends by itself once its input does, as it should


def main(longest: int, command: list[str]) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        threading.Thread(target=_end_with_owner, args=(server,), daemon=True).start()
        assert server.stdout is not None
        _pass_on(server.stdout.fileno(), longest)
    finally:
        _end()


def _pass_on(source: int, longest: int) -> None:
    """What the server writes, until it ends or writes a line that nobody should have to hold in memory."""
    length = 0
    while chunk := os.read(source, 1 << 16):
        _, newline, tail = chunk.rpartition(b"\n")
        length = len(tail) + (0 if newline else length)
        if length > longest:
            print(f"ended for a line of more than {longest:,} bytes", file=sys.stderr)
            return
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _end_with_owner(server: subprocess.Popen[bytes]) -> None:
    input_closed = select.poll()
    input_closed.register(sys.stdin.fileno(), 0)  # asks for nothing but the hang-up: what is there is the server's
    input_closed.poll()
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_S)
    _end()


def _end() -> None:
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
