"""Every example runs as its page says, through the command line, on a real guest."""

import json
import os
import re
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200), pytest.mark.usefixtures("leftovers")]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(tmp_path):
    """A copy of an example, as a user makes one."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(EXAMPLES / name, tmp_path / name))

    return copy


@pytest.fixture
def virtiofsd(tool):
    for place in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"):
        if Path(place).exists():
            return place
    return tool("virtiofsd")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_hello_greets_and_shuts_down_cleanly(microvm_cli):
    ran = microvm_cli("run", "--until-up", "examples#hello", timeout=500)
    assert ran.returncode == 0, ran.stderr
    assert "hello is up: Debian 13 (trixie)" in ran.stdout
    assert "booted in" in ran.stdout
    assert "Power down" in ran.stdout
    assert "systemd-journald" not in ran.stdout


def test_a_job_has_its_own_output_input_and_status(microvm_cli):
    ran = microvm_cli(
        "run", "examples#hello", "--", "sh", "-c", "tr a-z A-Z; echo e >&2; exit 9",
        timeout=500, input=b"text\0bytes",
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (9, "TEXT\0BYTES")
    assert ran.stderr.endswith("e\n")


def test_an_ordinary_user_builds_and_runs(user_cli):
    ran = user_cli("run", "examples#hello", "--", "hostname", timeout=500)
    assert (ran.returncode, ran.stdout) == (0, "hello\n"), ran.stderr
    assert user_cli("store", "verify").returncode == 0
    assert user_cli("store", "gc").returncode == 0
    if Path("/dev/kvm").exists() and not user_cli.may_write("/dev/kvm"):
        forced = user_cli("run", "examples#hello", "--set", 'accel="kvm"', timeout=500)
        assert forced.returncode == 4
        assert "no permission on /dev/kvm" in forced.stderr
        assert "usermod -aG kvm" in forced.stderr


def test_build_box_compiles_a_directory_of_the_host(microvm_cli, example, virtiofsd):
    project = example("build-box")
    ran = microvm_cli("run", "--ephemeral", str(project), "--", "make", timeout=500)
    assert ran.returncode == 0, ran.stderr
    assert (project / "src/hello").stat().st_mode & 0o111
    # Nothing of the machine stays, neither its state nor what would keep its runner in the store.
    assert list(Path(microvm_cli.env["XDG_STATE_HOME"]).glob("microvm/build-box-*/*")) == []
    assert list(Path(microvm_cli.env["TMPDIR"]).glob("microvm-*")) == []


def test_shares_reach_both_ways_over_both_protocols(microvm_cli, example, virtiofsd):
    project = example("shares")
    (project / "shared").chmod(0o777)
    script = "cat /9p/from-the-host && echo from the guest >/virtiofs/note && cat /9p/note"
    ran = microvm_cli("run", str(project), "--", "sh", "-c", script, timeout=500)
    assert ran.stdout == "A file of the host.\nfrom the guest\n", ran.stderr
    assert (project / "shared/note").read_text() == "from the guest\n"


@pytest.mark.parametrize("proto", ["virtiofs", "9p"])
def test_imageless_roots_have_the_guests_owners(microvm_cli, proto, request):
    if proto == "virtiofs":
        request.getfixturevalue("virtiofsd")
    script = "stat -c '%u:%g %a' / /usr/bin/su /var/lib/systemd/network; find / -xdev -uid +1000"
    ran = microvm_cli("run", f"examples#imageless-{proto}", "--", "sh", "-c", script, timeout=500)
    assert ran.stdout == "0:0 755\n0:0 4755\n998:998 755\n", ran.stderr


def test_python_declares_three(microvm_cli):
    checked = microvm_cli("check", "examples#python-2")
    assert "python-1, python-2, python-3" in checked.stdout
    ran = microvm_cli("run", "examples#python-3", "--", "cat", "/etc/motd", timeout=500)
    assert ran.stdout == "This is number 3 of three.\n"


def test_web_serves_a_page_that_stays_on_its_volume(microvm_cli, example):
    project = example("web")
    port = free_port()
    process = microvm_cli.start("run", str(project), "--set", f"forward_ports.0.host.port={port}")
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    os.set_blocking(process.stdout.fileno(), False)
    page = b""
    deadline = time.monotonic() + 400
    while not page and time.monotonic() < deadline and process.poll() is None:
        try:
            page = plain.open(f"http://127.0.0.1:{port}/", timeout=20).read()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        process.stdout.read()  # keeps the pipe from filling up
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=150)
    assert b"Hello from a MicroVM" in page
    assert process.returncode == 143
    images = list(Path(microvm_cli.env["XDG_STATE_HOME"]).rglob("www.img"))
    assert len(images) == 1
    assert images[0].stat().st_blocks * 512 < 64 << 20  # sparse


def test_a_second_run_of_one_machine_is_refused(microvm_cli):
    process = microvm_cli.start("run", "examples#hello")
    state = Path(microvm_cli.env["XDG_STATE_HOME"])
    try:
        deadline = time.monotonic() + 300
        while f"{process.pid}\n" not in [path.read_text() for path in state.rglob("hello/lock")]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = microvm_cli("run", "examples#hello", timeout=120)
        assert second.returncode == 5
        assert "running already" in second.stderr
    finally:
        process.terminate()
        process.communicate(timeout=150)


def test_a_guest_that_is_not_up_in_time_shows_the_end_of_its_console(microvm_cli):
    ran = microvm_cli("run", "--boot-timeout", "1", "--until-up", "examples#hello", timeout=500)
    assert ran.returncode == 1
    assert "was not up within 1 s\n  give it more time, by --boot-timeout" in ran.stderr


def test_a_root_that_is_missing_is_told_in_one_line(microvm_cli, tmp_path):
    declared = tmp_path / "microvm.toml"
    declared.write_text("[microvms.broken]\n")
    assert microvm_cli("build", str(tmp_path), timeout=500).returncode == 0
    argv = json.loads(microvm_cli("plan", "--json", str(tmp_path)).stdout)["argv"]
    line = re.sub(r"erofs:[0-9a-f]{8}", "erofs:00000000", argv[argv.index("-append") + 1])
    # Of two kernel command lines qemu takes the last.
    declared.write_text(f"[microvms.broken.qemu]\nextra_args = {json.dumps(['-append', line])}\n")
    ran = microvm_cli("run", "--until-up", str(tmp_path), timeout=300)
    assert ran.returncode == 1
    assert "no read-only disk has the UUID 00000000" in ran.stderr
