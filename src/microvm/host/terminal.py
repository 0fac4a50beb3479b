"""The user's terminal, pseudo-terminals for a VMM's console, and waiting for bytes at either."""

import fcntl
import os
import re
import select
import signal
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO


def size(descriptor: int) -> tuple[int, int] | None:
    """Return rows and columns of a terminal, or None when it is none or doesn't know."""
    if not os.isatty(descriptor):
        return None
    raw = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8)
    rows, columns, _, _ = struct.unpack("HHHH", raw)
    return (rows, columns) if rows and columns else None


class Raw:
    """A terminal that can be switched to raw mode, and is always put back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before = termios.tcgetattr(descriptor)

    def listen(self) -> None:
        """Take keys one by one and unseen; Ctrl-C still interrupts."""
        tty.setcbreak(self._descriptor, termios.TCSANOW)

    def enter(self) -> None:
        """Pass every key on as it is, Ctrl-C too."""
        with suppress(termios.error):
            tty.setraw(self._descriptor, termios.TCSANOW)

    def restore(self) -> None:
        """Put the terminal back as it was, if it is still there."""
        with suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)


def open_console() -> tuple[int, int]:
    """Return both ends of a new pseudo-terminal: ours, and the raw one for the VMM."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    settings = termios.tcgetattr(theirs)
    settings[1] = 0  # QEMU turns output processing on, and so ONLCR; the guest's bytes are whole
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    os.set_blocking(ours, False)
    return ours, theirs


def open_made_by(pid: int) -> IO[bytes] | None:
    """Return the slave of the one pseudo-terminal that a process has made, raw; None: not yet."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    for entry in sorted(Path(f"/proc/{pid}/fdinfo").glob("*")):
        with ExitStack() as stack:
            # Locked until the process has done with it (unlockpt(3)), or gone with the process.
            stack.enter_context(suppress(OSError, termios.error))
            index = re.search(r"^tty-index:\t(\d+)$", entry.read_text(), re.MULTILINE)
            if index is None:
                continue
            descriptor = os.open(f"/dev/pts/{index[1]}", flags)
            made = stack.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
            tty.setraw(descriptor)
            stack.pop_all()
            return made
    return None


@contextmanager
def caught_signals(*numbers: signal.Signals) -> Iterator[int]:
    """Turn signals into bytes: yields a descriptor from which their numbers are read.

    Those that we were started to ignore, as nohup and background jobs are, stay ignored.
    """
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(number: int, frame: FrameType | None) -> None:
        os.write(write, bytes([number]))

    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield read
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


class Outlet:
    """Bytes on their way to a descriptor whose reader may be slow, stopped or gone."""

    ROOM = 262144
    """Bytes that wait here before nothing more should be asked for."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.pending = bytearray()
        self.broken = False
        """Whether nobody reads any more; what is put here then is dropped."""

    @property
    def has_room(self) -> bool:
        """Whether more may be put here."""
        return len(self.pending) < self.ROOM

    def put(self, data: bytes) -> None:
        """Take bytes, to be written by `flush`."""
        if not self.broken:
            self.pending += data

    def flush(self) -> None:
        """Write what the descriptor takes now; never wait."""
        try:
            # A pipe that can be written takes 4096 bytes at once (PIPE_BUF, pipe(7)).
            while self.pending and self.descriptor in ready([], [self.descriptor], 0):
                del self.pending[: os.write(self.descriptor, self.pending[:4096])]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            self.pending.clear()


def ready(readers: list[int], writers: list[int], timeout_s: float) -> set[int]:
    """Return which descriptors can be read or written, or have ended, within the time."""
    events = dict.fromkeys(readers, select.POLLIN)
    for descriptor in writers:
        events[descriptor] = events.get(descriptor, 0) | select.POLLOUT
    poller = select.poll()
    for descriptor, wanted in events.items():
        poller.register(descriptor, wanted)
    return {descriptor for descriptor, _ in poller.poll(int(timeout_s * 1000))}


def read_some(descriptor: int, limit: int = 65536) -> bytes | None:
    """Return what there is to read; empty at the end; None when nothing is there now."""
    try:
        return os.read(descriptor, limit)
    except BlockingIOError:
        return None
    except OSError:
        return b""  # a pseudo-terminal whose other end is closed gives EIO
