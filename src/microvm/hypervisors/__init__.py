"""Back ends: a runner and facts become a launch plan; what each can do is data."""

from collections.abc import Callable

from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.features import Feature
from microvm.model.declaration import HypervisorKind


def hypervisor(kind: str) -> Hypervisor:
    """Return the back end of this name."""
    match HypervisorKind(kind):
        case HypervisorKind.QEMU:
            from microvm.hypervisors.qemu import Qemu

            return Qemu()
        case HypervisorKind.CLOUD_HYPERVISOR:
            from microvm.hypervisors.cloud_hypervisor import CloudHypervisor

            return CloudHypervisor()
        case HypervisorKind.FIRECRACKER:
            from microvm.hypervisors.firecracker import Firecracker

            return Firecracker()
        case HypervisorKind.CROSVM:
            from microvm.hypervisors.crosvm import Crosvm

            return Crosvm()
        case HypervisorKind.KVMTOOL:
            from microvm.hypervisors.kvmtool import Kvmtool

            return Kvmtool()


def those(holds: Callable[[Hypervisor], bool]) -> list[str]:
    """Return the names of the hypervisors of which something holds."""
    return [kind.value for kind in HypervisorKind if holds(hypervisor(kind))]


def able(feature: Feature) -> list[str]:
    """Return the names of the hypervisors that have a feature."""
    return those(lambda each: each.support(feature).available)


def flawless(feature: Feature) -> list[str]:
    """Return the names of the hypervisors that have a feature without a flaw."""
    rows = {name: hypervisor(name).support(feature) for name in able(feature)}
    return [name for name, row in rows.items() if not row.flaw]


__all__ = ["Hypervisor", "able", "flawless", "hypervisor", "those"]
