"""What several hypervisors have no room for."""

from collections.abc import Iterator

from microvm.errors import Problem
from microvm.hypervisors.features import use
from microvm.model.declaration import MicroVM
from microvm.model.facts import HostFacts

HOTPLUG_STEP_MIB = 128
"""Linux adds memory in blocks of it; cloud-hypervisor and firecracker insist on multiples."""
BLOCK_MIB = 2
"""Smallest part of such a region that can be plugged in."""
PCI_SLOTS = 31
"""Devices of one PCI bus, less the host bridge."""
_MAKE = {
    "source": "make the directory, or correct `source`",
    "socket": "make room there, or correct `socket`: a relative path starts at the state directory",
    "pivot_root": "make an empty directory there, or leave `pivot_root` out",
}
LAYERS = 5
"""Layers that a root has at most: kernel modules, base, defaults, packages, configuration."""


def own_devices(microvm: MicroVM) -> int:
    """Return how many devices there are at most beyond the items that are declared.

    The root's layers, the source of randomness, a job's stream, and what one key asks for.
    """
    asked = (microvm.balloon, microvm.hotplug_mem, microvm.vsock.cid, microvm.credential_files)
    return LAYERS + 2 + sum(map(bool, asked))


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


def absent(microvm: MicroVM, facts: HostFacts) -> Iterator[Problem]:
    """Refuse a user, directories and places of sockets that the host does not have."""
    if not facts.has_user:
        name = microvm.user
        message = f"the VMM can't become {name}: this host has no such user"
        hint = f"correct it, or make the user: sudo useradd --system {name}"
        yield Problem(where="user", message=message, hint=hint)
    for key, why in facts.absent.items():
        name = key.rpartition(".")[2]
        yield Problem(where=key, message=why, hint=_MAKE[name])


def huge_pages(microvm: MicroVM, facts: HostFacts) -> Iterator[Problem]:
    """Refuse huge pages that the host has not set aside: some VMMs would die without a word."""
    if not microvm.hugepage_mem or facts.hugepages_free is None or not facts.hugepage_kib:
        return
    size = facts.hugepage_kib
    if microvm.mem * 1024 % size:
        message = f"{microvm.mem} MiB are no whole number of the host's huge pages of {size} KiB"
        yield Problem(where="mem", message=message, hint="say more or less, or no hugepage_mem")
    need = -(-(microvm.mem + microvm.hotplugged_mem) * 1024 // size)
    if need > facts.hugepages_free:
        yield Problem(
            where="hugepage_mem",
            message=f"{need} huge pages are needed, the host has {facts.hugepages_free} left",
            hint=f"sudo sysctl vm.nr_hugepages={need} (and what others use), or leave it out",
        )


def vhost_net(microvm: MicroVM, facts: HostFacts) -> Iterator[Problem]:
    """Refuse vhost-net where the host has none that we may open."""
    for index, interface in enumerate(microvm.interfaces):
        if interface.tap.vhost and not facts.vhost_net:
            message = "there is no /dev/vhost-net that may be opened here"
            hint = "modprobe vhost_net, and run as a user who may open it; or leave vhost out"
            where = f"interfaces.{index}.tap.vhost"
            yield Problem(where=where, message=message, hint=hint)


def vhost_vsock(microvm: MicroVM, facts: HostFacts) -> Iterator[Problem]:
    """Refuse a context id where the host has no vsock that we may open."""
    from microvm.hypervisors import those  # all back ends: for those who ask

    if microvm.vsock.cid is not None and not facts.vhost_vsock:
        message = "there is no /dev/vhost-vsock that may be opened here"
        without = use(those(lambda each: not each.host_vsock))
        hint = f"modprobe vhost_vsock, and run as a user who may open it; or {without}"
        yield Problem(where="vsock.cid", message=message, hint=hint)


def kernel(microvm: MicroVM) -> Iterator[Problem]:
    """Refuse Debian's cloud kernel where it is declared with what it lacks."""
    if microvm.system.kernel == "cloud":
        yield from lacks_of_cloud_kernel(microvm)


def lacks_of_cloud_kernel(microvm: MicroVM) -> Iterator[Problem]:
    """Yield what Debian's cloud kernel lacks of what is declared; the generic one has it."""
    hint = 'leave system.kernel out, or say "generic"'
    if microvm.uses("9p"):
        message = "the cloud kernel has no 9p, which a share needs"
        otherwise = f"{hint}, or use virtiofs where the hypervisor has it"
        yield Problem(where="system.kernel", message=message, hint=otherwise)
    if any(device.bus == "usb" for device in microvm.devices):
        message = "the cloud kernel has no USB, which a device needs"
        yield Problem(where="system.kernel", message=message, hint=hint)
    if microvm.hypervisor == "kvmtool" and microvm.vcpu > 1:
        # It has no parser of MP tables, by which alone kvmtool tells of CPUs without ACPI.
        cpus = f"{microvm.vcpu} virtual CPUs"
        message = f"{cpus}; the cloud kernel finds one of kvmtool's (no MP table)"
        yield Problem(where="vcpu", message=message, hint=hint)
