"""What a person at a terminal sees: a real pseudo-terminal, a real guest."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200), pytest.mark.usefixtures("leftovers")]
CTRL_C, CTRL_ESCAPE = b"\x03", b"\x1d"
PROMPT_S = 20
"""2 s are promised, which a busy machine may not keep; a clean shutdown is given 30 s."""


def children(pid):
    """Return the processes that a process has started and that still run."""
    return [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if alive(entry.name) and status(entry.name).get("PPid") == str(pid)
    ]


def status(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def alive(pid):
    return status(pid).get("State", "Z")[0] not in "ZX"


class Terminal:
    """A program at a terminal of its own, as a person has it."""

    def __init__(self, argv, env, *, nobody_leads=False):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x28\0\x78\0\0\0\0\0")
        self.before = termios.tcgetattr(theirs)
        self.seen = b""
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env={**env, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=None if nobody_leads else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.theirs = theirs

    def see(self, text, within_s=280):
        """Wait until the text appears after what was seen last."""
        deadline = time.monotonic() + within_s
        while text.encode() not in self.seen:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.ours], [], [], left)[0]
            assert ready, f"{text!r} did not appear in {self.seen[-3000:]!r}"
            self.seen += os.read(self.ours, 65536)
        self.seen = self.seen.partition(text.encode())[2]

    def type(self, data):
        os.write(self.ours, data)

    def ended(self, within_s):
        """Return the exit status; the terminal is as it was."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.seen[-3000:]!r}"
            if select.select([self.ours], [], [], 0.05)[0]:
                self.seen += os.read(self.ours, 65536)
        assert termios.tcgetattr(self.theirs) == self.before
        return self.process.returncode

    def vanish(self):
        os.close(self.ours)
        self.ours = None

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.ours is not None:
            os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(microvm_cli):
    opened = []

    def start(*arguments, **options):
        opened.append(Terminal(microvm_cli.command(*arguments), dict(microvm_cli.env), **options))
        return opened[-1]

    microvm_cli("build", "examples#hello", timeout=500)
    yield start
    for one in opened:
        one.close()


def test_ctrl_c_ends_everything_until_the_guest_is_up(terminal):
    person = terminal("run", "examples#hello")
    person.see("Ctrl-] then q")
    time.sleep(1)
    person.type(CTRL_C)
    assert person.ended(within_s=PROMPT_S) == 130


def test_ctrl_c_reaches_the_guest_that_is_up_and_the_escape_key_shuts_it_down(terminal):
    person = terminal("run", "examples#hello")
    person.see("# ")
    person.type(b"stty size; sleep 1000\r")
    person.see("40 120")
    time.sleep(1)
    person.type(CTRL_C)
    person.see("# ")
    person.type(b"echo status-$?\r")
    person.see("status-130")
    person.type(CTRL_ESCAPE + b"s")
    assert person.ended(within_s=150) == 0
    assert b"Power down" in person.seen


def test_a_reboot_starts_it_again_and_a_power_off_ends_it(terminal):
    person = terminal("run", "examples#hello")
    person.see("# ")
    person.type(b"reboot\r")
    person.see("the guest reboots")
    person.see("hello is up")
    person.see("# ")
    person.type(b"poweroff\r")
    assert person.ended(within_s=150) == 0


def test_the_escape_key_ends_it_before_it_is_up(terminal):
    person = terminal("run", "examples#hello")
    person.see("Ctrl-] then q")
    person.type(CTRL_ESCAPE + b"q")
    assert person.ended(within_s=PROMPT_S) == 0


def test_a_terminal_that_goes_away_shuts_the_guest_down(terminal):
    person = terminal("run", "examples#hello")
    person.see("# ")
    person.process.send_signal(signal.SIGHUP)
    assert person.ended(within_s=150) == 129
    assert b"Power down" in person.seen


def test_a_terminal_that_vanishes_without_a_signal_shuts_the_guest_down(terminal, microvm_cli):
    # As under `su` in a terminal window: only the session's leader gets the SIGHUP.
    person = terminal("run", "examples#hello", nobody_leads=True)
    person.see("# ")
    person.vanish()
    assert person.process.wait(150) == 129


def test_a_vmm_that_is_killed_is_told_on_a_line_of_its_own(terminal):
    person = terminal("run", "examples#hello")
    person.see("# ")
    [vmm] = (
        Path(f"/proc/{person.process.pid}/task/{person.process.pid}/children").read_text().split()
    )
    os.kill(int(vmm), signal.SIGKILL)
    person.see("\r\nmicrovm: the VMM was killed by SIGKILL\r")
    assert person.ended(within_s=PROMPT_S) == 1
    assert b"hello is up" not in person.seen  # it is on the screen already


def test_ctrl_c_reaches_the_job(terminal):
    script = "trap 'echo caught; exit 9' INT; echo ready; sleep 1000 & wait"
    person = terminal("run", "examples#hello", "--", "sh", "-c", script)
    person.see("ready")
    person.type(CTRL_C)
    person.see("caught")
    assert person.ended(within_s=150) == 9


def test_a_second_sigterm_kills(terminal):
    person = terminal("run", "examples#hello")
    person.see("# ")
    [vmm] = children(person.process.pid)
    os.kill(vmm, signal.SIGSTOP)  # it can't shut down: only being killed ends it
    person.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    person.process.send_signal(signal.SIGTERM)
    assert person.ended(within_s=PROMPT_S) == 143
    assert not alive(vmm)


def test_a_killed_run_leaves_no_vmm_and_the_next_one_starts(terminal, microvm_cli):
    person = terminal("run", "examples#hello")
    person.see("# ")
    [vmm] = children(person.process.pid)
    person.process.kill()
    person.process.wait()
    deadline = time.monotonic() + 60
    while alive(vmm):
        assert time.monotonic() < deadline, "the VMM outlives its run"
        time.sleep(0.1)
    ran = microvm_cli("run", "examples#hello", "--", "true", timeout=300)
    assert ran.returncode == 0, ran.stderr
