"""Unix sockets: connections to them, who listens there, and listening oneself."""

import os
import pwd
import shutil
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from microvm.errors import DeadlineExceeded, HostError, StateError, Unreachable
from microvm.host import files
from microvm.host.process import Deadline

LIMIT = 107
"""Bytes of a socket's path (unix(7): sun_path less the final NUL)."""
LOOK_S = 0.05
_KINDS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
"""Of control sockets; crosvm's is of packets."""


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield a short name for a socket's path: sun_path has room for 107 bytes only.

    Raises `OSError` when its directory can't be entered.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path) -> socket.socket | None:
    """Return a connection, or None when nobody listens there (yet), or takes no more of them."""
    try:
        return _connected(path)
    except OSError:
        return None


def reach(path: Path, *, name: str, timeout_s: float) -> socket.socket:
    """Return a connection to the program `name`, which may be busy with others for a while.

    Raises `Unreachable` when nobody listens there, `HostError` without the right to,
    `DeadlineExceeded`.
    """
    deadline = Deadline(timeout_s)
    while True:
        try:
            return _connected(path)
        except BlockingIOError as error:
            if deadline.expired:
                raise DeadlineExceeded(
                    f"{name} takes no connection at {path}: others wait there already, or it hangs"
                ) from error
            time.sleep(LOOK_S)
        except PermissionError as error:
            raise HostError(
                f"no permission to connect to {name} at {path}", hint="run as its user, or as root"
            ) from error
        except OSError as error:
            raise Unreachable(f"could not reach {name}: nobody listens on {path}") from error


def _connected(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, kind)
    # A full backlog would keep a blocking connect waiting for as long as its owner is stuck.
    connection.setblocking(False)
    try:
        with address(path) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


def done_with(connection: socket.socket, *, within_s: float) -> bool:
    """Say that nothing more comes; return whether the other side has closed the connection then."""
    connection.settimeout(within_s)
    try:
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:  # it has ended
        return True


def accept(listener: int) -> socket.socket | None:
    """Return the connection that waits at a listening descriptor, or None when none does."""
    server = socket.socket(fileno=os.dup(listener))
    with server:
        server.setblocking(False)
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return None
    connection.setblocking(False)
    return connection


def owner(path: Path) -> int | None:
    """Return the process that listens at `path` (unix(7), SO_PEERCRED), or None when none does.

    Raises `BlockingIOError` when it takes no more connections.
    """
    for kind in _KINDS:
        try:
            with _connected(path, kind) as connection:
                size = struct.calcsize("3i")
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        except BlockingIOError:
            raise
        except OSError:
            continue
        pid, _, _ = struct.unpack("3i", raw)
        return pid or None  # 0: one of another PID namespace
    return None


def listens(path: Path) -> bool:
    """Return whether a socket takes connections, be it of streams or of packets (unix(7))."""
    for kind in _KINDS:
        try:
            _connected(path, kind).close()
        except (BlockingIOError, PermissionError):  # a full backlog, or somebody else's
            return True
        except OSError:
            continue
        return True
    return False


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    Raises `HostError` for a live one, `StateError` for what is no socket.
    """
    try:
        info = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise StateError(
            f"no socket can be at {path}: something else is there, which is left as it is",
            hint="move it away, or name another socket",
        )
    if listens(path):
        if not os.access(path, os.W_OK, effective_ids=True):  # a dead one refuses us just so
            raise HostError(
                f"the socket {path} is of another user ({_name(info.st_uid)}), and may be in use",
                hint=f"remove it if it is not (rm {path}), or run as that user",
            )
        who = "a process"
        with suppress(BlockingIOError):
            if pid := owner(path):
                who = f"process {pid}"
        raise HostError(f"{who} listens on {path} already", hint="stop that process first")
    path.unlink(missing_ok=True)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def remove(path: Path) -> None:
    """Remove a socket that its owner left; what is no socket stays."""
    with suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def obstacle(path: Path) -> str | None:
    """Say why no socket can be at an absolute path, else None; one that is there already can."""
    if why := files.obstacle(path.parent, stat.S_ISDIR):
        return f"no socket can be at {path}: {why}"
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    return None if stat.S_ISSOCK(mode) else f"no socket can be at {path}: something else is there"


def make_place(state_dir: Path, name: str) -> None:
    """Make the directories of a socket whose name is relative; other places are for others to make.

    Raises `HostError`.
    """
    below = Path(name).parent
    if below.is_absolute() or ".." in below.parts:
        return
    try:
        (state_dir / below).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, f"make the directory of the socket {name}") from error


@contextmanager
def listening(path: Path, group: str | None) -> Iterator[int]:
    """Yield the descriptor of a socket that listens at `path`; the path goes with the block.

    `group` may connect too. What is at `path` already stays. Raises `HostError`.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            with address(path) as name:
                listener.bind(name)
            stack.callback(path.unlink, missing_ok=True)
            path.chmod(0o660 if group else 0o600)
            listener.listen(1)
        except OSError as error:
            raise files.explain(error, f"listen on {path}") from error
        if group:
            _give(path, group)
        yield listener.fileno()


def _give(path: Path, group: str) -> None:
    try:
        shutil.chown(path, group=group)
    except LookupError as error:
        message = f"the host has no group {group} for {path}"
        raise HostError(message, hint="make it (groupadd), or name another one") from error
    except OSError as error:
        raise HostError(
            f"could not give {path} to the group {group}: {error.strerror}",
            hint="join that group, or name one that you are in (`groups` lists them)",
        ) from error


def fits(path: str) -> bool:
    """Return whether a socket's path is short enough to be handed to a program as it is."""
    return len(os.fsencode(path)) <= LIMIT
