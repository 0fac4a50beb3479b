"""What several hypervisors have no room for."""

from collections.abc import Iterator

from microvm.errors import Problem
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts

HOTPLUG_STEP_MIB = 128
"""Linux adds memory in blocks of it; cloud-hypervisor and firecracker insist on multiples."""
BLOCK_MIB = 2
"""Smallest part of such a region that can be plugged in."""


def devices(microvm: MicroVM, slots: int, *, own: int) -> Iterator[Problem]:
    """Refuse more devices than there are slots; `own`: the root's layers and what we add."""
    declared = ("volumes", "shares", "interfaces", "devices")
    used = own + sum(len(getattr(microvm, key)) for key in declared)
    if used > slots:
        message = f"{used} devices, {own} of them our own; {microvm.hypervisor} has {slots} slots"
        yield too_many(microvm, message)


def too_many(microvm: MicroVM, message: str) -> Problem:
    """Return a refusal that names the devices of which there are most."""
    kinds = ("volumes", "shares", "interfaces", "devices")
    where = max(kinds, key=lambda key: len(getattr(microvm, key)))
    hint = "use fewer, larger volumes" if where == "volumes" else f"use fewer {where}"
    return Problem(where=where, message=message, hint=hint)


def pci_addresses(microvm: MicroVM) -> Iterator[Problem]:
    """Refuse PCI devices that are named like those of USB."""
    for index, device in enumerate(microvm.devices):
        if device.bus == "pci" and "=" in device.path:
            message = f"{device.path} is no PCI address"
            hint = "such as 0000:03:00.0 (`lspci -D`)"
            yield Problem(where=f"devices.{index}.path", message=message, hint=hint)


def hotplug(microvm: MicroVM) -> Iterator[Problem]:
    """Refuse sizes that virtio-mem can't have."""
    for key, step in (("hotplug_mem", HOTPLUG_STEP_MIB), ("hotplugged_mem", BLOCK_MIB)):
        size = getattr(microvm, key)
        if size % step:
            near = f"{size // step * step} or {(size // step + 1) * step}"
            message = f"{size} is no multiple of {step}"
            yield Problem(where=key, message=message, hint=f"say {near}")


def huge_pages(microvm: MicroVM, facts: Facts) -> Iterator[Problem]:
    """Refuse huge pages that the host has not set aside: some VMMs would die without a word."""
    if not microvm.hugepage_mem or facts.hugepages_free is None or not facts.hugepage_kib:
        return
    need = -(-microvm.mem * 1024 // facts.hugepage_kib)
    if need > facts.hugepages_free:
        yield Problem(
            where="hugepage_mem",
            message=f"{need} huge pages are needed, the host has {facts.hugepages_free} left",
            hint=f"sudo sysctl vm.nr_hugepages={need} (and what others use), or leave it out",
        )


def vhost_net(microvm: MicroVM, facts: Facts) -> Iterator[Problem]:
    """Refuse vhost-net where the host has none that we may open."""
    for index, interface in enumerate(microvm.interfaces):
        if interface.tap.vhost and not facts.vhost_net:
            message = "there is no /dev/vhost-net that may be opened here"
            hint = "modprobe vhost_net, and run as a user who may open it; or leave vhost out"
            where = f"interfaces.{index}.tap.vhost"
            yield Problem(where=where, message=message, hint=hint)


def kernel_for_9p(microvm: MicroVM) -> Iterator[Problem]:
    """Refuse 9p with a kernel that has none."""
    root = not microvm.store_on_disk and microvm.store_proto == "9p"
    wanted = root or any(share.proto == "9p" for share in microvm.shares)
    if wanted and microvm.system.kernel == "cloud":
        yield Problem(
            where="system.kernel",
            message="the cloud kernel has no 9p, which a share needs",
            hint='leave it out, say "generic", or use virtiofs where the hypervisor has it',
        )
