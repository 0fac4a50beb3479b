"""Programs: run one and wait, keep a helper beside us, or become one."""

import fcntl
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from microvm.errors import CommandFailed, DeadlineExceeded, HostError
from microvm.host import linux

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Places that an ordinary user's PATH often lacks."""

TAIL_LINES = 20

Argv = Sequence[str | os.PathLike[str]]
Stream = int | IO[bytes] | None


class Deadline:
    """A moment on the monotonic clock by which something has to be done."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, never less than 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.left() == 0.0


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended."""

    stdout: bytes
    stderr: bytes
    returncode: int


def find_program(name: str, extra_dirs: Sequence[str | Path] = ()) -> Path | None:
    """Return the program's path: a path as it is, else found on PATH, in `extra_dirs`, in sbin."""
    places = [os.environ.get("PATH", os.defpath), *map(str, extra_dirs), *SBIN]
    found = shutil.which(name, path=os.pathsep.join(places))
    return Path(found) if found else None


def placed(program: str | None, project: Path) -> str | None:
    """Return a declared program as it is found from anywhere: a path starts at the project."""
    return str(project / program) if program and "/" in program else program


def require_program(name: str, package: str, extra_dirs: Sequence[str | Path] = ()) -> Path:
    """Return the program's path; raise `HostError` that names the Debian package that has it."""
    if found := find_program(name, extra_dirs):
        return found
    raise HostError(f"the program {name} is missing", hint=f"install it: apt install {package}")


def child_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what our programs get to see: ours with a neutral locale, and `env` over it."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": path, **(env or {})}


def replayable(argv: Argv) -> str:
    """Return the command as one line to paste into a shell."""
    return shlex.join(os.fspath(word) for word in argv)


