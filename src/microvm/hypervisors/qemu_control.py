"""A running qemu, by QMP."""

from pathlib import Path
from typing import Any

from microvm.errors import ApiError
from microvm.host.qmp import Qmp
from microvm.hypervisors.control import MIB, Ballooning, Control, Pausable


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
        """Plug in what goes beyond the memory at boot, or let the balloon take what is left."""
        wanted, base = size_mib * MIB, self._qmp.call("query-memory-size-summary")["base-memory"]
        region = self._region()
        most = base + (region["max-size"] if region else 0)
        self._must_fit(size_mib, most // MIB)
        lack = self._lack_of_balloon()
        if lack and wanted < base:
            raise self._needs_balloon(base // MIB, f" ({lack})")
        plugged = max(wanted - base, 0)
        if region and plugged % (block := region["block-size"]):
            near, step = (base + plugged // block * block) // MIB, block // MIB
            raise ApiError(
                f"memory is plugged in by {step} MiB", hint=f"say {near} or {near + step}"
            )
        if region and region["requested-size"] != plugged:
            path = f"/machine/peripheral/{region['id']}"
            self._qmp.call("qom-set", path=path, property="requested-size", value=plugged)
        if not lack:  # its value is what the guest keeps of the memory at boot
            self._qmp.call("balloon", value=min(wanted, base))

    def _region(self) -> dict[str, Any] | None:
        """Return what QEMU tells of the memory that can be plugged in."""
        for device in self._qmp.call("query-memory-devices"):
            if device["type"] == "virtio-mem" and device["data"].get("id"):
                found: dict[str, Any] = device["data"]
                return found
        return None

    def _lack_of_balloon(self) -> str | None:
        """Return QEMU's words for why there is no balloon, or None."""
        try:
            self._qmp.call("query-balloon")
        except ApiError as error:
            return error.message
        return None

    def pause(self) -> None:
        """Stop."""
        self._qmp.call("stop")

    def resume(self) -> None:
        """Continue."""
        self._qmp.call("cont")
