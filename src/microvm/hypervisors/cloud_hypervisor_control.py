"""A running cloud-hypervisor, by its HTTP API (vmm/src/api/openapi/cloud-hypervisor.yaml)."""

from typing import Any

from microvm.errors import ApiError
from microvm.hypervisors.control import MIB, Ballooning, Pausable
from microvm.hypervisors.socket_control import HttpControl


class CloudHypervisorControl(HttpControl, Ballooning, Pausable):
    """The API socket, which serves any number of clients."""

    vmm = "cloud-hypervisor"
    root = "/api/v1"

    def shut_down(self, *, power_button: bool) -> None:
        """Press the power button: there is no keyboard."""
        self._call("PUT", "/vm.power-button")

    def quit(self) -> None:
        """End the process."""
        self._call("PUT", "/vmm.shutdown")

    def set_memory(self, size_mib: int) -> None:
        """Plug in what goes beyond the memory at boot, or let the balloon take what is left."""
        memory, balloon = self._sizes()
        wanted, most = size_mib * MIB, memory["size"] + (memory.get("hotplug_size") or 0)
        self._must_fit(size_mib, most // MIB)
        plugged = max(wanted - memory["size"], 0)
        request = {}
        if plugged != (memory.get("hotplugged_size") or 0):
            request["desired_ram"] = memory["size"] + plugged
        if balloon is not None:
            request["desired_balloon"] = max(memory["size"] - wanted, 0)
        elif wanted < memory["size"]:
            raise self._needs_balloon(memory["size"] // MIB)
        if request:
            self._call("PUT", "/vm.resize", request)

    def _sizes(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return MemoryConfig (sizes in bytes) and BalloonConfig of the running VM."""
        info = self._call("GET", "/vm.info")
        try:
            config = info["config"]
            memory = {**config["memory"], "size": int(config["memory"]["size"])}
            return memory, config.get("balloon")
        except (KeyError, TypeError, ValueError) as error:
            raise ApiError(f"cloud-hypervisor told no memory size: {str(info)[:80]}") from error

    def pause(self) -> None:
        """Pause the VM, unless it is."""
        if self._state() != "Paused":
            self._call("PUT", "/vm.pause")

    def resume(self) -> None:
        """Resume the VM, if it is paused."""
        if self._state() == "Paused":
            self._call("PUT", "/vm.resume")

    def _state(self) -> object:
        info = self._call("GET", "/vm.info")
        return info.get("state") if isinstance(info, dict) else None
