"""firecracker: a small device model of disks, taps, vsock, balloon and hot-plug memory.

Sources: its documentation, CHANGELOG.md and src/vmm/src of 1.8 to 1.16.
"""

from pathlib import Path

from microvm.errors import Problem
from microvm.hypervisors import limits
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support
from microvm.hypervisors.firecracker_plan import (
    CONTROL,
    PCI_SINCE,
    PROGRAM,
    REPORTING_SINCE,
    FirecrackerPlan,
)
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

PCI_SLOTS = 31
"""Slots of its PCI bus, less the host bridge."""
MMIO_SLOTS = 17
"""Interrupts that devices without PCI have on x86 (CHANGELOG.md, 1.15)."""
MOST_VCPUS = 32
_NO_SHARES = "use a volume, or qemu or cloud-hypervisor"
_NO_USER_NET = "use type tap with a `bridge` of the host, or qemu"
_NO_FORWARD = "use type tap and forward on the host, or qemu"


class Firecracker(Hypervisor):
    """Plans for versions from 1.8 on, the first that tells its devices by ACPI."""

    name = "firecracker"
    program = PROGRAM
    control_socket = CONTROL
    boots_vmlinux = True
    oldest = (1, 8)
    newest = (1, 16)
    supports = (
        Support(feature=Feature.HUGE_PAGES, since=(1, 11)),
        Support(feature=Feature.HOTPLUG, since=(1, 14), instead="give the guest more `mem`"),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.INITIAL_BALLOON),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.NET_BRIDGE),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.CREDENTIALS),
        Support(
            feature=Feature.HOTPLUGGED, available=False,
            instead="add it to `mem`, or plug it in with microvm-balloon SIZE",
        ),
        Support(feature=Feature.ACCEL_TCG, available=False, instead="use qemu, which can emulate"),
        Support(
            feature=Feature.CPU_MODEL, available=False,
            instead="use a CPU template (firecracker.cpu), or qemu",
        ),
        Support(feature=Feature.USER, available=False, instead="start it as that user"),
        Support(
            feature=Feature.SERIAL, available=False,
            instead="leave `serial` out: the guest finds volumes by UUID; or use cloud-hypervisor",
        ),
        Support(
            feature=Feature.DIRECT, available=False,
            instead="leave `direct` out, or use qemu or cloud-hypervisor",
        ),
        Support(feature=Feature.IMAGE_TYPE, available=False, instead="qemu-img convert -O raw"),
        Support(feature=Feature.SHARE_9P, available=False, instead=_NO_SHARES),
        Support(feature=Feature.SHARE_VIRTIOFS, available=False, instead=_NO_SHARES),
        Support(feature=Feature.DAX, available=False, instead=_NO_SHARES),
        Support(
            feature=Feature.ROOT_SHARED, available=False,
            instead="set store_on_disk, or use qemu or cloud-hypervisor",
        ),
        Support(feature=Feature.NET_USER, available=False, instead=_NO_USER_NET),
        Support(feature=Feature.FORWARD, available=False, instead=_NO_FORWARD),
        Support(feature=Feature.FORWARD_REMAPPED, available=False, instead=_NO_FORWARD),
        Support(feature=Feature.FORWARD_REMAPPED_UDP, available=False, instead=_NO_FORWARD),
        Support(feature=Feature.FORWARD_IPV6, available=False, instead=_NO_FORWARD),
        Support(
            feature=Feature.NET_MACVTAP, available=False,
            instead="use tap with `bridge`, or cloud-hypervisor",
        ),
        Support(feature=Feature.VHOST, available=False, instead="leave out `tap.vhost`, or qemu"),
        Support(feature=Feature.PCI, available=False, instead="use cloud-hypervisor"),
        Support(feature=Feature.USB, available=False, instead="use qemu"),
        Support(
            feature=Feature.GRAPHICS, available=False, instead="use the serial console or ssh"
        ),
        Support(feature=Feature.MACHINED, available=False, instead="leave it out"),
        Support(feature=Feature.ROOT_PORTS, available=False, instead="use qemu"),
    )  # fmt: skip

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse more devices and CPUs than it has room for."""
        problems = [*limits.devices(microvm, PCI_SLOTS, own=8), *limits.hotplug(microvm)]
        if microvm.vcpu > MOST_VCPUS:
            message = f"{microvm.vcpu} virtual CPUs; firecracker has at most {MOST_VCPUS}"
            hint = "say less, or use qemu or cloud-hypervisor"
            problems.append(Problem(where="vcpu", message=message, hint=hint))
        return problems

    def problems_here(self, microvm: MicroVM, facts: Facts) -> list[Problem]:
        """Refuse what this version has no room for, or not both of."""
        version = facts.programs[PROGRAM].version
        if not version:
            return []
        problems = []
        if version < PCI_SINCE:
            problems += [
                Problem(where=p.where, message=f"{p.message}; 1.13 has more", hint=p.hint)
                for p in limits.devices(microvm, MMIO_SLOTS, own=8)
            ]
        if version < REPORTING_SINCE and microvm.hugepage_mem and microvm.balloon:
            message = f"huge pages and a balloon: {self._too_old(REPORTING_SINCE, version)}"
            problems.append(
                Problem(where="hugepage_mem", message=message, hint="leave one of the two out")
            )
        return problems

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a handle on its HTTP socket."""
        from microvm.hypervisors.firecracker_control import FirecrackerControl

        return FirecrackerControl(path, timeout_s=timeout_s)

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line and the configuration of one process."""
        return FirecrackerPlan(runner, facts).plan()
