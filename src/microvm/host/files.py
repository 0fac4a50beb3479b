"""Files that are there whole or not at all, locks that end with their holder."""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from microvm.errors import HostError, StateError
from microvm.host import linux


def explain(error: OSError, doing: str) -> HostError:
    """Return what a failed file operation means to a user and what to do next."""
    path = error.filename or ""
    hint = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room there, or choose another place, then run the same command again"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "check the owner and mode of that path"
    elif error.errno == errno.EROFS:
        hint = "choose a place that can be written"
    return HostError(f"could not {doing}: {error.strerror}{f': {path}' if path else ''}", hint=hint)


_KINDS = {stat.S_ISREG: "a file", stat.S_ISDIR: "a directory"}


def obstacle(path: Path, kind: Callable[[int], bool] | None = None) -> str | None:
    """Say why there is nothing at a path, or not of a kind (`stat.S_ISREG`, ...), else None."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no {path}"
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    except ValueError:
        return f"a path has no NUL: {str(path)!r}"
    return f"{path} is not {_KINDS[kind]}" if kind and not kind(mode) else None


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write a file so that there is always the old one or the new one, also after a power cut.

    Raises `HostError`.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(raw)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise explain(error, f"write {path}") from error


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_filesystem(path: Path) -> None:
    """Make all that was written to the path's file system durable (syncfs(2))."""
    number = os.open(path, os.O_RDONLY)
    try:
        linux.sync_filesystem(number)
    finally:
        os.close(number)


@contextmanager
def lock(path: Path, *, wait: bool = True, doing: str = "") -> Iterator[int]:
    """Hold an exclusive flock(2) on a file, made where missing; yields its descriptor.

    Raises `StateError` when another process holds it and `wait` is false.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise StateError(f"{doing or path.name}: another process is at it ({path})") from error
        yield number
    finally:
        os.close(number)
