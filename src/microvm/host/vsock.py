"""Sockets between a host and its guests (vsock(7))."""

import socket

from microvm.errors import ApiError


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