def last_words(output: bytes | None, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a program's output, indented, or the empty text."""
    # A log that was emptied under a program that does not append begins with a hole.
    text = (output or b"").lstrip(b"\0").decode(errors="replace").rstrip()
    return "".join(f"\n  {line}" for line in text.splitlines()[-lines:])


def ended(returncode: int) -> str:
    """Say how a program ended."""
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with status {returncode}"


def run(
    argv: Argv,
    *,
    timeout_s: float,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    doing: str = "",
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end and return its output.

    It ends, with all that it started, when we are interrupted or killed. Raises `HostError` when
    it can't be started, `DeadlineExceeded` when it takes longer than `timeout_s` (it is killed
    then), and with `check` `CommandFailed` for a status other than 0.
    """
    words = [os.fspath(word) for word in argv]
    what = doing or f"run {Path(words[0]).name}"
    try:
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=linux.die_with_parent,
        ) as popen:
            done = Completed(*_talk(popen, input, timeout_s), popen.returncode)
    except subprocess.TimeoutExpired as error:
        raise _late(what, words, timeout_s, error.stderr or error.stdout) from error
    except OSError as error:
        raise HostError(f"could not {what}: {error.strerror}: {words[0]}") from error
    if check and done.returncode != 0:
        raise _failed(what, words, done.returncode, done.stderr or done.stdout)
    return done


def _late(doing: str, argv: list[str], timeout_s: float, said: bytes | None) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"could not {doing}: no end within {timeout_s:g} s: {replayable(argv)}{last_words(said)}"
    )


def _failed(doing: str, argv: list[str], returncode: int, said: bytes) -> CommandFailed:
    how = f"{Path(argv[0]).name} {ended(returncode)}"
    return CommandFailed(
        f"could not {doing}: {how}: {replayable(argv)}{last_words(said)}",
        argv=argv,
        returncode=returncode,
    )


def _talk(
    popen: "subprocess.Popen[bytes]", input: bytes | None, timeout_s: float
) -> tuple[bytes, bytes]:
    """Return what the program wrote; whatever interrupts us kills its whole process group."""
    try:
        return popen.communicate(input, timeout=timeout_s)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        raise


def run_in_root(
    root: Path, argv: Argv, *, env: Mapping[str, str], timeout_s: float, doing: str
) -> None:
    """Run a program whose only file system is the mount `root`; `env` is all that it sees.

    Returns when the program itself ends, whatever it leaves running. Raises as `run` does, with
    the last words of its output.
    """
    words = [os.fspath(word) for word in argv]
    try:
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            preexec_fn=lambda: linux.confine(root),
        ) as popen:
            said = _said(popen, Deadline(timeout_s))
    except subprocess.TimeoutExpired as error:
        raise _late(doing, words, timeout_s, error.output) from error
    except OSError as error:
        raise HostError(f"could not {doing}: {error.strerror}: {words[0]}") from error
    except subprocess.SubprocessError as error:  # whatever kept it from entering the root
        raise HostError(f"could not {doing}: could not enter {root}: {error}") from error
    if popen.returncode != 0:
        raise _failed(doing, words, popen.returncode, said)


def _said(popen: "subprocess.Popen[bytes]", deadline: Deadline) -> bytes:
    """Return the last of what a program writes until it ends, however much that is.

    What it leaves running keeps the pipe open and is not waited for. Raises `TimeoutExpired`.
    """
    descriptor = popen.stdout.fileno() if popen.stdout else -1
    os.set_blocking(descriptor, False)
    kept = b""
    ended = os.pidfd_open(popen.pid)
    try:
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        poller.register(descriptor, select.POLLIN)
        over = False
        while not over:
            if not (ready := dict(poller.poll(int(deadline.left() * 1000)))):
                popen.kill()
                raise subprocess.TimeoutExpired(popen.args, 0, output=kept)
            over = ended in ready  # and what it wrote before that is still to be read
            kept, more = _read_on(descriptor, kept)
            if not more and descriptor in ready:
                poller.unregister(descriptor)
    finally:
        os.close(ended)
    return kept


def _read_on(descriptor: int, kept: bytes) -> tuple[bytes, bool]:
    """Return the end of what was read with all that is there now, and whether more may come."""
    for _ in range(256):  # a program that never stops writing must not keep us here
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return kept, True
        if not data:
            return kept, False
        kept = (kept + data)[-65536:]
    return kept, True


def pipe(first: Argv, second: Argv, *, timeout_s: float, doing: str) -> None:
    """Run `first | second`. Raises as `run` does, with the last words of both."""
    import tempfile  # not on the way of a launch

    words = [[os.fspath(word) for word in argv] for argv in (first, second)]
    env = child_environment()
    with tempfile.TemporaryFile() as said:
        try:
            with subprocess.Popen(
                words[0], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=env
            ) as source:
                done = subprocess.run(
                    words[1], stdin=source.stdout, stdout=said, stderr=said, timeout=timeout_s,
                    env=env, check=False,
                )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise _late(doing, words[1], timeout_s, _tail(said)) from error
        except OSError as error:
            raise HostError(f"could not {doing}: {error.strerror}: {error.filename}") from error
        for argv, status in zip(words, (source.returncode, done.returncode), strict=True):
            if status != 0:
                raise _failed(doing, argv, status, _tail(said))


def _tail(output: IO[bytes]) -> bytes:
    output.seek(max(0, output.seek(0, os.SEEK_END) - 65536))
    return output.read()


class Process:
    """A program that runs beside us, in a process group of its own."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen
        self.pid = popen.pid
        self.pidfd = os.pidfd_open(popen.pid)
        """Becomes readable when the program ends."""

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the program's status (negative: killed by that signal), or None in time."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if poller.poll(None if timeout_s is None else int(timeout_s * 1000)):
            return self._popen.wait()
        return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group; an ended one takes none."""
        if self._popen.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def terminate(self, grace_s: float = 1.0) -> int:
        """Ask the program to end, kill it after `grace_s` seconds, and return its status."""
        self.send(signal.SIGTERM)
        status = self.wait(grace_s)
        if status is None:
            self.send(signal.SIGKILL)
            status = self._popen.wait()
        return status

    def close(self) -> None:
        """Give the pidfd back."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _companion() -> None:
    linux.die_with_parent(signal.SIGTERM)
    # virtiofsd holds a descriptor for each file that the guest knows: 1024 are soon too few.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def spawn(
    argv: Argv,
    *,
    log: Path | None = None,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    name: str | None = None,
    own_terminal: bool = False,
) -> Iterator[Process]:
    """Start a program and end it when the block is left; output not given goes to `log` or nowhere.

    It gets SIGTERM when this process is killed, so that no lock, port or disk stays taken; with
    `own_terminal` also SIGHUP, when nobody has the other end of its standard input. It may open as
    many files as we could ever. `name` is shown in the process list as its argv[0]. Raises
    `HostError` when it can't be started.
    """

    def tie() -> None:
        _companion()
        if own_terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    words = [os.fspath(word) for word in argv]
    executable = str(find_program(words[0]) or words[0])
    sink = log.open("ab") if log else None
    rest: Stream = sink if sink else subprocess.DEVNULL
    try:
        popen = subprocess.Popen(
            [name, *words[1:]] if name else words,
            executable=executable,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=rest if stdout is None else stdout,
            stderr=rest if stderr is None else stderr,
            pass_fds=pass_fds,
            env=child_environment(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=tie,
        )
    except OSError as error:
        raise HostError(f"could not start {words[0]}: {error.strerror}") from error
    finally:
        if sink:
            sink.close()
    process = Process(popen)
    try:
        yield process
    finally:
        process.terminate()
        process.close()


def become(
    argv: Argv, *, env: Mapping[str, str] | None = None, name: str | None = None
) -> NoReturn:
    """Replace this process by the program; `name` is shown in the process list as its argv[0].

    Raises `HostError` when it can't be started.
    """
    words = [os.fspath(word) for word in argv]
    shown = [name, *words[1:]] if name else words
    try:
        os.execve(words[0], shown, child_environment(env))  # noqa: S606
    except OSError as error:
        raise HostError(f"could not start {words[0]}: {error.strerror}") from error
