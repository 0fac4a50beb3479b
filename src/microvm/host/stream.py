"""A connection to a Unix socket that appears when its server is ready."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microvm.errors import HostError

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


@contextmanager
def listening(path: Path, group: str | None) -> Iterator[int]:
    """Yield the descriptor of a socket that listens at `path`; the path goes with the block.

    Raises `HostError`.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A path relative to its own directory: sun_path has room for 107 bytes only.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        path.chmod(0o660 if group else 0o600)
        if group:
            shutil.chown(path, group=group)
        listener.listen(1)
        yield listener.fileno()
    except LookupError as error:
        raise HostError(f"the host has no group {group} for {path.name}") from error
    finally:
        path.unlink(missing_ok=True)
        listener.close()
        os.close(directory)


def relative_length_ok(path: str) -> bool:
    """Return whether a socket's path fits, as it is handed over."""
    return len(os.fsencode(path)) <= LIMIT
