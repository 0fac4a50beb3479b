"""VMMs whose socket takes any number of connections; two of them speak HTTP on it."""

from pathlib import Path
from typing import Any, ClassVar

from microvm.errors import Unreachable
from microvm.host import stream, unixhttp
from microvm.hypervisors.control import Control


class SocketControl(Control):
    """A VMM whose socket serves any number of clients, one request a connection."""

    vmm: ClassVar[str]
    """Its name, for messages."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        """Raise `Unreachable` when nobody listens there."""
        self._path = path
        self._timeout_s = timeout_s
        if not stream.listens(path):
            raise Unreachable(f"could not reach {self.vmm}: nobody listens on {path}")


class HttpControl(SocketControl):
    """A VMM that takes requests with JSON bodies."""

    root: ClassVar[str] = ""
    """What every target begins with."""

    def _call(self, method: str, target: str, body: object = None) -> Any:
        return unixhttp.call(
            self._path, method, self.root + target, body, name=self.vmm, timeout_s=self._timeout_s
        )
