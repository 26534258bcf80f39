"""Where a server of medrl may listen: to this machine alone, or to others where a token is asked for; and how long."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading

from rl.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_guarded(host: str, *, token: str, variable: str) -> None:
    """Raises ConfigError for a host that others can reach while there is no ``token``; ``variable`` would hold it."""
    if not token and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from elsewhere: set {variable} to a token that requests must bear"
        )


def check_free(host: str, port: int) -> None:
    """Raises ConfigError where nothing can listen at this address."""
    try:
        with socket.create_server((host, port), reuse_port=False):
            pass
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port} cannot be listened on: {error.strerror}") from error


def wait_for_signal() -> None:
    """Return on SIGINT or SIGTERM. What sets handlers of its own, as Ray does, must have started before."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
