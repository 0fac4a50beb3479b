"""qemu: the most complete device model, and the only one that can emulate.

Sources: qemu-system-x86_64(1), `-device help` of 7.2 and 10.0.
"""

from microvm.errors import Problem
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.features import Feature, Support
from microvm.hypervisors.qemu_host import refuse_on_this_host
from microvm.hypervisors.qemu_plan import PROGRAM, QemuPlan
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

MMIO_SLOTS = 24
"""virtio-mmio transports of machine `microvm` with its second I/O APIC (hw/i386/microvm.c)."""
PCI_SLOTS = 27
"""Slots of q35's root bus that are left for devices."""

_SHARE_9P = 'use virtiofs, or a kernel with 9p (system.kernel = "generic")'


class Qemu(Hypervisor):
    """Plans for machines `microvm` (hardware virtualisation) and `q35`."""

    name = "qemu"
    program = PROGRAM
    supports = (
        Support(feature=Feature.ACCEL_TCG),
        Support(feature=Feature.CPU_MODEL),
        Support(feature=Feature.HUGE_PAGES),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.SERIAL),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.SHARE_9P),
        Support(feature=Feature.SHARE_VIRTIOFS),
        Support(feature=Feature.ROOT_SHARED),
        Support(feature=Feature.NET_USER),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.FORWARD),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.CREDENTIALS),
        Support(feature=Feature.VHOST),
        Support(
            feature=Feature.FORWARD_REMAPPED,
            available=False,
            instead="the guest reaches a port of the host's loopback under the same number at "
            "10.0.2.2; leave the guest's address empty and its port the same",
        ),
        Support(feature=Feature.HOTPLUG, available=False, instead="give the guest more `mem`"),
        Support(feature=Feature.INITIAL_BALLOON, available=False, instead="microvm-balloon SIZE"),
        Support(
            feature=Feature.USER, available=False, instead="start it as that user"
        ),
        Support(
            feature=Feature.IMAGE_TYPE, available=False, instead="qemu-img convert -O raw"
        ),
        Support(feature=Feature.DAX, available=False, instead="leave out `dax`"),
        Support(feature=Feature.NET_MACVTAP, available=False, instead="use tap with `bridge`"),
        Support(feature=Feature.NET_BRIDGE, available=False, instead="use tap with `bridge`"),
        Support(feature=Feature.PCI, available=False),
        Support(feature=Feature.USB, available=False),
        Support(feature=Feature.ROOT_PORTS, available=False),
        Support(feature=Feature.GRAPHICS, available=False, instead="use the serial console or ssh"),
        Support(feature=Feature.MACHINED, available=False),
    )  # fmt: skip

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse more devices than the machine has slots for, and 9p with a kernel without it."""
        problems = []
        machine = microvm.qemu.machine
        limit = MMIO_SLOTS if machine == "microvm" else PCI_SLOTS
        used = 8 + len(microvm.volumes) + len(microvm.shares) + len(microvm.interfaces)
        if used > limit:
            message = f"{used} devices, 8 of them our own; the machine has {limit} slots"
            problems.append(
                Problem(where="volumes", message=message, hint="use fewer, larger volumes")
            )
        uses_9p = any(share.proto == "9p" for share in microvm.shares) or (
            not microvm.store_on_disk and microvm.store_proto == "9p"
        )
        if uses_9p and microvm.system.kernel == "cloud":
            message = "the cloud kernel has no 9p, which a share needs"
            problems.append(Problem(where="system.kernel", message=message, hint=_SHARE_9P))
        if machine == "microvm" and microvm.shares:
            problems.append(
                Problem(
                    where="qemu.machine",
                    message="shares need PCI, which machine microvm lacks here",
                    hint="leave `machine` out, or use q35",
                )
            )
        if microvm.accel == "tcg" and machine == "microvm":
            problems.append(
                Problem(
                    where="qemu.machine",
                    message="machine microvm may hang at boot under emulation",
                    hint="leave `machine` out, or use q35",
                )
            )
        return problems

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line of one qemu process and its helpers."""
        refuse_on_this_host(runner.microvm, facts)
        return QemuPlan(runner, facts).plan()
