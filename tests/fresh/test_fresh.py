"""A newcomer's first two commands, on machines that have apt's base, git and make and no more."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.fresh, pytest.mark.timeout(7200)]
BUNDLE = "/etc/test-certificates.pem"
"""Certificates of this host, where it has ones of its own; a package's update can't take them."""


class Machine:
    """A container made of a Debian root, with a clean clone of this repository in it."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root = root
        self._logs = logs

    def run(self, *command: str, timeout: float) -> tuple[int, str]:
        """Run in the clone; return the exit status and all that was said."""
        log = self._logs / f"{self.root.name}-{command[-1]}.log"
        argv = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2",
            f"--directory={self.root}", "--capability=all", "--system-call-filter=@known",
            "--chdir=/root/microvm", "--resolv-conf=copy-host", "--console=pipe", "--timezone=off",
            *_devices(), *self._environment(), *command,
        ]  # fmt: skip
        with log.open("wb") as file:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=timeout,
                check=False,
            )
        return done.returncode, log.read_text(errors="replace")

    def _environment(self) -> list[str]:
        """What pip and apt need on this network, as the host's own environment has it."""
        said = ["--setenv=LC_ALL=C.UTF-8"]
        bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
        if bundle:
            shutil.copyfile(bundle, self.root / BUNDLE.lstrip("/"))
            said += [f"--setenv={name}={BUNDLE}" for name in ("PIP_CERT", "SSL_CERT_FILE")]
        if Path("/etc/pip.conf").exists():
            said += ["--setenv=PIP_CONFIG_FILE=/etc/test-pip.conf"]
            shutil.copyfile("/etc/pip.conf", self.root / "etc/test-pip.conf")
        for name in ("MICROVM_TEST_MIRROR", "PIP_INDEX_URL", "http_proxy", "https_proxy"):
            if value := os.environ.get(name):
                said.append(f"--setenv={name}={value}")
        return said


def _devices() -> list[str]:
    return [f"--bind={path}" for path in ("/dev/net/tun", "/dev/fuse") if Path(path).exists()]


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request, tool, tmp_path_factory):
    release = request.param
    if os.geteuid() != 0:
        pytest.skip("containers of whole machines need root")
    nspawn, bootstrap = tool("systemd-nspawn"), tool("mmdebstrap")
    assert nspawn
    place = tmp_path_factory.mktemp("fresh")
    root = place / release
    command = [bootstrap, "--quiet", "--variant=apt", "--include=git,make", release, str(root)]
    if mirror := os.environ.get("MICROVM_TEST_MIRROR"):
        command.append(mirror)
    subprocess.run(command, check=True, timeout=1200)
    subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(root / "root/microvm")],
        check=True,
    )
    # Files of nobody's repository: what is committed is what a newcomer gets.
    yield Machine(root, place)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def tool():
    def find(name: str) -> str:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find


def test_make_run_boots_the_first_example(machine):
    status, said = machine.run("make", "run", timeout=2400)
    assert status == 0, said[-8000:]
    assert "hello is up: Debian" in said
    assert "built in" in said


def test_make_test_passes_and_tells_what_was_skipped(machine):
    status, said = machine.run("make", "test", timeout=4800)
    assert status == 0, said[-12000:]
    assert "what was skipped and why" in said
