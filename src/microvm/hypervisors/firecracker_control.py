"""A running firecracker, by its HTTP API (src/firecracker/swagger/firecracker.yaml)."""

from microvm.errors import ApiError, Unreachable
from microvm.host.owner import owner_of
from microvm.hypervisors.control import Ballooning, Pausable
from microvm.hypervisors.socket_control import HttpControl


class FirecrackerControl(HttpControl, Ballooning, Pausable):
    """The API socket, which serves several clients."""

    vmm = "firecracker"

    def shut_down(self, *, power_button: bool) -> None:
        """Press Ctrl-Alt-Del: there is no power button."""
        self._call("PUT", "/actions", {"action_type": "SendCtrlAltDel"})

    def quit(self) -> None:
        """Kill the process: its API has nothing for that."""
        with owner_of(self._path) as owner:
            if owner is None:
                raise Unreachable(f"could not end firecracker: nobody listens on {self._path}")
            owner.kill()

    def set_memory(self, size_mib: int) -> None:
        """Plug in what goes beyond the memory at boot, or let the balloon take what is left."""
        config = self._call("GET", "/vm/config")
        try:
            base = int(config["machine-config"]["mem_size_mib"])
            region = int((config.get("memory-hotplug") or {}).get("total_size_mib", 0))
            balloon = config.get("balloon")
        except (KeyError, TypeError, ValueError) as error:
            raise ApiError(f"firecracker told no memory size: {str(config)[:80]}") from error
        self._must_fit(size_mib, base + region)
        if size_mib < base and balloon is None:
            raise self._needs_balloon(base)
        plugged = max(size_mib - base, 0)
        # It refuses requests that change nothing too, until the guest has its driver.
        if region and self._call("GET", "/hotplug/memory").get("requested_size_mib") != plugged:
            self._call("PATCH", "/hotplug/memory", {"requested_size_mib": plugged})
        if balloon is not None:
            self._call("PATCH", "/balloon", {"amount_mib": max(base - size_mib, 0)})

    def pause(self) -> None:
        """Pause the VM."""
        self._call("PATCH", "/vm", {"state": "Paused"})

    def resume(self) -> None:
        """Resume the VM."""
        self._call("PATCH", "/vm", {"state": "Resumed"})
