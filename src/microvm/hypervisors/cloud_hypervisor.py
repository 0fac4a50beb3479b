"""cloud-hypervisor: virtio devices on PCI, virtio-fs, passthrough, hot-plug memory; no emulation.

Sources: its documentation and vmm/src of v40 to v53.
"""

from collections.abc import Iterator
from pathlib import Path

from microvm.errors import Problem
from microvm.hypervisors import limits, virtiofsd
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.cloud_hypervisor_plan import (
    CONTROL,
    MOST_QUEUES,
    PROGRAM,
    CloudHypervisorPlan,
)
from microvm.hypervisors.cloud_hypervisor_syntax import unsayable
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support
from microvm.hypervisors.room import Most, Room
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts, Program
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

_UNSAYABLE = frozenset(',"[]')


def _names(vm: MicroVM, program: Program | None = None) -> Iterator[Problem]:
    """Yield every declared name that the command line has no way to say; unset: of no version."""
    named = [("socket", vm.socket)] if vm.socket else []
    named += [(f"volumes.{i}.image", volume.image) for i, volume in enumerate(vm.volumes)]
    named += [
        (f"shares.{i}.socket", each.socket) for i, each in enumerate(vm.shares) if each.socket
    ]
    for where, name in named:
        yield from unsayable(name, program, where)


class CloudHypervisor(Hypervisor):
    """Plans for versions from 40 on."""

    name = "cloud-hypervisor"
    program = PROGRAM
    control_socket = CONTROL
    most_queues = MOST_QUEUES
    boots_vmlinux = True
    host_vsock = False
    oldest = (40,)
    newest = (53,)
    supports = (
        Support(feature=Feature.HUGE_PAGES),
        Support(feature=Feature.HOTPLUG),
        Support(feature=Feature.HOTPLUGGED),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.INITIAL_BALLOON),
        Support(feature=Feature.BALLOON_GIVES),
        Support(feature=Feature.BALLOON_KEEPS),
        Support(feature=Feature.HUGE_BALLOON),
        Support(feature=Feature.SOCKET),
        Support(feature=Feature.SERIAL),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.QCOW2),
        Support(feature=Feature.QCOW2_DIRECT),
        Support(feature=Feature.VHD),
        Support(feature=Feature.SHARE_VIRTIOFS),
        Support(feature=Feature.ROOT_SHARED),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.NET_BRIDGE),
        Support(feature=Feature.NET_MACVTAP),
        Support(feature=Feature.PCI),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.CREDENTIALS),
    )  # fmt: skip
    takes = (
        Most(room=Room.VCPUS, most=254, until=(48,)),  # its MP table had no room for more
        Most(room=Room.VCPUS, most=8192),
        Most(room=Room.DEVICES, most=limits.PCI_SLOTS),
    )

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse what its command line can't say, and its memory device can't have."""
        problems = [*limits.hotplug(microvm), *limits.pci_addresses(microvm), *_names(microvm)]
        for index, text in enumerate(microvm.cloud_hypervisor.platform_oem_strings):
            if _UNSAYABLE.intersection(text):
                problems.append(
                    Problem(
                        where=f"cloud_hypervisor.platform_oem_strings.{index}",
                        message='its command line ends a string at `,`, `[`, `]` and `"`',
                        hint="write these characters otherwise, such as in Base64",
                    )
                )
        return problems

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Refuse what this virtiofsd can't do, and names that an old version can't be told."""
        found = facts.programs.get(virtiofsd.PROGRAM)
        problems = [*limits.huge_pages(microvm, facts)]
        problems += virtiofsd.unmet(found, microvm) if found else []
        told = list(_names(microvm))
        here = _names(microvm, facts.programs[PROGRAM])
        return problems + [each for each in here if each not in told]

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a handle on its HTTP socket."""
        from microvm.hypervisors.cloud_hypervisor_control import CloudHypervisorControl

        return CloudHypervisorControl(path, timeout_s=timeout_s)

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line of one process and its helpers."""
        return CloudHypervisorPlan(runner, facts).plan()
