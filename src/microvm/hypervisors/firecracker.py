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
from microvm.hypervisors.room import Most, Room
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

MMIO_SLOTS = 17
"""Interrupts that devices without PCI have on x86 (CHANGELOG.md, 1.15)."""
HUGE_PAGE_KIB = 2048


class Firecracker(Hypervisor):
    """Plans for versions from 1.8 on, the first that tells its devices by ACPI."""

    name = "firecracker"
    program = PROGRAM
    control_socket = CONTROL
    boots_vmlinux = True
    host_vsock = False
    oldest = (1, 8)
    newest = (1, 16)
    supports = (
        Support(feature=Feature.HUGE_PAGES, since=(1, 11)),
        Support(feature=Feature.HOTPLUG, since=(1, 14)),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.INITIAL_BALLOON),
        Support(feature=Feature.BALLOON_GIVES),
        Support(feature=Feature.BALLOON_KEEPS),
        Support(feature=Feature.HUGE_BALLOON, since=REPORTING_SINCE),
        Support(feature=Feature.SOCKET),
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
        Support(feature=Feature.READ_ONLY_9P, available=False, instead="use a volume"),
        Support(feature=Feature.SHARE_VIRTIOFS, available=False, instead="use a volume"),
    )  # fmt: skip
    takes = (
        Most(room=Room.VCPUS, most=32),
        Most(room=Room.DEVICES, most=MMIO_SLOTS, until=PCI_SINCE),
        Most(room=Room.DEVICES, most=limits.PCI_SLOTS),
    )

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse sizes that its memory device can't have."""
        return list(limits.hotplug(microvm))

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Refuse huge pages that the host has not set aside."""
        # It asks for pages of 2 MiB, whatever the host's usual ones are.
        usual = facts.hugepage_kib == HUGE_PAGE_KIB
        return [*(limits.huge_pages(microvm, facts) if usual else ())]

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a handle on its HTTP socket."""
        from microvm.hypervisors.firecracker_control import FirecrackerControl

        return FirecrackerControl(path, timeout_s=timeout_s)

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line and the configuration of one process."""
        return FirecrackerPlan(runner, facts).plan()
