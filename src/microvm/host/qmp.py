"""QEMU's control protocol (docs/interop/qmp-spec.rst): one request, its answer, and events."""

import json
import socket
from pathlib import Path
from typing import Any

from microvm.errors import ApiError, DeadlineExceeded
from microvm.host.process import Deadline


class Qmp:
    """A connection to a running QEMU; close it when done."""

    def __init__(self, path: Path, *, timeout_s: float = 10) -> None:
        """Connect and agree on capabilities. Raises `ApiError`, `DeadlineExceeded`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ApiError(f"could not reach QEMU at {path}: {error.strerror}") from error
        deadline = Deadline(timeout_s)
        self._message(deadline)
        self.call("qmp_capabilities")

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self._socket.fileno()

    def call(self, command: str, timeout_s: float = 10, **arguments: Any) -> Any:
        """Send a command and return its answer. Raises `ApiError` with QEMU's words."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ApiError(f"QEMU has gone: {error.strerror}") from error
        deadline = Deadline(timeout_s)
        while True:
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise ApiError(f"QEMU refused {command}: {message['error'].get('desc')}")

    def drain(self) -> list[dict[str, Any]]:
        """Return the events that have come so far, without waiting."""
        while b"\n" in self._buffer or self._readable():
            try:
                self._message(Deadline(1))
            except (ApiError, DeadlineExceeded):
                break
        found, self.events = self.events, []
        return found

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _readable(self) -> bool:
        import select

        return bool(select.select([self._socket], [], [], 0)[0])

    def _message(self, deadline: Deadline) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(deadline.left(), 0.001))
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError as error:
                raise DeadlineExceeded("QEMU did not answer in time") from error
            except OSError as error:
                raise ApiError(f"QEMU has gone: {error.strerror}") from error
            if not chunk:
                raise ApiError("QEMU closed its control socket")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message
