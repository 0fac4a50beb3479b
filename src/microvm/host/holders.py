"""Who has a file open or locked, as far as the kernel shows it to us."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MACHINE_LOCK = "lock"
"""Name of the file in a machine's state directory that its launcher and its VMM hold."""


F_OFD_GETLK = 36
"""linux/fcntl.h"""
FLOCK = "hhqqi4x"
"""struct flock of 64-bit systems: type, whence, start, length, process."""
_EXITING = 0x4
_ACCEPTS = 0x10000
"""include/linux/net.h: __SO_ACCEPTCON"""


def is_locked(path: Path) -> bool:
    """Return whether an open file description lock is on a file; one that is missing has none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, F_OFD_GETLK, asked)
    finally:
        os.close(descriptor)
    return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)


def is_flocked(path: Path) -> bool:
    """Return whether another one holds a flock(2) on a file; one that is missing has none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_ending(pid: str) -> bool:
    """Return whether a process has gone, or is about to (proc_pid_stat(5): state, flags)."""
    if not pid.isdigit():
        return False
    try:
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _EXITING)


def has_open(pid: int, path: Path) -> bool | None:
    """Return whether a process has a file open, or None where that can't be seen."""
    try:
        wanted = path.stat()
        opened = _opened(Path("/proc", str(pid)))
        return any(os.path.samestat(info, wanted) for _, info in opened)
    except OSError:
        return None


def listener(path: Path, lock: Path) -> int | None:
    """Return the process that has the file `lock` open and listens at a socket named as `path`.

    None where none of those that we can see does.
    """
    for process, opened in _having(lock):
        with suppress(OSError):  # it ended
            if _listening(process, path.name) & {info.st_ino for _, info in opened}:
                return int(process.name)
    return None


def _listening(process: Path, name: str) -> set[int]:
    """Return the inodes of the sockets that listen by this name in a process's network namespace.

    unix(7), /proc/net/unix: Num RefCount Protocol Flags Type St Inode Path.
    """
    found = set()
    for line in (process / "net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and int(words[3], 16) & _ACCEPTS and Path(words[7]).name == name:
            found.add(int(words[6]))
    return found


def of(path: Path) -> str:
    """Return ` (who)`, the machine and process that has a file open, or the empty text."""
    best = ""
    for process, opened in _having(path):
        if int(process.name) == os.getpid():
            continue
        if machine := _machine(opened):
            return f" (machine {machine}, process {process.name})"
        best = best or f" ({_command(process)}, process {process.name})"
    return best


def _having(path: Path) -> Iterator[tuple[Path, list[tuple[str, os.stat_result]]]]:
    """Yield the directories in /proc of those that have a file open, and all that they have.

    Parents come before their children, as a rule.
    """
    try:
        wanted = path.stat()
    except OSError:
        return
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda found: int(found.name)):
        try:
            opened = list(_opened(process))
        except OSError:  # it ended, or is not ours to look at
            continue
        if any(os.path.samestat(info, wanted) for _, info in opened):
            yield process, opened


def _opened(process: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield target and status of what a process has open.

    Raises `OSError` when it has ended, or is not ours to look at.
    """
    for descriptor in list((process / "fd").iterdir()):
        with suppress(OSError):  # closed meanwhile
            yield str(descriptor.readlink()), descriptor.stat()


def _machine(opened: list[tuple[str, os.stat_result]]) -> str | None:
    for target, _ in opened:
        directory, _, name = target.rpartition("/")
        if name == MACHINE_LOCK:
            return directory.rpartition("/")[2]
    return None


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a program"
