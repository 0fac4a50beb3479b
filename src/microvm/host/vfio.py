"""PCI devices that are handed to a guest (kernel's vfio.rst)."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from microvm.errors import HostError

DRIVER = "vfio-pci"


def check(
    addresses: Sequence[str], sysfs: Path = Path("/sys"), devices: Path = Path("/dev/vfio")
) -> None:
    """Raise `HostError` for the first device that can't be handed over by us, now."""
    for address in addresses:
        if found := _obstacle(sysfs / "bus/pci/devices" / address, devices):
            why, hint = found
            raise HostError(f"can't pass the PCI device {address} through: {why}", hint=hint)


def _obstacle(device: Path, devices: Path) -> tuple[str, str] | None:
    """Return why a device can't be handed over and what to do, or None."""
    if not device.exists():
        return "the host has none of that address", "`lspci -D` lists what there is"
    if not (device / "iommu_group").exists():
        return "it is in no IOMMU group", "turn the IOMMU on, in the firmware and the kernel"
    driver = device / "driver"
    name = driver.resolve().name if driver.exists() else "none"
    if name != DRIVER:
        hint = f"give it {DRIVER}: driverctl set-override {device.name} {DRIVER}"
        return f"its driver is {name}", hint
    return _refusal(devices / (device / "iommu_group").resolve().name)


def _refusal(group: Path) -> tuple[str, str] | None:
    """Return why an IOMMU group can't be opened, or None."""
    try:
        os.close(os.open(group, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return f"no permission on {group}", "let this user read and write it (chown, a udev rule)"
    except OSError as error:
        if error.errno == errno.EBUSY:
            return f"{group} is in use by another program", "stop that one first"
        return f"{group}: {error.strerror}", f"load the module: modprobe {DRIVER}"
    return None
