"""A newcomer's first commands, on machines that have apt's base, git and make and no more.

The tests of one machine are a story: each goes on where the one before it stopped.
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.fresh, pytest.mark.timeout(10800)]
BUNDLE = "/etc/test-certificates.pem"
"""Certificates of this host, where it has ones of its own; a package's update can't take them."""
CLONE = "/root/microvm"
ODD = "/srv/a checkout & more"
PERSON = {
    "passwd": "ann:x:1000:1000:Ann:/home/ann:/bin/bash\n",
    "group": "ann:x:1000:\n",
    "shadow": "ann:!:20000:0:99999:7:::\n",
}
"""A base has no useradd: what that would add."""
NO_SETTINGS = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")


class Machine:
    """A container made of a Debian root, with a clean clone of this repository in it."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root = root
        self._logs = logs
        self._count = 0

    def run(
        self, *command: str, timeout: float, place: str = CLONE, options: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """Run in a clone; return the exit status and all that was said."""
        with self.started(*command, place=place, options=options) as (process, log):
            process.wait(timeout)
        return process.returncode, log.read_text(errors="replace")

    @contextmanager
    def started(
        self, *command: str, place: str = CLONE, options: tuple[str, ...] = ()
    ) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """Start it; yields the process and the file that takes what is said."""
        self._count += 1
        log = self._logs / f"{self.root.name}-{self._count}.log"
        argv = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2",
            f"--machine=microvm-test-{os.getpid()}", f"--directory={self.root}",
            "--capability=all", "--system-call-filter=@known", f"--chdir={place}",
            "--resolv-conf=copy-host", "--console=pipe", "--timezone=off",
            *_devices(), *self._environment(), *options, *command,
        ]  # fmt: skip
        print(f"\n{self.root.name}: {' '.join(command)}, output in {log}", flush=True)
        began = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.terminate()  # systemd-nspawn ends its container
            process.wait(60)
            print(f"{self.root.name}: took {time.monotonic() - began:.0f} s", flush=True)

    def clone(self, place: str, owner: int = 0) -> None:
        """Make a clean clone: what is committed is what a newcomer gets."""
        where = self.root / place.lstrip("/")
        where.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(where)], check=True
        )
        subprocess.run(["chown", "-R", f"{owner}:{owner}", str(where.parent)], check=True)

    def _environment(self) -> list[str]:
        """What pip and apt need on this network, as the host's own environment has it."""
        said = []
        bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
        if bundle:
            shutil.copyfile(bundle, self.root / BUNDLE.lstrip("/"))
            said += [f"--setenv={name}={BUNDLE}" for name in ("PIP_CERT", "SSL_CERT_FILE")]
        if Path("/etc/pip.conf").exists():
            shutil.copyfile("/etc/pip.conf", self.root / "etc/pip.conf")
        for name in ("MICROVM_TEST_MIRROR", "PIP_INDEX_URL", "http_proxy", "https_proxy"):
            if value := os.environ.get(name):
                said.append(f"--setenv={name}={value}")
        return said


