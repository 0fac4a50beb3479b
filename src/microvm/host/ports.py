"""Ports of the host that a VMM is about to open."""

import errno
import socket
from collections.abc import Iterable

from microvm.errors import HostError, StateError
from microvm.model.plan import PortPlan


def check_free(ports: Iterable[PortPlan]) -> None:
    """Raise `StateError` for a port that is in use, `HostError` for one that we may not open."""
    for port in ports:
        family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
        kind = socket.SOCK_STREAM if port.proto == "tcp" else socket.SOCK_DGRAM
        name = f"{port.address}:{port.port}/{port.proto}"
        with socket.socket(family, kind) as probe:
            if port.proto == "tcp":
                # Ours may have been closed a moment ago; two that listen exclude each other still.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((port.address, port.port))
            except OSError as error:
                raise _refusal(port, name, error) from error


def _refusal(port: PortPlan, name: str, error: OSError) -> HostError | StateError:
    another = (
        f"forward another one, such as --set {port.where}.host.port={port.port % 50000 + 10000}"
    )
    if error.errno == errno.EADDRINUSE:
        return StateError(
            f"can't forward {name}: the port is in use",
            hint=f"stop what uses it (ss -lnp tells), or {another}",
        )
    return HostError(
        f"can't forward {name}: {error.strerror}",
        hint=f"ports below 1024 are root's; {another}" if port.port < 1024 else None,
    )
