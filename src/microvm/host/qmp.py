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
        """Connect and agree on capabilities.

        Raises `ApiError` (`Unreachable` when nobody listens), `DeadlineExceeded`, `HostError`
        without the right to connect.
        """
        self._buffer = b""
        self._timeout_s = timeout_s
        self._calls = 0
        self.events: list[dict[str, Any]] = []
        self._socket = stream.reach(path, name="QEMU", timeout_s=timeout_s)
        try:
            if "QMP" not in self._greeting(path):
                raise ApiError(f"what listens on {path} does not greet as QEMU does")
            self.call("qmp_capabilities")
        except MicroVMError:
            self._socket.close()
            raise

    def _greeting(self, path: Path) -> dict[str, Any]:
        try:
            return self._message(Deadline(self._timeout_s))
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"QEMU did not greet within {self._timeout_s:g} s on {path}: another program is"
                " connected there, or it hangs",
                hint="QEMU serves one at a time: end the other connection",
            ) from error

    def call(self, command: str, **arguments: Any) -> Any:
        """Send a command and return its answer.

        Raises `ApiError` with QEMU's words, `DeadlineExceeded`.
        """
        self._calls += 1
        request: dict[str, Any] = {"execute": command, "id": self._calls}
        if arguments:
            request["arguments"] = arguments
        deadline = Deadline(self._timeout_s)
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            raise DeadlineExceeded("QEMU did not take a command in time") from error
        except OSError as error:
            raise ApiError(f"QEMU has gone: {error.strerror}") from error
        while True:
            message = self._message(deadline)
            if message.get("id", self._calls) != self._calls:
                continue  # to a call that was given up
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise ApiError(f"QEMU refused {command}: {_words(message['error'])}")

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
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ApiError(f"QEMU sent what is no JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise ApiError(f"QEMU sent what is no message: {line[:80]!r}")
        if "event" in message:
            self.events.append(message)
        return message


def _words(error: object) -> object:
    return error.get("desc", error) if isinstance(error, dict) else error
