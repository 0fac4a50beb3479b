"""Talk to a running VMM: shut the guest down, set its balloon."""

import time
from pathlib import Path

from microvm.errors import ApiError, DeadlineExceeded, UnsupportedOperation
from microvm.host.process import Deadline
from microvm.host.qmp import Qmp
from microvm.model.runner import Runner

MIB = 1 << 20


def shut_down(qmp: Qmp, *, power_button: bool) -> None:
    """Press the guest's power button, or Ctrl-Alt-Del. Raises `ApiError`."""
    if power_button:
        qmp.call("system_powerdown")
    else:
        keys = [{"type": "qcode", "data": code} for code in ("ctrl", "alt", "delete")]
        qmp.call("send-key", keys=keys)


def shutdown_machine(runner: Runner, state_dir: Path, *, timeout_s: float) -> str:
    """Shut a machine down: power button, Ctrl-Alt-Del, then the end of the VMM within the time.

    Returns which of them ended it. Raises `ApiError` when no VMM answers.
    """
    path = state_dir / (runner.microvm.socket or "qmp.sock")
    if not path.exists():
        return "it is not running"
    qmp = Qmp(path, timeout_s=5)
    whole, last = Deadline(timeout_s), Deadline(timeout_s / 3)
    try:
        shut_down(qmp, power_button=True)
        if _gone(qmp, last):
            return "the guest powered off"
        shut_down(qmp, power_button=False)
        if _gone(qmp, whole):
            return "the guest powered off on Ctrl-Alt-Del"
        qmp.call("quit")
    except ApiError:
        return "the VMM ended"
    finally:
        qmp.close()
    return f"the guest did not power off within {timeout_s:g} s; the VMM was ended"


def _gone(qmp: Qmp, deadline: Deadline) -> bool:
    while not deadline.expired:
        try:
            qmp.call("query-status")
        except (ApiError, DeadlineExceeded):
            return True
        time.sleep(0.1)
    return False


def set_balloon(runner: Runner, state_dir: Path, size_mib: int) -> None:
    """Give the guest `size_mib` MiB of memory. Raises `UnsupportedOperation`, `ApiError`."""
    if not runner.microvm.balloon:
        raise UnsupportedOperation(
            f"{runner.name} has no balloon", hint="set `balloon = true` and start it again"
        )
    qmp = Qmp(state_dir / (runner.microvm.socket or "qmp.sock"))
    try:
        qmp.call("balloon", value=size_mib * MIB)
    finally:
        qmp.close()
