"""Running machines: bad luck, other people's hands, and the runner's own scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200), pytest.mark.usefixtures("leftovers")]
SHARED = """[microvms.box]
[[microvms.box.shares]]
tag = "out"
source = "out"
mount_point = "/out"
proto = "virtiofs"
"""


@pytest.fixture
def project(tmp_path):
    """Write a project of one MicroVM."""

    def write(text, name="project"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "out").mkdir(exist_ok=True, mode=0o777)
        (directory / "microvm.toml").write_text(text)
        return directory

    return write


@pytest.fixture
def virtiofsd(tool):
    if not Path("/usr/libexec/virtiofsd").exists() and not Path("/usr/lib/qemu/virtiofsd").exists():
        tool("virtiofsd")


def _until(condition, within_s=200):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _environment(microvm_cli, **more):
    """Ours, with microvm-launch on PATH as an installation has it."""
    path = f"{microvm_cli.program.parent}:{os.environ['PATH']}"
    return {**microvm_cli.env, "PATH": path, **more}


def _script(runner, name, *arguments, cwd, env):
    return subprocess.Popen(
        [str(runner / "bin" / name), *arguments], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _build(microvm_cli, project, *options):
    built = microvm_cli("build", str(project), *options, timeout=500)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


def test_the_runners_scripts_reach_a_machine_that_a_terminal_holds(microvm_cli, project):
    place = project("[microvms.box]\nballoon = true\nmem = 512\n")
    runner = _build(microvm_cli, place)
    env = _environment(microvm_cli)
    held = microvm_cli.start("run", str(place))
    os.set_blocking(held.stdout.fileno(), False)
    seen = b""
    try:
        _until(lambda: list(Path(microvm_cli.env["XDG_STATE_HOME"]).rglob("box/qmp.sock")))
        [socket] = Path(microvm_cli.env["XDG_STATE_HOME"]).rglob("box/qmp.sock")
        deadline = time.monotonic() + 200
        while b"is up" not in seen and time.monotonic() < deadline:
            seen += held.stdout.read() or b""
            time.sleep(0.1)
        balloon = _script(runner, "microvm-balloon", "400", cwd=socket.parent, env=env)
        assert balloon.communicate(timeout=120)[0] == b""
        assert balloon.returncode == 0
        ended = _script(runner, "microvm-shutdown", cwd=socket.parent, env=env)
        said = ended.communicate(timeout=120)[0]
        assert ended.returncode == 0
        assert b"the guest powered off" in said
        held.wait(120)
        assert held.returncode == 0
    finally:
        held.kill()
        held.communicate()


def test_a_state_directory_may_have_a_long_name(microvm_cli, project, tmp_path):
    place = project("[microvms.box]\n")
    state = tmp_path / ("long" * 30) / ("name" * 30)
    extra = {"XDG_STATE_HOME": str(state)}
    ran = microvm_cli("run", str(place), "--", "echo", "it", "runs", timeout=300, extra=extra)
    assert (ran.returncode, ran.stdout) == (0, "it runs\n"), ran.stderr


def test_a_helper_that_dies_ends_the_run_with_its_last_words(microvm_cli, project, virtiofsd):
    text = SHARED + 'extra_args = ["--no-such-option"]\n'
    began = time.monotonic()
    ran = microvm_cli("run", str(project(text)), "--", "true", timeout=300)
    assert ran.returncode == 125
    assert "virtiofsd-out ended with status" in ran.stderr
    assert "no-such-option" in ran.stderr
    assert time.monotonic() - began < 250


def test_a_reader_that_goes_away_ends_the_run(microvm_cli):
    process = microvm_cli.start("run", "examples#hello", "--", "yes")
    process.stdout.read(4)
    process.stdout.close()
    assert process.wait(120) == 141


def test_a_slow_reader_gets_every_byte_of_much_output(microvm_cli):
    microvm_cli("build", "examples#hello", timeout=500)  # and nothing to tell when it runs
    script = "perl -e 'print pack(q(N), $_) for 1 .. 2000000'; exit 7"
    process = microvm_cli.start("run", "examples#hello", "--", "sh", "-c", script)
    output = b""
    with process.stdout:
        while piece := process.stdout.read(100_000):
            output += piece
            time.sleep(0.1)
    assert process.wait(200) == 7
    assert output == b"".join(number.to_bytes(4, "big") for number in range(1, 2000001))


@pytest.mark.parametrize("stderr", [subprocess.STDOUT, subprocess.PIPE])
def test_a_reader_that_stops_does_not_outlast_the_time_limit(stderr, microvm_cli):
    words = ("run", "--timeout", "40", "examples#hello", "--", "yes")
    process = microvm_cli.start(*words, stderr=stderr)
    began = time.monotonic()
    assert process.wait(200) == 124
    if process.stderr:  # else the message finds no room in the pipe either
        assert process.stderr.read().endswith(b"microvm: the time limit is over\n")
        process.stderr.close()
    assert time.monotonic() - began < 190
    process.stdout.close()


def test_a_job_runs_without_any_console(microvm_cli, project):
    text = "[microvms.box.qemu]\nserial_console = false\n"
    ran = microvm_cli("run", str(project(text)), "--", "cat", "/proc/consoles", timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "ttyS0" not in ran.stdout


def test_without_a_console_nothing_tells_that_it_is_up(microvm_cli, project):
    text = "[microvms.box.qemu]\nserial_console = false\n"
    ran = microvm_cli("run", "--until-up", str(project(text)), timeout=300)
    assert ran.returncode == 3
    assert "qemu.serial_console" in ran.stderr


def test_a_guest_that_does_not_shut_down_in_its_time_is_told(microvm_cli):
    ran = microvm_cli("run", "--stop-timeout", "0.1", "--until-up", "examples#hello", timeout=500)
    assert ran.returncode == 1
    assert "the guest did not shut down within 0.1 s and was killed" in ran.stderr


def test_a_panic_is_told_as_one(microvm_cli):
    crash = "echo c >/proc/sysrq-trigger"
    ran = microvm_cli("run", "examples#hello", "--", "sh", "-c", crash, timeout=300)
    assert ran.returncode == 125
    assert "the guest's kernel panicked" in ran.stderr
    assert "sysrq" in ran.stderr
    assert "microvm: accelerator " in ran.stderr  # what a job that works is not told


def test_a_served_share_outlives_its_vmms(microvm_cli, project, virtiofsd, tmp_path):
    place = project(SHARED + '[microvms.box.system.units."note.service"]\ntext = """\n[Unit]\n'
        'RequiresMountsFor=/out\n[Service]\nType=oneshot\nExecStart=sh -c "echo life >>/out/note"\n'
        'ExecStartPost=systemctl poweroff\n[Install]\nWantedBy=multi-user.target\n"""\n')  # fmt: skip
    runner = _build(microvm_cli, place)
    state = tmp_path / "state"
    state.mkdir()
    env = _environment(microvm_cli, MICROVM_PROJECT=str(place))
    serving = _script(runner, "virtiofsd-run", cwd=state, env=env)
    try:
        _until(lambda: (state / "virtiofs-out.sock").exists(), within_s=120)
        for life in (1, 2):
            machine = _script(runner, "microvm-run", cwd=state, env=env)
            said = machine.communicate(timeout=200)[0]
            assert machine.returncode == 0, said[-2000:]
            assert (place / "out/note").read_text() == "life\n" * life
        second = _script(runner, "virtiofsd-run", cwd=state, env=env)
        assert b"served by another process" in second.communicate(timeout=120)[0]
        assert second.returncode == 5
    finally:
        serving.send_signal(signal.SIGTERM)
        said = serving.communicate(timeout=120)[0]
    assert (serving.returncode, said) == (0, b"")
    # And without: the helper is started with the VMM, and ends with it.
    machine = _script(runner, "microvm-run", cwd=state, env=env)
    said = machine.communicate(timeout=200)[0]
    assert machine.returncode == 0, said[-2000:]
    assert (place / "out/note").read_text() == "life\n" * 3


