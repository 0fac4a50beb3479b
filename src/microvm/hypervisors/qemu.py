"""qemu: the most complete device model, and the only one that can emulate.

Sources: qemu-system-x86_64(1), `-device help` of 7.2 and 10.0.
"""

from pathlib import Path

from microvm.errors import Problem
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support
from microvm.hypervisors.qemu_limits import (
    MMIO_SLOTS,
    PCI_SLOTS,
    host_limits,
    limits,
    own_slots,
    slots_used,
)
from microvm.hypervisors.qemu_plan import CONTROL, MOST_QUEUES, PROGRAM, QemuPlan
from microvm.hypervisors.room import Most, Room
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts
from microvm.model.forwards import HOST
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

MMIO = Most(
    room=Room.DEVICES, most=MMIO_SLOTS, instead="leave `qemu.machine` out, which chooses q35 then"
)


class Qemu(Hypervisor):
    """Plans for machines `microvm` (hardware virtualisation) and `q35`."""

    name = "qemu"
    program = PROGRAM
    newest = (10, 0)
    control_socket = CONTROL
    most_queues = MOST_QUEUES
    supports = (
        Support(feature=Feature.ACCEL_TCG),
        Support(feature=Feature.CPU_MODEL),
        Support(feature=Feature.HUGE_PAGES),
        Support(feature=Feature.HOTPLUG),
        Support(feature=Feature.HOTPLUGGED),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.INITIAL_BALLOON),
        Support(feature=Feature.BALLOON_GIVES),
        Support(feature=Feature.BALLOON_KEEPS),
        Support(feature=Feature.HUGE_BALLOON),
        Support(feature=Feature.SOCKET),
        Support(feature=Feature.USER),
        Support(feature=Feature.SERIAL),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.QCOW2),
        Support(feature=Feature.QCOW2_DIRECT),
        Support(feature=Feature.VHD),
        Support(feature=Feature.SHARE_9P),
        Support(feature=Feature.READ_ONLY_9P),
        Support(feature=Feature.MAPPED_9P),
        Support(feature=Feature.SHARE_VIRTIOFS),
        Support(feature=Feature.ROOT_SHARED),
        Support(feature=Feature.ROOT_9P),
        Support(feature=Feature.NET_USER),
        Support(feature=Feature.NET_USER_MORE),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.NET_BRIDGE),
        Support(feature=Feature.NET_MACVTAP),
        Support(feature=Feature.FORWARD),
        Support(feature=Feature.PCI),
        Support(feature=Feature.USB),
        Support(feature=Feature.ROOT_PORTS),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.CREDENTIALS),
        Support(feature=Feature.VHOST),
        Support(feature=Feature.FORWARD_IPV6, available=False, instead="use IPv4 addresses"),
        Support(feature=Feature.FORWARD_REMAPPED),
        Support(
            feature=Feature.FORWARD_REMAPPED_UDP,
            available=False,
            instead="the guest reaches a UDP port of the host's loopback under the same number at "
            f'{HOST}; say guest.address = "{HOST}" and the same port',
        ),
    )  # fmt: skip
    takes = (
        Most(room=Room.VCPUS, most=288),  # of machine microvm, and of q35 in 7.2
        Most(room=Room.DEVICES, most=PCI_SLOTS),
    )

    def rooms(self, microvm: MicroVM) -> tuple[Most, ...]:
        """Return how many of something it takes: machine `microvm` has fewer slots."""
        fewer = microvm.qemu.machine == "microvm"
        return (*self.takes, MMIO) if fewer else self.takes

    def used(self, room: Room, microvm: MicroVM) -> tuple[int, int]:
        """Return how much of a room a declaration takes, and how much of that it doesn't name."""
        if room is Room.DEVICES:
            return slots_used(microvm), own_slots(microvm)
        return super().used(room, microvm)

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Return every reason that no row has, such as names that qemu does not take."""
        return list(limits(microvm))

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Refuse what this host has no device, machine or virtiofsd for."""
        return list(host_limits(microvm, facts))

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a QMP connection."""
        from microvm.hypervisors.qemu_control import QemuControl

        return QemuControl(path, timeout_s=timeout_s)

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line of one qemu process and its helpers."""
        return QemuPlan(runner, facts).plan()
