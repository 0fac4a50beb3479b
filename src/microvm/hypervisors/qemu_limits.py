"""What of a declaration qemu can't do, where rows of features don't say it."""

import re
from collections.abc import Iterator

from microvm.errors import Problem
from microvm.hypervisors import virtiofsd
from microvm.hypervisors.limits import (
    hotplug,
    huge_pages,
    kernel,
    own_devices,
    pci_addresses,
    vhost_net,
    vhost_vsock,
)
from microvm.hypervisors.qemu_devices import USB_KEYS, has_usb
from microvm.model.declaration import MicroVM
from microvm.model.facts import HostFacts

MMIO_SLOTS = 24
"""virtio-mmio transports of machine `microvm` with its second I/O APIC (hw/i386/microvm.c)."""
PCI_SLOTS = 30
"""Slots of q35's root bus, less the host bridge and the ICH9."""
CREDENTIAL_NAME = 28
"""Characters left of fw_cfg's 55 after `opt/io.systemd.credentials/` (docs/specs/fw_cfg.rst)."""

_USB_VALUES = {
    **dict.fromkeys(("vendorid", "productid"), re.compile(r"\w+=(?:0x[0-9a-fA-F]{1,4}|\d{1,4})")),
    **dict.fromkeys(("hostbus", "hostaddr"), re.compile(r"\w+=\d{1,3}")),
    "hostport": re.compile(r"\w+=\d{1,3}(?:\.\d{1,3})*"),
}  # fmt: skip
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
"""What QEMU takes for an id (util/id.c)."""
_ADDR = re.compile(r"(?:0x)?[01]?[0-9a-fA-F](?:\.[0-7])?")
"""Slot and function (hw/core/qdev-properties-system.c)."""
ROOT_BUS = "pcie.0"
USB_BUS = "usb.0"
"""Bus of the controller that is there where a USB device is declared; its id is `usb`."""
_OUR_IDS = ("hotplug", "usb")
"""Ids of devices that the plan names."""
_OWN_PROPERTIES = {
    "type": "qemu.machine", "accel": "accel", "kernel": "system.kernel", "initrd": "initrd_path",
    "append": "kernel_params", "memory-backend": "hugepage_mem", "memory": "mem", "smp": "vcpu",
    "dumpdtb": "qemu.extra_args", "help": "qemu.extra_args",
}  # fmt: skip
"""Properties of a machine that the plan sets, or that keep it from starting, and what says them."""


def limits(microvm: MicroVM) -> Iterator[Problem]:
    """Yield every reason beyond features why qemu can't run it."""
    yield from hotplug(microvm)
    yield from _passed_through(microvm)
    yield from _ports(microvm)
    yield from _buses(microvm)
    yield from _machine(microvm)
    yield from _names(microvm)
    yield from kernel(microvm)
    yield from _shares_9p(microvm)


def host_limits(microvm: MicroVM, facts: HostFacts) -> Iterator[Problem]:
    """Yield what qemu could do, but not on this host."""
    if microvm.qemu.machine == "microvm" and facts.accelerator.kind == "tcg":
        message = f"machine microvm does not boot here: {facts.accelerator.reason}"
        yield Problem(where="qemu.machine", message=message, hint="leave it out")
    if (microvm.cpu or "").split(",")[0] == "host" and facts.accelerator.kind == "tcg":
        message = f"an emulated CPU can't be the host's; emulated: {facts.accelerator.reason}"
        yield Problem(where="cpu", message=message, hint="leave it out, or say max")
    if microvm.user and not facts.root:
        message = f"only root can become {microvm.user}"
        yield Problem(where="user", message=message, hint="start it as root, or leave `user` out")
    yield from vhost_net(microvm, facts)  # qemu would only warn, and move the packets itself
    yield from vhost_vsock(microvm, facts)
    yield from huge_pages(microvm, facts)
    if found := facts.programs.get(virtiofsd.PROGRAM):
        yield from virtiofsd.unmet(found, microvm)


def need_pci(microvm: MicroVM) -> Iterator[str]:
    """Yield the options that ask for what machine microvm, which has no PCI here, can't have."""
    if microvm.shares:
        yield "shares"
    if microvm.hotplug_mem:
        yield "hotplug_mem"
    if microvm.devices:
        yield "devices"
    if microvm.qemu.pcie_root_ports:
        yield "qemu.pcie_root_ports"


def _shares_9p(microvm: MicroVM) -> Iterator[Problem]:
    if microvm.store_on_disk or microvm.store_proto != "9p":
        return
    if microvm.user:
        yield Problem(
            where="user",
            message="qemu serves the root's layers, which only the user that starts it can",
            hint="leave `user` out; or say store_proto virtiofs",
        )
    for index, share in enumerate(microvm.shares):
        if share.proto == "9p":
            yield Problem(
                where=f"shares.{index}.proto",
                message="qemu can't serve this share with the host's owners and the root's layers "
                "with the guest's",
                hint="use virtiofs for the share or for the layers (store_proto)",
            )


def slots_used(microvm: MicroVM) -> int:
    """Return how many slots of the machine's one bus the devices take at most."""
    used = own_slots(microvm)
    used += sum(map(len, (microvm.volumes, microvm.shares, microvm.interfaces)))
    # What says another bus is not on the root bus, of which the slots are.
    on_root = (None, ROOT_BUS)
    used += sum(port.bus in on_root for port in microvm.qemu.pcie_root_ports)
    return used + sum(each.bus == "pci" and each.qemu.bus in on_root for each in microvm.devices)


def own_slots(microvm: MicroVM) -> int:
    """Return how many of them the items that are declared do not take."""
    # Credentials are no disk here (fw_cfg); devices of USB have one controller.
    return own_devices(microvm) - bool(microvm.credential_files) + has_usb(microvm)