def _devices() -> list[str]:
    """What a real machine has and a container has not."""
    wanted = [Path("/dev/net/tun"), Path("/dev/fuse"), *Path("/dev").glob("loop*")]
    return [f"--bind={path}" for path in wanted if path.exists()]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock as apt and dpkg do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request, tmp_path_factory):
    release = request.param
    if os.geteuid() != 0:
        pytest.skip("containers of whole machines need root")
    for name in ("systemd-nspawn", "mmdebstrap"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    place = tmp_path_factory.mktemp("fresh")
    root = place / release
    command = ["mmdebstrap", "--quiet", "--variant=apt", "--include=git,make", release, str(root)]
    if mirror := os.environ.get("MICROVM_TEST_MIRROR"):
        command.append(mirror)
    subprocess.run(command, check=True, timeout=1200)
    made = Machine(root, place)
    made.clone(CLONE)
    for table, line in PERSON.items():
        path = root / "etc" / table
        if path.exists():  # Debian 13's base has no shadow; the package that brings it fills it
            path.write_text(path.read_text() + line)
    made.clone("/home/ann/microvm", owner=1000)
    yield made
    shutil.rmtree(root)


ANN = {"place": "/home/ann/microvm", "options": ("--user=ann",)}


def test_who_may_not_install_is_told_the_one_command_to_type(machine):
    status, said = machine.run("make", "run", timeout=60, **ANN)
    assert status != 0
    assert "Error 1" in said  # the script's own status; make has 2 for every failure
    [line] = [line for line in said.splitlines() if "apt-get" in line]
    assert line.strip().startswith("su - -c 'apt-get update && apt-get install")
    assert " mmdebstrap " in line
    assert not (machine.root / "home/ann/microvm/.venv").exists()


def test_make_run_boots_the_first_example(machine):
    status, said = machine.run("make", "run", timeout=3600)
    assert status == 0, said[-8000:]
    assert "hello is up: Debian" in said
    assert "built in" in said


def test_set_up_is_quick_when_nothing_is_missing(machine):
    began = time.monotonic()
    status, said = machine.run("make", "setup", timeout=300)
    assert status == 0, said
    assert "setup:" not in said
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("harm", ["half made", "copied", "another Python"])
def test_an_environment_that_is_a_ruin_is_made_anew(machine, harm):
    venv = machine.root / CLONE.lstrip("/") / ".venv"
    if harm == "half made":
        (venv / ".complete").unlink()
        shutil.rmtree(next(venv.glob("lib/python3*/site-packages/pip")))
    elif harm == "copied":
        (venv / ".complete").write_text("/elsewhere\n")
    else:
        library = next(venv.glob("lib/python3*"))
        library.rename(library.with_name("python3.1"))
    status, said = machine.run("make", "setup", timeout=1200)
    assert status == 0, said
    assert "setup: making .venv" in said
    assert machine.run(".venv/bin/pytest", "--version", timeout=60)[0] == 0
    assert not (venv / "lib/python3.1").exists()


def test_a_package_manager_that_is_busy_is_waited_for_or_told(machine):
    assert machine.run("dpkg", "--purge", "strace", timeout=60)[0] == 0
    with _held(machine.root / "var/lib/apt/lists/lock"):
        status, said = machine.run("make", "setup", timeout=300)
    assert status != 0
    assert "Could not get lock" in said
    assert "setup: apt-get failed; its words are above. If something else installs" in said
    with (
        _held(machine.root / "var/lib/dpkg/lock-frontend"),
        machine.started("make", "setup") as (process, log),
    ):
        deadline = time.monotonic() + 120
        while "lock-frontend" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert process.poll() is None
    # It waited, and both are gone now.
    status, said = machine.run("make", "setup", timeout=300)
    assert status == 0, said
    assert (machine.root / "usr/bin/strace").exists()


def test_no_settings_a_strict_umask_and_an_odd_path_do_no_harm(machine):
    """No HOME, TERM, LANG, USER; a store of its own, so that all is built under this umask."""
    machine.clone(f"{ODD}/microvm")
    strict = ("sh", "-c", 'umask 077 && exec "$@"', "sh")
    needed = [word.removeprefix("--setenv=") for word in machine._environment()]
    settings = (*NO_SETTINGS, *needed, f"MICROVM_STORE={ODD}/store", "LC_ALL=xx_XX")
    status, said = machine.run(
        *strict, *settings, "make", "run", timeout=3600, place=f"{ODD}/microvm"
    )
    assert status == 0, said[-8000:]
    assert "hello is up: Debian" in said


def test_an_ordinary_user_boots_it_too_given_sub_uids(machine):
    status, said = machine.run("make", "run", timeout=1200, **ANN)
    assert status != 0
    assert "Traceback" not in said
    assert "subuid" in said
    for name in ("subuid", "subgid"):
        with (machine.root / "etc" / name).open("a") as ranges:
            ranges.write("ann:100000:65536\n")
    status, said = machine.run("make", "run", timeout=3600, **ANN)
    assert status == 0, said[-8000:]
    assert "hello is up: Debian" in said


def test_make_test_passes_and_tells_what_was_skipped(machine):
    user = ("--setenv=MICROVM_TEST_USER=ann",)
    status, said = machine.run("make", "test", timeout=10000, options=user)
    assert status == 0, said[-12000:]
    passed, _, skipped = said.rpartition("what was skipped and why")
    assert " passed" in passed + skipped
    # Set-up installs every program of Debian's that a test needs, but no shells.
    assert "is not installed" not in skipped.replace("fish is not installed", "")
    print(skipped)
