"""The command line of one cloud-hypervisor process, put together device by device.

Sources: cloud-hypervisor/src/main.rs and vmm/src/config.rs of v40 to v53.
"""

import platform
from dataclasses import dataclass, field, replace

from microvm.hypervisors import hybrid_vsock, resources, shares
from microvm.hypervisors.cloud_hypervisor_syntax import Arguments, value
from microvm.hypervisors.kernel_line import kernel_line
from microvm.hypervisors.resources import Disk
from microvm.model.facts import Facts, Program, dotted
from microvm.model.identity import dashed, mac
from microvm.model.plan import Helper, LaunchPlan
from microvm.model.runner import Runner

CONTROL = "cloud-hypervisor.sock"
PROGRAM = "cloud-hypervisor"
LANDLOCK_SINCE = (41,)
LANDLOCK_ABI, LANDLOCK_LINUX = 3, "6.2"
"""The one that it insists on (vmm/src/landlock.rs), and the first Linux that has it."""
IMAGE_TYPE_SINCE = (51,)
SYSTEM_UUID_SINCE = (53,)
_VHDX = (
    "its own system-call filter may end cloud-hypervisor at the first write to a vhdx image (seen"
    " with a static build of 53.0): prefer qcow2, or raw"
)
"""A write draws a random GUID for the image's log (block/src/formats/vhdx/header.rs); a build
without getrandom(2) reads a file for it, which landlock and seccomp don't expect of a disk."""
MOST_QUEUES = 16


