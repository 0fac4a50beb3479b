"""A build that is killed, starved of space or hostile leaves the store and the host whole.

Each test drives the real command line as a process, on a store that already has the base layer,
so that one build is the small, frequent kind: a changed configuration.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = """
[microvms.small]
system.files."/etc/marker".text = "{text}"
"""


def declare(directory: Path, text: str, extra: str = "") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "microvm.toml").write_text(PROJECT.format(text=text) + extra)
    return directory


def build_processes(store: Path) -> list[str]:
    """Processes whose command line or mounts name the store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            cmdline = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            mounts = (entry / "mounts").read_text()
        except OSError:
            continue
        if int(entry.name) != os.getpid() and (str(store) in cmdline or str(store) in mounts):
            found.append(f"{entry.name} {cmdline}")
    return found


def settled(store: Path, within_s: float = 5.0) -> list[str]:
    """Wait for the kernel to end what a killed build had started; return what is still there."""
    deadline = time.monotonic() + within_s
    while (left := build_processes(store)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def host_state() -> tuple[str, str]:
    return Path("/proc/sys/kernel/core_pattern").read_text(), Path("/proc/mounts").read_text()


@pytest.fixture(scope="module")
def base(microvm_cli, guest_store, tmp_path_factory):
    """A project whose base layer is built, and its lock."""
    directory = declare(tmp_path_factory.mktemp("faults") / "project", "first")
    result = microvm_cli("build", str(directory), timeout=600)
    assert result.returncode == 0, result.stderr
    return directory


def test_a_build_killed_at_any_moment_leaves_a_clean_store_and_can_be_repeated(
    base, microvm_cli, guest_store
):
    declare(base, "how long")
    began = time.monotonic()
    assert microvm_cli("build", str(base)).returncode == 0
    length_s = time.monotonic() - began
    generator = random.Random(1)
    for number in range(50):
        declare(base, f"killed {number}")
        process = microvm_cli.start("build", str(base))
        time.sleep(generator.uniform(0, length_s))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert settled(guest_store) == [], f"left after kill {number}"
        if number % 10 == 9:
            verified = microvm_cli("store", "verify")
            assert verified.returncode == 0, verified.stdout + verified.stderr
    again = microvm_cli("build", str(base))
    assert again.returncode == 0, again.stderr
    collected = microvm_cli("store", "gc", "--dry-run", "--json")
    assert collected.returncode == 0
    assert str(guest_store) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("call", ["rename,renameat,renameat2", "fsync,fdatasync,syncfs", "mkdir"])
def test_a_build_killed_at_each_system_call_of_our_own_process_can_be_repeated(
    base, microvm_cli, guest_store, call, tool
):
    strace = tool("strace")
    for number in range(1, 40):
        declare(base, f"{call} {number}")
        result = subprocess.run(
            [
                strace, "-o", "/dev/null", "-e", f"trace={call}",
                "-e", f"inject={call}:signal=SIGKILL:when={number}",
                *microvm_cli.command("build", str(base)),
            ],
            capture_output=True,
            timeout=120,
            env=microvm_cli.env,
        )  # fmt: skip
        assert settled(guest_store) == []
        if result.returncode == 0:
            break  # fewer calls than that
        assert microvm_cli("store", "verify").returncode == 0
        assert microvm_cli("build", str(base)).returncode == 0
    else:
        pytest.fail("the build makes more calls than the test tries")


def test_commands_of_a_project_reach_no_server_and_no_file_of_the_host(
    base, microvm_cli, free_port, tmp_path
):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    secret.chmod(0o644)
    server = subprocess.Popen(
        ["python3", "-m", "http.server", "--bind", "127.0.0.1", str(free_port)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        extra = f"""
system.run = [
  "! perl -MSocket -e 'socket S,2,1,0; exit !connect S, sockaddr_in {free_port}, INADDR_LOOPBACK'",
  "! cat {secret}",
  "! touch {tmp_path}/written",
  "! mount -t proc proc /mnt || ! cat /mnt/1/root{secret}",
  "mknod /tmp/sda b 8 0 && exit 1 || true",
  "echo x > /proc/sys/kernel/core_pattern && exit 1 || true",
  "kill -9 -1 || true",
]
"""
        directory = declare(tmp_path / "hostile", "hostile", extra)
        before = host_state()
        result = microvm_cli("build", str(directory), timeout=300)
        assert host_state() == before
        assert server.poll() is None
        assert not (tmp_path / "written").exists()
        assert "Traceback" not in result.stderr
    finally:
        server.terminate()
        server.wait()
