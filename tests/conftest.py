"""Fixtures that tests of every kind share: the command line as a process, a store, tools."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SBIN = os.pathsep.join(("/usr/sbin", "/sbin"))

# A shell's background job and nohup start us with these ignored, and so would every child of ours.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


class CommandLine:
    """Runs `microvm` as a user does: as a process of its own."""

    def __init__(self, store: Path, home: Path) -> None:
        self.store = store
        self.program = Path(sys.executable).with_name("microvm")
        self.env: Mapping[str, str] = {
            **os.environ,
            "MICROVM_STORE": str(store),
            "XDG_STATE_HOME": str(home / "state"),
            "TMPDIR": str(home),
            "TERM": "dumb",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), *arguments]

    def __call__(
        self,
        *arguments: str,
        timeout: float = 300,
        cwd: Path | None = None,
        input: bytes = b"",
        extra: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            self.command(*arguments),
            env={**self.env, **(extra or {})},
            cwd=cwd,
            input=input,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )
        self._started.append(process)
        return process

    def end_all(self) -> None:
        """End what a failed test left running, so that it disturbs no other."""
        while self._started:
            process = self._started.pop()
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture(scope="session")
def guest_store(tmp_path_factory) -> Path:
    """A store that tests share: a base layer is built once."""
    named = os.environ.get("MICROVM_TEST_STORE")
    return Path(named) if named else tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def mirror() -> str | None:
    """The Debian mirror to build guests from; None leaves the choice to mmdebstrap."""
    return os.environ.get("MICROVM_TEST_MIRROR")


@pytest.fixture(scope="session")
def microvm_cli(guest_store, tmp_path_factory) -> CommandLine:
    return CommandLine(guest_store, tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def no_process_outlives_its_test(microvm_cli) -> Iterator[None]:
    yield
    microvm_cli.end_all()


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def tool():
    """Return a program's path, or skip with its name."""

    def find(name: str) -> str:
        found = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], SBIN)))
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find


@pytest.fixture
def leftovers(microvm_cli) -> Iterator[None]:
    """Fail when a test leaves a VMM behind."""
    yield
    left = _vmms(microvm_cli.env["TMPDIR"])
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a VMM was left running"


def _vmms(home: str) -> set[int]:
    """Return the processes that run in a state directory of these tests."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            place = str(entry.readlink())
        except OSError:
            continue
        if place.startswith(home):
            found.add(int(entry.parent.name))
    return found


def pytest_terminal_summary(terminalreporter) -> None:
    """End with what was skipped and why, so that nobody takes it for tested."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    terminalreporter.section("what was skipped and why")
    for reason, tests in sorted(reasons.items()):
        terminalreporter.line(f"{reason}: {', '.join(sorted(set(tests)))}")
    if not reasons:
        terminalreporter.line("nothing")