@dataclass(slots=True)
class CloudHypervisorPlan:
    """The parts of one plan while it is put together."""

    runner: Runner
    facts: Facts
    arguments: Arguments = field(init=False)
    helpers: list[Helper] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def plan(self) -> LaunchPlan:
        """Return the whole plan. Raises `SpecError` for what the command line can't say."""
        runner, facts = self.runner, self.facts
        vm = runner.microvm
        self.arguments = Arguments(self.program.path)
        control = vm.socket or CONTROL
        self._machine(control)
        self._disks()
        self._interfaces()
        self._shares()
        self._extras()
        self._sandbox()
        self.arguments.merge(vm.cloud_hypervisor.extra_args)
        common = resources.common_plan(runner, facts, control, queues=self.queues)
        return replace(
            common,
            argv=self.arguments.words(),
            credentials=resources.credential_disk(runner, facts),
            volumes=resources.volume_plans(runner, guessed=self.guesses),
            helpers=tuple(self.helpers),
            opened=resources.opened(runner, queues=self.queues),
            sockets=(control, *hybrid_vsock.sockets(runner, facts)),
            locks=(f"{control}.lock",),
            console=("tty",) in (self.arguments.get("--serial"), self.arguments.get("--console")),
            job=hybrid_vsock.job_end(facts),
            notes=(*common.notes, *self.notes),
        )

    @property
    def program(self) -> Program:
        """The cloud-hypervisor that will run."""
        return self.facts.programs[PROGRAM]

    @property
    def guesses(self) -> bool:
        """Whether it can't be told the format of an image."""
        return not self.program.has(IMAGE_TYPE_SINCE)

    @property
    def queues(self) -> int:
        """Queue pairs of a network interface."""
        return min(self.runner.microvm.vcpu, MOST_QUEUES)

    def _value(self, text: str, where: str) -> str:
        return value(text, self.program, where)

    def _machine(self, control: str) -> None:
        runner, facts = self.runner, self.facts
        vm = runner.microvm
        line = kernel_line(
            runner, facts,
            own=self._own_parameters(),
            modules=resources.modules(
                runner, "virtio_pci", *hybrid_vsock.modules(runner, facts)
            ),
            job=hybrid_vsock.JOB,
            credentials=resources.credential_disk(runner, facts),
        )  # fmt: skip
        self.arguments.add("--api-socket", f"path={self._value(control, 'socket')}")
        self.arguments.add("--kernel", resources.vmlinux(runner, facts))
        self.arguments.add("--initramfs", resources.initrd(runner, facts))
        self.arguments.add("--cmdline", line)
        self.arguments.add("--cpus", f"boot={vm.vcpu}")
        self.arguments.add("--memory", self._memory())
        uuid = "system_uuid" if self.program.has(SYSTEM_UUID_SINCE) else "uuid"
        strings = vm.cloud_hypervisor.platform_oem_strings
        oem = f",oem_strings=[{','.join(strings)}]" if strings else ""
        self.arguments.add("--platform", f"{uuid}={dashed(facts.machine_id)}{oem}")
        self.arguments.add("--serial", "tty")
        self.arguments.add("--console", "off")

    def _own_parameters(self) -> tuple[str, ...]:
        console = "ttyAMA0" if platform.machine() == "aarch64" else "ttyS0"
        # It starts a guest that reboots anew in the same process, without its helpers. A launcher
        # that sees a panic ends it: after a boot as fast as that there would be none to see.
        panic = "panic=0" if self.facts.watched else "panic=-1"
        return (f"console={console}", panic, "microvm.reboot=poweroff")

    def _memory(self) -> str:
        vm = self.runner.microvm
        text = f"size={vm.mem}M"
        # vhost-user needs memory that another process sees; such pages can't be merged.
        text += ",shared=on" if vm.uses("virtiofs") else ",mergeable=on"
        if vm.hugepage_mem:
            text += ",hugepages=on"
            if self.facts.hugepage_kib:  # else it asks a mounted /dev/hugepages
                text += f",hugepage_size={self.facts.hugepage_kib}K"
        if vm.hotplug_mem:
            text += f",hotplug_method=virtio-mem,hotplug_size={vm.hotplug_mem}M"
        if vm.hotplugged_mem:
            text += f",hotplugged_size={vm.hotplugged_mem}M"
        return text

    def _disks(self) -> None:
        for disk in resources.disks_with_credentials(self.runner, self.facts):
            self.arguments.add("--disk", self._disk(disk))
        if self.guesses and any(not volume.read_only for volume in self.runner.microvm.volumes):
            self.notes.append(
                f"cloud-hypervisor before {dotted(IMAGE_TYPE_SINCE)} guesses an image's format: a "
                "guest that writes another format's header to its disk could read files of the host"
            )

    def _disk(self, disk: Disk) -> str:
        number = disk.name.removeprefix("volume")
        where = f"volumes.{number}.image" if number != disk.name else "store"
        text = f"path={self._value(disk.path, where)},id={disk.name}"
        text += f",readonly={'on' if disk.read_only else 'off'}"
        if not self.guesses:
            text += f",image_type={disk.image_type}"
            if disk.read_only or disk.image_type in ("vhd", "vhdx"):
                text += ",sparse=off"  # it would warn that it can't discard
        if disk.direct is not None:
            text += f",direct={'on' if disk.direct else 'off'}"
        if disk.serial:
            text += f",serial={disk.serial}"
        if self.queues > 1 and not disk.read_only:
            text += f",num_queues={self.queues}"
        return text

    def _interfaces(self) -> None:
        numbers = resources.descriptors(self.runner, queues=self.queues)
        for interface in self.runner.microvm.interfaces:
            address = interface.mac or mac(self.facts.machine_id, interface.id)
            self.arguments.add(
                "--net",
                f"id=net-{interface.id},fd=[{','.join(numbers[interface.id])}],mac={address},"
                f"num_queues={2 * self.queues}",
            )

    def _shares(self) -> None:
        for one in shares.served(self.runner, self.facts):
            self.helpers.append(one.helper)
            socket = self._value(one.socket, "shares")
            self.arguments.add("--fs", f"id=fs-{one.tag},tag={one.tag},socket={socket}")

    def _extras(self) -> None:
        vm = self.runner.microvm
        if vm.balloon:
            oom = "off" if vm.deflate_on_oom is False else "on"
            size = vm.initial_balloon_mem
            self.arguments.add(
                "--balloon", f"size={size}M,deflate_on_oom={oom},free_page_reporting=on"
            )
        if (number := hybrid_vsock.cid(self.runner, self.facts)) is not None:
            self.arguments.add("--vsock", f"cid={number},socket={hybrid_vsock.SOCKET}")
        for device in vm.devices:
            self.arguments.add("--device", f"path=/sys/bus/pci/devices/{device.path}")

    def _sandbox(self) -> None:
        self.arguments.add("--seccomp", "true")
        volumes = self.runner.microvm.volumes
        if any(each.image_type == "vhdx" and not each.read_only for each in volumes):
            self.notes.append(_VHDX)
        if not self.program.has(LANDLOCK_SINCE) or self.facts.landlock < LANDLOCK_ABI:
            needed = f"cloud-hypervisor {dotted(LANDLOCK_SINCE)} and Linux {LANDLOCK_LINUX}"
            self.notes.append(f"without landlock: it needs {needed}")
            return
        self.arguments.add("--landlock")
        if hybrid_vsock.cid(self.runner, self.facts) is not None:
            # Where it makes its socket.
            self.arguments.add("--landlock-rules", "path=.,access=w")
        if self.runner.microvm.devices:
            # It adds /dev/vfio/ADDRESS itself, where the device's group is meant.
            self.arguments.add("--landlock-rules", "path=/dev/vfio,access=rw")
