"""The command line of one qemu process, put together device by device.

Sources: qemu-system-x86_64(1), `-device help` of 7.2 and 10.0.
"""

import platform
from dataclasses import dataclass, field, replace

from microvm.hypervisors import resources, shares
from microvm.hypervisors.kernel_line import kernel_line
from microvm.hypervisors.qemu_devices import passed_through, root_ports
from microvm.hypervisors.qemu_limits import MMIO_SLOTS, need_pci, slots_used
from microvm.hypervisors.qemu_memory import (
    first_commands,
    hotplug_memory,
    initial_balloon,
    memory_backend,
    memory_size,
)
from microvm.hypervisors.qemu_syntax import FORMATS, escape
from microvm.hypervisors.resources import Disk
from microvm.model.declaration import MicroVM
from microvm.model.devices import Interface, Share, names_device
from microvm.model.facts import Facts
from microvm.model.identity import dashed, mac
from microvm.model.plan import Helper, JobEnd, LaunchPlan, PortPlan
from microvm.model.runner import Runner

CONTROL = "qmp.sock"
WATCH = "watch.sock"
"""A second control socket: QEMU serves one client on each, and a launcher that stays keeps its."""
MOST_QUEUES = 16
FIRST_NET = 2
"""Third number of the addresses of QEMU's first user network, 10.0.2.0/24."""
JOB_PORT = "microvm.job"
_SERVES = "qemu runs in a user namespace, where the layers that it serves have the guest's owners"
RUN_WITH_USER = (9, 1)
"""The version with `-run-with user=`, which replaces `-runas`."""
LOCKS_TRANSLATIONS = (8, 1)
"""The version whose emulated CPUs may have a thread each. Earlier ones translate code while another
thread changes it; kernels, which patch themselves, then panic ("Fatal exception in interrupt").
Mended by QEMU's commit deba78709a, "accel/tcg: Always lock pages before translation"."""
PROGRAM = f"qemu-system-{platform.machine()}"