def test_the_runners_script_serves_layers_with_the_guests_owners(microvm_cli, project, tmp_path):
    place = project("[microvms.box]\nstore_on_disk = false\nstore_proto = '9p'\n"
        '[microvms.box.system.units."tell.service"]\ntext = """\n[Service]\nType=oneshot\n'
        'ExecStart=sh -c "stat -c owner-%%u-%%g-%%a /usr/bin/su >/dev/console"\n'
        'ExecStartPost=systemctl poweroff\n[Install]\nWantedBy=multi-user.target\n"""\n')  # fmt: skip
    runner = _build(microvm_cli, place)
    state = tmp_path / "state"
    state.mkdir()
    machine = _script(runner, "microvm-run", cwd=state, env=_environment(microvm_cli))
    said = machine.communicate(timeout=300)[0]
    assert machine.returncode == 0, said[-2000:]
    assert b"owner-0-0-4755" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="taps need root")
def test_taps_made_before_are_used_and_foreign_ones_refused(microvm_cli, project, tmp_path, tool):
    if not Path("/dev/net/tun").exists():
        pytest.skip("/dev/net/tun is missing")
    ip, unshare = tool("ip"), tool("unshare")
    place = project('[microvms.box]\n[[microvms.box.interfaces]]\ntype = "tap"\nid = "mvtest0"\n'
        '[microvms.box.system.units."end.service"]\ntext = """\n[Service]\nType=oneshot\n'
        'ExecStart=systemctl poweroff\n[Install]\nWantedBy=multi-user.target\n"""\n')  # fmt: skip
    runner = _build(microvm_cli, place)
    state = tmp_path / "state"
    state.mkdir()
    script = f"""set -e
    {ip} tuntap add mvtest0 mode tap
    if {runner}/bin/microvm-run; then exit 90; fi
    {ip} link delete mvtest0
    {runner}/bin/tap-up
    {runner}/bin/microvm-run
    {ip} link show mvtest0
    {runner}/bin/microvm-run
    {runner}/bin/tap-down
    if {ip} link show mvtest0; then exit 91; fi
    """
    ran = subprocess.run(
        [unshare, "-n", "sh", "-c", script], cwd=state, env=_environment(microvm_cli),
        capture_output=True, timeout=400, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout[-2000:], ran.stderr[-2000:])
    assert b"exists already" in ran.stderr
