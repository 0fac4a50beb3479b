"""Devices of the host that guests are to get: there, free, and ours to open."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from microvm.errors import HostError
from microvm.host import files
from microvm.model.devices import Device

_ATTRIBUTES = {
    "vendorid": ("idVendor", 16), "productid": ("idProduct", 16), "hostbus": ("busnum", 10),
    "hostaddr": ("devnum", 10), "hostport": ("devpath", 0),
}  # fmt: skip
"""Files of a USB device in sysfs (Documentation/ABI/testing/sysfs-bus-usb), and their base."""


def check(devices: Iterable[Device], *, root: Path = Path("/")) -> None:
    """Raise `HostError` for the first device that can't be handed to a guest.

    A USB device that is not plugged in is none: it reaches the guest when it is. `root`: where
    /sys and /dev are.
    """
    for device in devices:
        if device.bus == "pci":
            _check_pci(device.path, root)
        else:
            _check_usb(device.path, root)


def _check_pci(address: str, root: Path) -> None:
    what = f"can't pass the PCI device {address} through"
    place = root / "sys/bus/pci/devices" / address
    if not place.exists():
        raise HostError(f"{what}: the host has none there", hint="`lspci -D` lists them")
    driver = place / "driver"
    name = driver.readlink().name if driver.is_symlink() else "no driver"
    if name != "vfio-pci":
        raise HostError(
            f"{what}: {name} has it, not vfio-pci",
            hint=f"driverctl set-override {address} vfio-pci; the host can't use it any more",
        )
    group = place / "iommu_group"
    if not group.is_symlink():
        raise HostError(
            f"{what}: the host's IOMMU is off",
            hint="turn it on in the firmware, and by intel_iommu=on on the host's command line",
        )
    _must_open(root / "dev/vfio" / group.readlink().name, what)


def _check_usb(selector: str, root: Path) -> None:
    wanted = dict(word.split("=", 1) for word in selector.split(","))
    for place in sorted((root / "sys/bus/usb/devices").glob("*")):
        if _is_selected(place, wanted):
            bus, number = (int((place / name).read_text()) for name in ("busnum", "devnum"))
            what = f"can't pass the USB device {selector} through"
            _must_open(root / f"dev/bus/usb/{bus:03}/{number:03}", what)


def _is_selected(place: Path, wanted: dict[str, str]) -> bool:
    for key, value in wanted.items():
        name, base = _ATTRIBUTES[key]
        try:
            found = (place / name).read_text().strip()
            same = int(found, base) == int(value, 0) if base else found == value
        except (OSError, ValueError):
            return False
        if not same:
            return False
    return True


def _must_open(device: Path, what: str) -> None:
    if not device.exists():
        raise HostError(f"{what}: there is no {device}", hint="mount a devtmpfs at /dev")
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise HostError(
            f"{what}: no permission on {device}",
            hint=f"sudo chown $USER {device}, or have a udev rule do it; or run as root",
        ) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            hint = "stop the program that uses it"
            raise HostError(f"{what}: {device} is in use", hint=hint) from error
        raise files.explain(error, f"open {device}, to pass it through") from error
