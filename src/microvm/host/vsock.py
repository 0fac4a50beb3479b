"""Sockets between a host and its guests (vsock(7))."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from microvm.errors import ApiError, HostError


def send(context: int, port: int, data: bytes, *, timeout_s: float) -> None:
    """Send bytes to a guest's port and wait until it has taken them. Raises `ApiError`."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect((context, port))
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
    except OSError as error:
        raise ApiError(f"the guest does not listen (vsock {context}:{port}): {error}") from error


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Yield a socket that takes guests' connections to the host at a port. Raises `HostError`."""
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise HostError(
            f"the host has no vsock: {error.strerror}", hint="modprobe vsock"
        ) from error
    with listener:
        try:
            listener.bind((socket.VMADDR_CID_ANY, port))
            listener.listen(1)
        except OSError as error:
            raise HostError(f"can't listen on vsock port {port}: {error.strerror}") from error
        listener.setblocking(False)
        yield listener


def accept(listener: socket.socket, context: int) -> socket.socket | None:
    """Return the connection of the guest with that context id, or None when it has not come yet.

    A port of the host is open to every guest and process of it: others are turned away.
    """
    while True:
        try:
            connection, (peer, _) = listener.accept()
        except OSError:  # nobody is there, or who was has gone again
            return None
        if peer == context:
            connection.setblocking(False)
            return connection
        connection.close()
