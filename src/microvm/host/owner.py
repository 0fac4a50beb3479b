"""The process at the other end of a Unix socket: watched and ended though it answers nothing."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microvm.errors import HostError
from microvm.host import holders, stream
from microvm.host.process import Deadline


class Owner:
    """A process by its pidfd (pidfd_open(2)), so that no other one is ever meant."""

    def __init__(self, pid: int, pidfd: int, lock: Path | None) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._lock = lock

    def ends(self, within: Deadline) -> bool:
        """Wait for its end; return whether it came."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(max(within.left(), 0) * 1000))

    def holds(self) -> bool | None:
        """Return whether it has the file open that it has to, or None where that can't be seen."""
        if self._lock is None:
            return True
        found = holders.has_open(self.pid, self._lock)
        return None if holders.is_ending(str(self.pid)) else found

    def kill(self) -> None:
        """End it at once; one that is gone is fine.

        Raises `HostError` without the right to, and when it is not seen to be the one.
        """
        if not self.holds() and not holders.is_ending(str(self.pid)):
            raise HostError(
                f"process {self.pid} is not ended: it can't be seen to hold {self._lock}",
                hint="run as its user, or as root",
            )
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise HostError(
                f"no permission to end process {self.pid}", hint="run as its user, or as root"
            ) from error


@contextmanager
def owner_of(path: Path, lock: Path | None = None) -> Iterator[Owner | None]:
    """Yield the process that listens at `path`, or None where none does that we could see.

    `lock`: a file that it has to have open. One that takes no more connections is found by it.
    """
    try:
        pid = stream.owner(path)
    except BlockingIOError:
        pid = holders.listener(path, lock) if lock else None
    try:
        pidfd = os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        pidfd = None
    if pid is None or pidfd is None:
        yield None
        return
    try:
        yield Owner(pid, pidfd, lock)
    finally:
        os.close(pidfd)