@dataclass(slots=True)
class QemuPlan:
    """The parts of one plan while it is put together."""

    runner: Runner
    facts: Facts
    argv: list[str] = field(default_factory=list)
    helpers: list[Helper] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)

    def plan(self) -> LaunchPlan:
        """Return the whole plan. Raises `SpecError` for a kernel command line that is too long."""
        runner, facts = self.runner, self.facts
        vm = runner.microvm
        self._machine()
        self._root()
        self._disks()
        for share in vm.shares:
            self._share(share)
        for interface in vm.interfaces:
            self._interface(interface)
        self._extras()
        line = kernel_line(
            runner, facts,
            own=self._own_parameters(), modules=self._modules(), job=f"port:{JOB_PORT}",
        )  # fmt: skip
        self.argv += [
            "-kernel", resources.kernel(runner, facts),
            "-initrd", resources.initrd(runner, facts),
            "-append", line,
            *vm.qemu.extra_args,
        ]  # fmt: skip
        control = vm.socket or CONTROL
        common = resources.common_plan(runner, facts, control, queues=self.queues)
        return replace(
            common,
            argv=tuple(self.argv),
            files=initial_balloon(vm) if vm.initial_balloon_mem else {},
            helpers=tuple(self.helpers),
            opened=resources.opened(runner, queues=self.queues),
            ports=_ports(vm),
            sockets=(
                control,
                *((WATCH,) if facts.watched else ()),
                *((resources.JOB,) if facts.job else ()),
            ),
            watch=WATCH if facts.watched else None,
            console=vm.qemu.serial_console,
            job=JobEnd(kind="connect", socket=resources.JOB) if facts.job else None,
            trees=tuple(self.trees),
            changes_user=vm.user is not None,
            notes=(*common.notes, *((_SERVES,) if self.trees else ())),
        )

    @property
    def machine(self) -> str:
        """The machine type."""
        vm = self.runner.microvm
        if platform.machine() == "aarch64":
            return "virt"
        if vm.qemu.machine:
            return vm.qemu.machine
        if self.facts.accelerator.kind == "tcg" or not vm.store_on_disk:
            return "q35"  # machine microvm hangs now and then under emulation
        crowded = slots_used(vm) > MMIO_SLOTS
        return "q35" if crowded or self.facts.positions or any(need_pci(vm)) else "microvm"

    @property
    def pci(self) -> bool:
        """Whether virtio devices are PCI functions; else they are memory-mapped."""
        return self.machine != "microvm"

    @property
    def queues(self) -> int:
        """Queue pairs of an interface that the launcher opens."""
        return min(self.runner.microvm.vcpu, MOST_QUEUES)

    @property
    def shared_memory(self) -> bool:
        """Whether a helper has to see the guest's memory (vhost-user)."""
        return self.runner.microvm.uses("virtiofs")

    def device(self, kind: str, properties: str = "") -> None:
        """Add a virtio device on the machine's transport."""
        suffix = "pci" if self.pci else "device"
        self.argv += ["-device", f"{kind}-{suffix}{',' if properties else ''}{properties}"]

    def _machine(self) -> None:
        vm, facts = self.runner.microvm, self.facts
        options = {"usb": "off", "vmport": "off"} if self.machine == "q35" else {}
        if self.machine == "microvm":
            options = {"acpi": "on", "pit": "off", "pic": "off", "rtc": "on", "isa-serial": "on"}
            options |= {"auto-kernel-cmdline": "off", "ioapic2": "on"}
        if self.shared_memory or vm.hugepage_mem:
            options["memory-backend"] = "mem"
        options |= vm.qemu.machine_opts
        pairs = (f"{key}={escape(value)}" for key, value in options.items())
        machine = ",".join([self.machine, *pairs])
        self.argv += [
            facts.programs[PROGRAM].path,
            "-name", f"guest={escape(self.runner.name)}",
            "-machine", machine,
            "-accel", self._accelerator(),
            "-cpu", vm.cpu or self._cpu(),
            "-smp", str(vm.vcpu),
            "-m", memory_size(vm),
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-uuid", dashed(facts.machine_id),
            *self._privileges(),
            "-qmp", f"unix:path={escape(vm.socket or CONTROL)},server=on,wait=off",
        ]  # fmt: skip
        if facts.watched:
            self.argv += ["-qmp", f"unix:path={WATCH},server=on,wait=off"]
        if self.shared_memory or vm.hugepage_mem:
            self.argv += ["-object", memory_backend(vm, "mem", vm.mem)]
        if vm.qemu.serial_console:
            self.argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        if self.machine == "microvm":
            self.argv += ["-device", "i8042"]
        self.device("virtio-rng")

    def _accelerator(self) -> str:
        if self.facts.accelerator.kind == "kvm":
            return "kvm"
        parallel = self.facts.programs[PROGRAM].has(LOCKS_TRANSLATIONS)
        return f"tcg,thread={'multi' if parallel else 'single'}"

    def _privileges(self) -> tuple[str, ...]:
        """Return what limits a guest that took over the process: system calls, and its user."""
        user = self.runner.microvm.user
        elevate = "allow" if user else "deny"  # the filter is there before it changes its user
        sandbox = f"on,obsolete=deny,elevateprivileges={elevate},spawn=deny,resourcecontrol=deny"
        if user is None:
            return ("-sandbox", sandbox)
        if self.facts.programs[PROGRAM].has(RUN_WITH_USER):
            return ("-sandbox", sandbox, "-run-with", f"user={escape(user)}")
        return ("-sandbox", sandbox, "-runas", user)

    def _modules(self) -> tuple[str, ...]:
        transport = "virtio_pci" if self.pci else "virtio_mmio"
        job = ("virtio_console",) if self.facts.job else ()
        vsock = (resources.VSOCK,) if self.runner.microvm.vsock.cid is not None else ()
        return resources.modules(self.runner, transport, *job, *vsock)

    def _cpu(self) -> str:
        if self.facts.accelerator.kind == "kvm":
            return "host"
        return "max" if self.machine == "virt" else "qemu64"

    def _own_parameters(self) -> tuple[str, ...]:
        console = "ttyAMA0" if self.machine == "virt" else "ttyS0"
        words = [f"console={console}"] if self.runner.microvm.qemu.serial_console else []
        # A triple fault is the reset that every machine type has; -1: at once.
        return (*words, "reboot=t", "panic=-1") if self.machine != "virt" else (*words, "panic=-1")

    def _disk(self, disk: Disk) -> None:
        cache = "" if disk.direct is None else f",cache.direct={'on' if disk.direct else 'off'}"
        driver = "host_device" if names_device(disk.path) else "file"
        # The launcher locks it; cloud-hypervisor's lock, reading it too, would keep qemu out.
        locking = ",file.locking=off" if disk.read_only else ""
        self.argv += [
            "-drive",
            f"if=none,id={disk.name},format={FORMATS[disk.image_type]},file.driver={driver},"
            f"file.filename={escape(disk.path)},read-only={'on' if disk.read_only else 'off'},"
            f"discard=unmap{cache}{locking}",
        ]
        serial = f",serial={disk.serial}" if disk.serial else ""
        self.device("virtio-blk", f"drive={disk.name}{serial}")

    def _root(self) -> None:
        for share in resources.layer_shares(self.runner, self.facts):
            if share.proto == "virtiofs":
                self._virtiofs(share, share.source, mapped=True)
            else:
                self.trees.append(share.source)
                self._9p(share.tag, share.source, share.security_model, read_only=True)

    def _disks(self) -> None:
        for disk in resources.disks(self.runner, self.facts):
            self._disk(disk)

    def _share(self, share: Share) -> None:
        source = resources.in_project(share.source, self.facts)
        if share.proto == "virtiofs":
            self._virtiofs(share, source, mapped=False)
        else:
            self._9p(share.tag, source, share.security_model, read_only=share.read_only)

    def _virtiofs(self, share: Share, source: str, *, mapped: bool) -> None:
        one = shares.serve(self.runner, self.facts, share, source, mapped=mapped)
        self.helpers.append(one.helper)
        self.argv += ["-chardev", f"socket,id=fs-{one.tag},path={escape(one.socket)}"]
        self.device("vhost-user-fs", f"chardev=fs-{one.tag},tag={one.tag}")

    def _9p(self, tag: str, source: str, security_model: str, *, read_only: bool) -> None:
        ro = ",readonly=on" if read_only else ""
        self.argv += [
            "-fsdev",
            f"local,id=fs-{tag},path={escape(source)},security_model={security_model},multidevs=remap{ro}",
        ]
        self.device("virtio-9p", f"fsdev=fs-{tag},mount_tag={tag}")

    def _interface(self, interface: Interface) -> None:
        address = interface.mac or mac(self.facts.machine_id, interface.id)
        properties = f"netdev={interface.id},mac={address}{',romfile=' if self.pci else ''}"
        if interface.type == "user":
            netdev = f"user,id={interface.id}{self._user_network(interface)}"
        else:
            numbers = resources.descriptors(self.runner, queues=self.queues)[interface.id]
            several = len(numbers) > 1
            vhost = ",vhost=on" if interface.tap.vhost else ""
            netdev = f"tap,id={interface.id},fd{'s' if several else ''}={':'.join(numbers)}{vhost}"
            if several:
                properties += ",mq=on"
                # An interrupt for each queue, the control queue and changes of the configuration.
                properties += f",vectors={2 * len(numbers) + 2}" if self.pci else ""
        self.argv += ["-netdev", netdev]
        self.device("virtio-net", properties)

    def _user_network(self, interface: Interface) -> str:
        """Give each user interface a network of its own; forwarded ports have a single one."""
        users = [each for each in self.runner.microvm.interfaces if each.type == "user"]
        place = users.index(interface)
        return f",net=10.0.{FIRST_NET + place}.0/24" if place else self._forwards()

    def _forwards(self) -> str:
        """Ports of the host; those that the guest opens are a matter of its own units."""
        text = ""
        for forward in self.runner.microvm.forward_ports:
            if forward.origin == "host":
                host, guest = forward.host, forward.guest
                text += f",hostfwd={forward.proto}:{host.address or '127.0.0.1'}:{host.port}"
                text += f"-{guest.address}:{guest.port}"
        return text

    def _extras(self) -> None:
        vm = self.runner.microvm
        if self.facts.job:
            self.argv += ["-chardev", f"socket,id=job,path={resources.JOB},server=on,wait=off"]
            self.device("virtio-serial")
            self.argv += ["-device", f"virtserialport,chardev=job,name={JOB_PORT}"]
        if vm.hotplug_mem:
            self.argv += hotplug_memory(vm)
        if vm.balloon:
            oom = "off" if vm.deflate_on_oom is False else "on"
            self.device("virtio-balloon", f"free-page-reporting=on,deflate-on-oom={oom}")
        if vm.initial_balloon_mem:
            self.argv += first_commands()
        if vm.vsock.cid is not None:
            self.device("vhost-vsock", f"guest-cid={vm.vsock.cid}")
        self.argv += [*root_ports(vm), *passed_through(vm)]
        for name, path in sorted(vm.credential_files.items()):
            file = resources.in_project(path, self.facts)
            self.argv += ["-fw_cfg", f"name=opt/io.systemd.credentials/{name},file={escape(file)}"]


def _ports(vm: MicroVM) -> tuple[PortPlan, ...]:
    """Return the ports of the host that have to be free."""
    return tuple(
        PortPlan(
            where=f"forward_ports.{index}",
            proto=forward.proto,
            address=forward.host.address or "127.0.0.1",
            port=forward.host.port,
        )
        for index, forward in enumerate(vm.forward_ports)
        if forward.origin == "host"
    )
