"""A guest that is asked again and again to shut down still does so in order."""

import os
import time
from pathlib import Path

import pytest

from microvm.errors import MicroVMError
from microvm.host.qmp import Qmp

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600), pytest.mark.usefixtures("leftovers")]


def test_keys_pressed_while_a_guest_shuts_down_are_no_reset(microvm_cli, tmp_path):
    (tmp_path / "microvm.toml").write_text('[microvms.box]\nqemu.machine = "q35"\n')
    seen, presses, deadline = b"", 0, time.monotonic() + 500
    with microvm_cli.start("run", str(tmp_path)) as running:
        os.set_blocking(running.stdout.fileno(), False)
        while running.poll() is None:
            assert time.monotonic() < deadline
            seen += running.stdout.read() or b""
            time.sleep(0.1)
            if b"is up" in seen:
                presses += press(Path(microvm_cli.env["XDG_STATE_HOME"]))
        seen += running.stdout.read() or b""
    assert running.returncode == 0, seen.decode(errors="replace")
    assert b"the guest reboots" not in seen
    assert presses > 5, "the guest was too quick for this to show anything"


def press(state):
    """Press Ctrl-Alt-Del and keep the keys down, as firecracker does; return whether it went."""
    keys = [{"down": True, "key": {"type": "qcode", "data": k}} for k in ("ctrl", "alt", "delete")]
    try:
        [socket] = state.rglob("box/qmp.sock")
        qmp = Qmp(socket)
        qmp.call("input-send-event", events=[{"type": "key", "data": key} for key in keys])
        qmp.close()
    except (ValueError, MicroVMError):
        return False
    return True
