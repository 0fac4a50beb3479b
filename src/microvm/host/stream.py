"""A connection to a Unix socket that appears when its server is ready."""

import os
import socket
import stat
import time
from pathlib import Path

from microvm.errors import DeadlineExceeded, HostError
from microvm.host.process import Deadline, Process, last_words

Connection = socket.socket
"""A connected, non-blocking socket."""

LIMIT = 107
"""Bytes of a socket's path (unix(7): sun_path less the final NUL)."""


def connect(path: Path) -> socket.socket | None:
    """Return a connection, or None when nobody listens there (yet)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Raises `HostError` for a live one."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except OSError:
        return
    if live := connect(path):
        live.close()
        raise HostError(f"something listens on {path} already", hint="stop that process first")
    path.unlink(missing_ok=True)


def wait_for_socket(path: Path, process: Process, name: str, deadline: Deadline, log: Path) -> None:
    """Wait until a helper has made its socket. Raises `HostError` with its last words.

    A vhost-user server takes one connection only, so the path is looked at and not tried.
    """
    while not path.exists():
        status = process.wait(0.01)
        if status is not None:
            words = last_words(log.read_bytes() if log.exists() else b"")
            raise HostError(f"{name} ended with status {status} before it was ready:{words}")
        if deadline.expired:
            raise DeadlineExceeded(f"{name} made no socket {path} in time")
        time.sleep(0.005)


def relative_length_ok(path: str) -> bool:
    """Return whether a socket's path fits, as it is handed over."""
    return len(os.fsencode(path)) <= LIMIT
