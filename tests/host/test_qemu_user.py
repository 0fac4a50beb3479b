"""QEMU that becomes another user is still ours."""

import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microvm.hypervisors.qemu import PROGRAM

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

LAUNCHER = f"""
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_vmm
from microvm.host import terminal
from microvm.launch import starting
here = Path.cwd()
plan = fake_vmm.plan("qemu", here, "", known={{"root": True}}, user="nobody")
at = plan.argv.index("-sandbox")
words = ("-S", "-nodefaults", "-display", "none", "-serial", "stdio")
plan = replace(plan, argv=(sys.argv[1], *words, *plan.argv[at : at + 2], "-runas", "nobody"))
ours, theirs = terminal.open_console()
with starting.vmm(plan, here, console=theirs, held=[]) as vmm:
    print(vmm.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_launcher_takes_it_along(tmp_path, tool):
    """The kernel sends no signal to a child whose user has changed (prctl(2))."""
    nobody = f"\nUid:\t{pwd.getpwnam('nobody').pw_uid}\t"
    command = [sys.executable, "-c", LAUNCHER, tool(PROGRAM)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as launcher:
        try:
            vmm = Path("/proc", launcher.stdout.readline().decode().strip())
            wait(lambda: nobody in (vmm / "status").read_text())
        finally:
            launcher.kill()
    try:
        wait(lambda: not vmm.exists())
    except AssertionError:
        os.kill(int(vmm.name), signal.SIGKILL)
        raise


def wait(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
