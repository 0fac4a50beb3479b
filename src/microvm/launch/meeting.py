"""The host's end of a job stream: reached, waited for, or found, as the VMM has it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from microvm.host import stream, terminal, vsock
from microvm.model.plan import JobEnd


class Stream(Protocol):
    """An open, non-blocking byte stream."""

    def fileno(self) -> int:
        """Return its descriptor."""

    def close(self) -> None:
        """End it."""


Meet = Callable[[int], Stream | None]
"""Takes the VMM's process id; returns the stream once both ends have met."""


@contextmanager
def meeting(end: JobEnd | None, state_dir: Path) -> Iterator[Meet]:
    """Be ready for the guest before the VMM starts. Raises `HostError`."""
    if end is None:
        yield lambda pid: None
    elif end.kind == "listen":
        with stream.listening(state_dir / end.socket, None) as listener:
            yield lambda pid: stream.accept(listener)
    elif end.kind == "connect":
        path = state_dir / end.socket
        yield lambda pid: stream.connect(path)
    elif end.kind == "vsock":
        with vsock.listening(end.port) as server:
            yield lambda pid: vsock.accept(server, end.context)
    else:
        yield terminal.open_made_by
