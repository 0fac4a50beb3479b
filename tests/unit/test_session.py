"""A session with a VMM that is a program of the test's: it has a console, and a control socket."""

import sys
import textwrap

import pytest

from microvm.launch import session, shutdown
from microvm.launch.session import Goal, Session
from microvm.model.plan import JobEnd, LaunchPlan

VMM = """
import os, socket, sys, time
def say(text): os.write(1, text.encode())
def served(times):
    "Answer requests with 204; return after so many of them."
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("api.sock")
    listener.listen(8)
    while times:
        connection, _ = listener.accept()
        with connection:
            if not connection.recv(1, socket.MSG_PEEK):
                continue
            data = b""
            while b"\\r\\n\\r\\n" not in data:
                data += connection.recv(4096)
            if b"Content-Length" in data:
                while not data.endswith(b"}"):
                    data += connection.recv(4096)
            connection.sendall(b"HTTP/1.1 204 \\r\\n\\r\\n")
            times -= 1
UP, OFF = "\\x1b]6977;up\\x07", "\\x1b]6977;ending;poweroff\\x07"
"""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Run a session with a VMM that does this, and return how it ended."""
    monkeypatch.setattr(shutdown, "AGAIN_S", 0.5)
    monkeypatch.setattr(session, "PANIC_GRACE_S", 0.5)

    def run(code, kind="firecracker", *, met=None, **goal):
        plan = LaunchPlan(
            name="vm", hypervisor=kind, process_name=None, control="api.sock", watch="api.sock",
            job=met, argv=(sys.executable, "-c", VMM + textwrap.dedent(code)),
        )  # fmt: skip
        goal = Goal(**{
            "job": None, "directory": "", "until_up": False, "interactive": False,
            "up_timeout_s": 15.0, "stop_timeout_s": 15.0, "whole": None, "say": lambda text: None, **goal,
        })  # fmt: skip
        return Session(plan, tmp_path, goal).run([])

    return run


def test_a_vmm_that_outlives_a_panic_is_ended(outcome):
    ended = outcome(r"""
        say("[    1.000000] Kernel panic - not syncing: no init\r\n")
        time.sleep(60)
    """)
    assert ended.exit_code == 1
    assert ended.reason == "the guest's kernel panicked: no init"
    assert "no init" in ended.console


def test_a_guest_that_shows_the_text_of_a_panic_goes_on(outcome):
    """Of a nested machine, or of another day: what is not the kernel's comes after it."""
    ended = outcome(r"""
        say(UP + "# dmesg\r\n[    1.000000] Kernel panic - not syncing: no init\r\n")
        say("[    1.000001] CPU: 0 PID: 1\r\n[root@box ~]# ")
        time.sleep(1.5)
        say(OFF)
    """)
    assert (ended.exit_code, ended.reason) == (0, "the guest powered off")


def test_a_guest_that_reboots_is_told_from_one_that_powers_off(outcome):
    assert outcome("say(UP + OFF)").reason == "the guest powered off"
    assert outcome("say(UP + OFF.replace('poweroff', 'reboot'))") is None


def test_a_guest_that_shuts_down_is_asked_no_more(outcome, tmp_path):
    code = """
        say(UP)
        served(1)
        say("\\x1b]6977;stopping\\x07")
        listener = socket.socket(socket.AF_UNIX)
        os.unlink("api.sock")
        listener.bind("api.sock")
        listener.listen(8)
        listener.settimeout(1.5)
        try:
            listener.accept()
        except TimeoutError:
            open("left alone", "x")
        say(OFF)
    """
    assert outcome(code, until_up=True).exit_code == 0
    assert (tmp_path / "left alone").exists()


@pytest.mark.parametrize("kind", ["firecracker", "cloud-hypervisor"])
def test_a_guest_that_listens_late_is_asked_again(kind, outcome, tmp_path):
    ended = outcome("say(UP); served(3); open('heard', 'x'); say(OFF)", kind, until_up=True)
    assert ended.exit_code == 0
    assert (tmp_path / "heard").exists()


def test_the_log_of_a_vmm_that_ends_at_once_is_shown(outcome):
    ended = outcome("sys.stderr.write('no such kernel'); sys.exit(148)")
    assert ended.exit_code == 1
    assert ended.reason == "the VMM ended with status 148"
    assert "no such kernel" in ended.console


def test_a_second_serial_line_is_waited_for_until_it_can_be_opened(outcome):
    """Between its making and unlockpt(3) its pseudo-terminal gives EIO."""
    code = r"""
        import fcntl, struct, termios
        line = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        time.sleep(1)
        fcntl.ioctl(line, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK
        while termios.tcgetattr(line)[3] & termios.ICANON:
            time.sleep(0.05)
        os.write(line, b"h\0\0\0\x011" + b"x\0\0\0\x017")
        while b"d" not in os.read(line, 4096):
            pass
    """
    ended = outcome(code, "kvmtool", met=JobEnd(kind="terminal"), job=("true",))
    assert (ended.exit_code, ended.reason) == (7, "the job has ended")
