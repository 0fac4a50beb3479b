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
from microvm.model.facts import Facts, HostFacts, dotted
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

MMIO_SLOTS = 17
"""Interrupts that devices without PCI have on x86 (CHANGELOG.md, 1.15)."""
MOST_VCPUS = 32
HUGE_PAGE_KIB = 2048


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
        Support(feature=Feature.HOTPLUG, since=(1, 14)),
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
        Support(
            feature=Feature.CPU_MODEL, available=False,
            instead="leave `cpu` out, and use a CPU template (firecracker.cpu)",
        ),
        Support(feature=Feature.SHARE_9P, available=False, instead="use a volume"),
        Support(feature=Feature.SHARE_VIRTIOFS, available=False, instead="use a volume"),
    )  # fmt: skip

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse more devices and CPUs than it has room for."""
        problems = [*limits.devices(microvm, limits.PCI_SLOTS), *limits.hotplug(microvm)]
        if microvm.vcpu > MOST_VCPUS:
            message = f"{microvm.vcpu} virtual CPUs; firecracker has at most {MOST_VCPUS}"
            hint = "say less, or use qemu or cloud-hypervisor"
            problems.append(Problem(where="vcpu", message=message, hint=hint))
        return problems

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Refuse what this version has no room for, or not both of."""
        program = facts.programs[PROGRAM]
        # It asks for pages of 2 MiB, whatever the host's usual ones are.
        usual = facts.hugepage_kib == HUGE_PAGE_KIB
        problems = [*(limits.huge_pages(microvm, facts) if usual else ())]
        if not program.has(PCI_SINCE):
            more = f"{dotted(PCI_SINCE)} has more"
            problems += [
                Problem(where=p.where, message=f"{p.message}; {more}", hint=p.hint)
                for p in limits.devices(microvm, MMIO_SLOTS)
            ]
        if microvm.hugepage_mem and microvm.balloon and not program.has(REPORTING_SINCE):
            message = f"huge pages and a balloon: {self._needs(REPORTING_SINCE, program)}"
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