def _machine(microvm: MicroVM) -> Iterator[Problem]:
    if microvm.qemu.machine == "microvm" and (wanting := ", ".join(need_pci(microvm))):
        yield Problem(
            where="qemu.machine",
            message=f"machine microvm lacks PCI here, which this needs: {wanting}",
            hint="leave `machine` out, or use q35",
        )
    if microvm.qemu.machine == "microvm" and microvm.accel == "tcg":
        yield Problem(
            where="qemu.machine",
            message="machine microvm may hang at boot under emulation",
            hint="leave `machine` out, or use q35",
        )
    for key in microvm.qemu.machine_opts:
        if said := _OWN_PROPERTIES.get(key.partition(".")[0]):
            yield Problem(
                where=f"qemu.machine_opts.{key}",
                message=f"{key} is not for machine_opts",
                hint=f"say it with {said}",
            )
    if microvm.cpu and "help" in (word.partition("=")[0] for word in microvm.cpu.split(",")):
        message = "with `help` qemu lists models and does not start"
        yield Problem(where="cpu", message=message, hint="qemu-system-x86_64 -cpu help")


def _passed_through(microvm: MicroVM) -> Iterator[Problem]:
    for index, device in enumerate(microvm.devices):
        keys = {word.partition("=")[0] for word in device.path.split(",") if "=" in word}
        if device.bus == "usb" and (not keys or keys - USB_KEYS):
            yield Problem(
                where=f"devices.{index}.path",
                message=f"{device.path} selects no USB device",
                hint="say vendorid and productid (`lsusb`), or hostbus and hostport",
            )
        for word in device.path.split(",") if device.bus == "usb" and not keys - USB_KEYS else ():
            if "=" in word and not _USB_VALUES[word.partition("=")[0]].fullmatch(word):
                yield Problem(
                    where=f"devices.{index}.path",
                    message=f"{word} is no such number",
                    hint="ids have up to four hexadecimal digits after 0x (`lsusb`), hostbus and "
                    "hostaddr are numbers, hostport is one such as 1.4",
                )
    yield from pci_addresses(microvm)


def _ports(microvm: MicroVM) -> Iterator[Problem]:
    devices = ((f"devices.{i}.qemu.id", d.qemu.id) for i, d in enumerate(microvm.devices))
    ports = microvm.qemu.pcie_root_ports
    ids = [*((f"qemu.pcie_root_ports.{i}.id", p.id) for i, p in enumerate(ports)), *devices]
    taken: dict[str | tuple[int, int], str] = dict.fromkeys(_OUR_IDS, "one of ours")
    for where, name in ids:
        if name and not _ID.fullmatch(name):
            message = f"{name}: an id of qemu is a letter, then letters, digits, `-`, `.`, `_`"
            yield Problem(where=where, message=message, hint="name another id")
        elif name and name in taken:
            message = f"the id {name} is that of {taken[name]} too"
            yield Problem(where=where, message=message, hint="name another id")
        elif name:
            taken[name] = where
    for index, port in enumerate(ports):
        if port.addr is not None and not _ADDR.fullmatch(port.addr):
            message = f"{port.addr} is no slot and function"
            where = f"qemu.pcie_root_ports.{index}.addr"
            yield Problem(where=where, message=message, hint="such as 1c.0, or leave it out")
        where = f"qemu.pcie_root_ports.{index}.chassis"
        place = (port.chassis, port.slot or 0) if port.chassis is not None else None
        if place and place in taken:
            message = f"chassis {place[0]}, slot {place[1]} is that of {taken[place]} too"
            yield Problem(where=where, message=message, hint="leave chassis out")
        elif place:
            taken[place] = where


def _buses(microvm: MicroVM) -> Iterator[Problem]:
    ports = [port.id for port in microvm.qemu.pcie_root_ports]
    for index, port in enumerate(microvm.qemu.pcie_root_ports):
        known = [ROOT_BUS, *ports[:index]]
        yield from _bus(microvm, port.bus, known, f"qemu.pcie_root_ports.{index}.bus")
    more = ["usb-bus.0"] if microvm.qemu.machine_opts.get("usb") == "on" else []
    for index, device in enumerate(microvm.devices):
        known = [ROOT_BUS, *ports] if device.bus == "pci" else [USB_BUS, *more]
        yield from _bus(microvm, device.qemu.bus, known, f"devices.{index}.qemu.bus")


def _bus(microvm: MicroVM, bus: str | None, known: list[str], where: str) -> Iterator[Problem]:
    """Refuse a bus that qemu would not find: devices are made in the order of its arguments."""
    first = bus.partition("/")[0] if bus else ""  # nothing before the slash: a path from the top
    if first and first not in known:
        *most, last = known
        hint = f"say {', '.join(most)}{' or ' if most else ''}{last}"
        if any(f"id={first.partition('.')[0]}" in word for word in microvm.qemu.extra_args):
            hint += "; the devices of `extra_args` are made later than this one"
        yield Problem(where=where, message=f"there is no bus {bus} for it", hint=hint)


def _names(microvm: MicroVM) -> Iterator[Problem]:
    for index, interface in enumerate(microvm.interfaces):
        if not interface.id[:1].isalpha():
            message = f"{interface.id}: an id of qemu begins with a letter"
            hint = "name it otherwise; or use another hypervisor"
            yield Problem(where=f"interfaces.{index}.id", message=message, hint=hint)
    for name in microvm.credential_files:
        if len(name) > CREDENTIAL_NAME:
            message = f"qemu takes {CREDENTIAL_NAME} characters of a credential's name"
            hint = "give it a shorter name; or use another hypervisor"
            yield Problem(where=f"credential_files.{name}", message=message, hint=hint)
