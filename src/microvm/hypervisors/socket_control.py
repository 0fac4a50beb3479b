"""VMMs that are there as long as their socket takes connections; two of them speak HTTP on it."""

from pathlib import Path
from typing import Any, ClassVar

from microvm.errors import ApiError
from microvm.host import stream, unixhttp
from microvm.hypervisors.control import Control


class SocketControl(Control):
    """A VMM whose socket serves any number of clients, one request a connection."""

    vmm: ClassVar[str]
    """Its name, for messages."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        """Raise `ApiError` when nobody listens there."""
        self._path = path
        self._timeout_s = timeout_s
        if not self.alive():
            raise ApiError(f"could not reach {self.vmm}: nobody listens on {path}")

    def alive(self) -> bool:
        """Look whether its socket takes connections."""
        return stream.listens(self._path)


class HttpControl(SocketControl):
    """A VMM that takes requests with JSON bodies."""

    root: ClassVar[str] = ""
    """What every target begins with."""

    def _call(self, method: str, target: str, body: object = None) -> Any:
        return unixhttp.call(
            self._path, method, self.root + target, body, name=self.vmm, timeout_s=self._timeout_s
        )
