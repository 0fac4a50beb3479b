"""QEMU's control protocol (docs/interop/qmp-spec.rst): one request, its answer, and events."""

import json
from pathlib import Path
from typing import Any

from microvm.errors import ApiError, DeadlineExceeded, MicroVMError
from microvm.host import stream
from microvm.host.process import Deadline


class Qmp:
    """A connection to a running QEMU; close it when done. Every answer has `timeout_s` seconds."""

    def __init__(self, path: Path, *, timeout_s: float = 10) -> None:
        """Connect and agree on capabilities. Raises `ApiError`, `DeadlineExceeded`."""
        self._buffer = b""
        self._timeout_s = timeout_s
        self.events: list[dict[str, Any]] = []
        connection = stream.connect(path)
        if connection is None:
            raise ApiError(f"could not reach QEMU: nobody listens on {path}")
        self._socket = connection
        try:
            self._message(Deadline(timeout_s))
            self.call("qmp_capabilities")
        except MicroVMError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self._socket.fileno()

    def call(self, command: str, **arguments: Any) -> Any:
        """Send a command and return its answer.

        Raises `ApiError` with QEMU's words, `DeadlineExceeded`.
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ApiError(f"QEMU has gone: {error.strerror}") from error
        deadline = Deadline(self._timeout_s)
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
