"""Devices of the host that a guest gets as its own, and ports for more, as qemu is told of them."""

from microvm.hypervisors.qemu_syntax import escape
from microvm.model.declaration import MicroVM
from microvm.model.devices import Device, PcieRootPort

USB_KEYS = frozenset(("vendorid", "productid", "hostbus", "hostaddr", "hostport"))
"""What selects a USB device of the host (`-device usb-host,help`)."""
_CHASSIS = range(1, 256)


def has_usb(vm: MicroVM) -> bool:
    """Return whether a USB device is passed through."""
    return any(device.bus == "usb" for device in vm.devices)


def root_ports(vm: MicroVM) -> list[str]:
    """Return the PCI Express root ports; each needs a chassis and slot that no other one has."""
    words = []
    free = iter(sorted(set(_CHASSIS) - {port.chassis for port in vm.qemu.pcie_root_ports}))
    for port in vm.qemu.pcie_root_ports:
        chassis = next(free, None) if port.chassis is None else port.chassis
        words += ["-device", f"pcie-root-port,id={port.id}{_port(port, chassis)}"]
    return words


def _port(port: PcieRootPort, chassis: int | None) -> str:
    said = {"bus": port.bus, "chassis": chassis, "slot": port.slot, "addr": port.addr}
    return "".join(
        f",{key}={escape(str(value))}" for key, value in said.items() if value is not None
    )


def passed_through(vm: MicroVM) -> list[str]:
    """Return the devices of the host, and the controller for those of USB."""
    words = ["-device", "qemu-xhci,id=usb"] if has_usb(vm) else []
    for device in vm.devices:
        kind = f"vfio-pci,host={device.path}" if device.bus == "pci" else f"usb-host,{device.path}"
        words += ["-device", f"{kind}{_properties(device)}"]
    return words


def _properties(device: Device) -> str:
    own = device.qemu
    text = f",id={escape(own.id)}" if own.id else ""
    text += f",bus={escape(own.bus)}" if own.bus else ""
    return text + (f",{own.device_extra_args}" if own.device_extra_args else "")
