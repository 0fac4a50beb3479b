"""The process at the other end of a Unix socket: watched and ended though it answers nothing."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microvm.errors import HostError
from microvm.host import stream
from microvm.host.process import Deadline


class Owner:
    """A process by its pidfd (pidfd_open(2)), so that no other one is ever meant."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def ends(self, within: Deadline) -> bool:
        """Wait for its end; return whether it came."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(max(within.left(), 0) * 1000))

    def kill(self) -> None:
        """End it at once; one that is gone is fine. Raises `HostError` without the right to."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise HostError(
                f"no permission to end process {self.pid}", hint="run as its user, or as root"
            ) from error


@contextmanager
def owner_of(path: Path) -> Iterator[Owner | None]:
    """Yield the process that listens at `path`, or None where none does that we could see."""
    pid = stream.owner(path)
    try:
        pidfd = os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        pidfd = None
    if pid is None or pidfd is None:
        yield None
        return
    try:
        yield Owner(pid, pidfd)
    finally:
        os.close(pidfd)
