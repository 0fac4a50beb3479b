"""A running qemu, by QMP."""

from pathlib import Path

from microvm.errors import ApiError, DeadlineExceeded
from microvm.host.qmp import Qmp
from microvm.hypervisors.control import Ballooning, Control, Pausable

MIB = 1 << 20


class QemuControl(Control, Ballooning, Pausable):
    """One of QEMU's control sockets; it serves one client at a time."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._qmp = Qmp(path, timeout_s=timeout_s)
        self._reset = False

    def shut_down(self, *, power_button: bool) -> None:
        """Press a button or keys."""
        if power_button:
            self._qmp.call("system_powerdown")
        else:
            keys = [{"type": "qcode", "data": code} for code in ("ctrl", "alt", "delete")]
            self._qmp.call("send-key", keys=keys)

    def quit(self) -> None:
        """End QEMU."""
        self._qmp.call("quit")

    def alive(self) -> bool:
        """Ask for the state."""
        try:
            self._qmp.call("query-status")
        except (ApiError, DeadlineExceeded):
            return False
        return True

    def was_reset(self) -> bool:
        """Look at the events that have come."""
        for event in self._qmp.drain():
            if event["event"] == "SHUTDOWN" and event["data"].get("reason") == "guest-reset":
                self._reset = True
        return self._reset

    def close(self) -> None:
        """End the connection."""
        self._qmp.close()

    def set_memory(self, size_mib: int) -> None:
        """Set the balloon: its value is what the guest keeps."""
        self._qmp.call("balloon", value=size_mib * MIB)

    def pause(self) -> None:
        """Stop."""
        self._qmp.call("stop")

    def resume(self) -> None:
        """Continue."""
        self._qmp.call("cont")
