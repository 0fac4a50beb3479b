"""Files that are there whole or not at all, locks that end with their holder."""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from microvm.errors import HostError, StateError
from microvm.host import linux


def explain(error: OSError, doing: str, *, chosen_by: str | None = None) -> HostError:
    """Return what a failed file operation means to a user and what to do next.

    `chosen_by`: the option or variable that names the place.
    """
    path = error.filename2 or error.filename or ""
    hint = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room there, or choose another place, then run the same command again"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "check the owner and mode of that path"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        hint = "a directory is needed there"
    elif error.errno == errno.EROFS:
        hint = "choose a place that can be written"
    if hint and chosen_by:
        hint += f"; {chosen_by} names another place"
    return HostError(f"could not {doing}: {error.strerror}{f': {path}' if path else ''}", hint=hint)


_KINDS = {stat.S_ISREG: "a file", stat.S_ISDIR: "a directory"}


def obstacle(path: Path, kind: Callable[[int], bool] | None = None) -> str | None:
    """Say why there is nothing at a path, or not of a kind (`stat.S_ISREG`, ...), else None."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            return f"{path} is a link to {path.readlink()}, which is not there"
        return f"there is no {path}"
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    except ValueError:
        return f"a path has no NUL: {str(path)!r}"
    return f"{path} is not {_KINDS[kind]}" if kind and not kind(mode) else None


@contextmanager
def draft(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield an empty file beside `path`, to be renamed to it; otherwise it goes with the block.

    Waits for other processes at the same. Its name is fixed: the next one uses up what a killed
    one left. Raises `OSError`.
    """
    # Short whatever the name is, and nobody's own file.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    fresh = path.with_name(f".microvm-new-{digest}")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        file = os.fdopen(os.open(fresh, flags, 0o600), "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_at(file.fileno(), fresh):
            break
        file.close()  # renamed or removed while we waited
    try:
        file.truncate(0)
        yield fresh, file
    finally:
        if is_at(file.fileno(), fresh):
            fresh.unlink()
        file.close()


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


Content = bytes | str


def write_atomic(path: Path, data: Content | Callable[[], Content], mode: int = 0o644) -> None:
    """Write a file so that there is always the old one or the new one, also after a power cut.

    Where `data` is a function it may read the old file: no other writer comes between. Raises
    `HostError`.
    """
    try:
        with draft(path) as (fresh, file):
            content = data() if callable(data) else data
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            fresh.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise explain(error, f"write {path}") from error


def tail(path: Path, size: int = 65536) -> bytes:
    """Return the end of a file, however long that is; nothing of one that can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size)
    except OSError:
        return b""


def replace_link(link: Path, target: Path) -> None:
    """Make or change a symbolic link in one step. Raises `OSError`."""
    digest = hashlib.sha256(os.fsencode(link.name)).hexdigest()[:16]
    fresh = link.with_name(f".microvm-new-{digest}.link")
    while True:
        try:
            fresh.symlink_to(target)
        except FileExistsError:
            fresh.unlink(missing_ok=True)  # left by a killed process, or another's: it tries again
            continue
        try:
            fresh.rename(link)
        except FileNotFoundError:
            continue
        return


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
def lock(
    path: Path,
    *,
    wait: bool = True,
    shared: bool = False,
    passing: bool = False,
    waiting: Callable[[], None] = lambda: None,
    doing: str = "",
) -> Iterator[int]:
    """Hold a flock(2) on a file, made where missing; yields its descriptor.

    `waiting` is called when another process holds it; `passing`: the file goes with the block.
    Raises `StateError` when another holds it and `wait` is false, `HostError` when the file can't
    be opened.
    """
    number = _locked(path, shared, passing, waiting if wait else None, doing)
    try:
        yield number
    finally:
        if passing:
            with suppress(OSError):  # a file too many does no harm
                path.unlink()
        os.close(number)


def _locked(
    path: Path, shared: bool, passing: bool, waiting: Callable[[], None] | None, doing: str
) -> int:
    while True:
        # What is only read may lie on a read-only file system; NFS locks what may be written.
        access = os.O_RDONLY if shared else os.O_RDWR
        try:
            number = os.open(path, access | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain(error, doing or f"open the lock {path.name}") from error
        with ExitStack() as stack:
            stack.callback(os.close, number)
            try:
                _flock(number, shared=shared, waiting=waiting)
            except BlockingIOError as error:
                message = f"{doing or path.name}: another process is at it ({path})"
                raise StateError(message) from error
            except OSError as error:
                raise explain(error, doing or f"lock {path}") from error
            # Its holder removed the file while we waited: the name may be locked by a third now.
            if not passing or is_at(number, path):
                stack.pop_all()
                return number


def _flock(number: int, *, shared: bool, waiting: Callable[[], None] | None) -> None:
    """Lock a file; where another has it, tell so and wait, or raise `BlockingIOError`."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise
        waiting()
        fcntl.flock(number, kind)
