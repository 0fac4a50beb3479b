"""qemu: the most complete device model, and the only one that can emulate.

Sources: qemu-system-x86_64(1), `-device help` of 7.2 and 10.0.
"""

from pathlib import Path

from microvm.errors import Problem
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support
from microvm.hypervisors.qemu_limits import host_limits, limits
from microvm.hypervisors.qemu_plan import CONTROL, MOST_QUEUES, PROGRAM, QemuPlan
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts
from microvm.model.forwards import HOST
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner


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
        Support(feature=Feature.USER),
        Support(feature=Feature.SERIAL),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.QCOW2),
        Support(feature=Feature.VHD),
        Support(feature=Feature.SHARE_9P),
        Support(feature=Feature.SHARE_VIRTIOFS),
        Support(feature=Feature.ROOT_SHARED),
        Support(feature=Feature.ROOT_9P),
        Support(feature=Feature.NET_USER),
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

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Return every reason that is no feature, such as too many disks."""
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
