"""Fixtures that tests of every kind share: the command line as a process, a store, tools."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CommandLine, UserCommandLine, copy_program

# Stores and disks of guests: where /tmp is in memory, as on Debian 13, they would not fit.
if "TMPDIR" not in os.environ:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/var/tmp")

SBIN = os.pathsep.join(("/usr/sbin", "/sbin"))

# A shell's background job and nohup start us with these ignored, and so would every child of ours.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


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


@pytest.fixture(scope="session")
def user_cli(guest_store) -> Iterator[UserCommandLine]:
    """The command line of the user that MICROVM_TEST_USER names; `.ci/run` makes one."""
    name = os.environ.get("MICROVM_TEST_USER", "")
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    tables = [path for path in map(Path, ("/etc/subuid", "/etc/subgid")) if path.exists()]
    if not name or not all(f"{name}:" in table.read_text() for table in tables) or not tables:
        pytest.skip("MICROVM_TEST_USER names no user with sub-uids")
    # By another program than ours, which a test may find broken.
    trial = ["runuser", "-u", name, "--", "unshare", "--user", "--map-auto", "--map-root-user"]
    tried = subprocess.run([*trial, "true"], capture_output=True, text=True, cwd="/", check=False)
    if tried.returncode != 0:
        pytest.skip(f"no user namespaces for ordinary users here: {tried.stderr.strip()}")
    if _system_python() != sys.version_info[:2]:
        pytest.skip("/usr/bin/python3 is not the version that the packages are for")
    # Not in its home: what a killed run leaves there would stay.
    home = Path(tempfile.mkdtemp(prefix="microvm-test-user-", dir="/var/tmp"))
    try:
        copy_program(home / "lib")
        packages = home / "store/.packages"
        packages.mkdir(parents=True)
        for package in (guest_store / ".packages").glob("*.deb"):
            shutil.copyfile(package, packages / package.name)
        cli = UserCommandLine(name, home)
        cli.own(home)
        yield cli
    finally:
        shutil.rmtree(home)


def _system_python() -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(map(int, done.stdout.split()))


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
def new_devices() -> None:
    """Skip where the nodes of devices that appear do not: a container's /dev is a mere tmpfs."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    if not any(place == "/dev" and kind == "devtmpfs" for _, place, kind, *_ in mounts):
        pytest.skip("/dev is no devtmpfs: no macvtap's device appears there")


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
