"""crosvm: every device in a process and sandbox of its own; virtiofs through vhost-user.

Sources: src/crosvm/cmdline.rs, devices/src/serial_device.rs and src/main.rs of crosvm (2026-08).
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from microvm.errors import Problem
from microvm.hypervisors import resources
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support
from microvm.hypervisors.kernel_line import kernel_line
from microvm.hypervisors.qemu_syntax import dashed
from microvm.hypervisors.resources import Disk
from microvm.hypervisors.shares import Served, served
from microvm.model.declaration import MicroVM
from microvm.model.devices import Interface
from microvm.model.facts import Facts
from microvm.model.identity import mac
from microvm.model.plan import JobEnd, LaunchPlan, MacvtapPlan, Opened
from microvm.model.runner import Runner

CONTROL = "crosvm.sock"
JOB = "job.sock"
FIRST_DESCRIPTOR = 100
"""Number of the first inherited tap; what a launcher has open stays below."""
STATUSES = {
    32: "reboot",
    33: "crosvm told of a crash of the guest",
    34: "crosvm told of a panic of the guest's kernel",
    36: "crosvm's watchdog ended the guest",
}
"""What its exit statuses say of the guest (enum CommandStatus)."""
EMPTY = "empty"
"""Directory in the state directory that its sandboxed devices see as their root."""


class Crosvm(Hypervisor):
    """Sandboxed devices; taps, vsock and virtiofs; no user networking, no 9p."""

    name = "crosvm"
    program = "crosvm"
    control_socket = CONTROL
    boots_vmlinux = True
    supports = (
        Support(feature=Feature.HUGE_PAGES),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.INITIAL_BALLOON),
        Support(feature=Feature.SERIAL),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.SHARE_VIRTIOFS),
        Support(feature=Feature.ROOT_SHARED),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.NET_MACVTAP),
        Support(feature=Feature.VHOST),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.PCI),
        Support(
            feature=Feature.ACCEL_TCG, available=False, instead="leave `accel` out, or use qemu"
        ),
        Support(feature=Feature.CPU_MODEL, available=False, instead="leave `cpu` out, or use qemu"),
        Support(
            feature=Feature.HOTPLUG, available=False,
            instead="give the guest more `mem`, or use cloud-hypervisor or firecracker",
        ),
        Support(feature=Feature.USER, available=False, instead="start it as that user"),
        Support(feature=Feature.IMAGE_TYPE, available=False, instead="qemu-img convert -O raw"),
        Support(feature=Feature.SHARE_9P, available=False, instead="use proto virtiofs, or qemu"),
        Support(feature=Feature.DAX, available=False, instead="leave out `dax`"),
        Support(
            feature=Feature.NET_USER, available=False, instead="use type tap, or qemu or kvmtool"
        ),
        Support(feature=Feature.NET_BRIDGE, available=False, instead="use tap with `bridge`"),
        Support(feature=Feature.FORWARD, available=False, instead="use a tap, or qemu"),
        Support(feature=Feature.USB, available=False, instead="use qemu"),
        Support(feature=Feature.ROOT_PORTS, available=False, instead="use qemu"),
        Support(feature=Feature.GRAPHICS, available=False, instead="use the serial console or ssh"),
        Support(feature=Feature.MACHINED, available=False),
    )  # fmt: skip

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse what its balloon can't do."""
        if microvm.balloon and not microvm.deflate_on_oom:
            message = "crosvm's balloon always gives memory back when the guest runs out"
            return [Problem(where="deflate_on_oom", message=message, hint="leave it out")]
        return []

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a handle that asks by crosvm's own program."""
        from microvm.hypervisors.crosvm_control import CrosvmControl

        return CrosvmControl(path, timeout_s=timeout_s, program=program, mem_mib=mem_mib)

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line of `crosvm run`."""
        return _Plan(runner, facts).plan()


def quoted(value: str) -> str:
    """Return a value as crosvm's key-value syntax takes it whole (serde_keyvalue)."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Plan:
    """The parts of one plan while it is put together."""

    def __init__(self, runner: Runner, facts: Facts) -> None:
        self._runner = runner
        self._facts = facts
        self._vm = runner.microvm
        self._modules = ["virtio_pci", "crc32c_generic", "overlay"]
        self._opened: list[Opened] = []
        self._served = [_tagged(each) for each in served(runner, facts)]

    def plan(self) -> LaunchPlan:
        runner, facts, vm = self._runner, self._facts, self._vm
        devices = [*self._disks(), *self._shares(), *self._interfaces(), *self._extras()]
        line = kernel_line(
            runner, facts,
            own=("console=ttyS0", "reboot=k", "panic=-1"),
            modules=tuple(dict.fromkeys(self._modules)),
            disks=len(runner.system.layers) if vm.store_on_disk else 0,
            job="tty:hvc0",
        )  # fmt: skip
        control = vm.socket or CONTROL
        argv = [
            facts.programs["crosvm"].path, "--log-level", "warn", "run",
            "--name", runner.name,
            "--socket", control,
            "--cpus", f"num-cores={vm.vcpu}",
            "--mem", f"size={vm.mem}",
            "--smbios", f"uuid={dashed(facts.machine_id)}",
            "--no-usb",
            "--serial", "type=stdout,hardware=serial,num=1,console=true,stdin=true",
            *devices,
            *vm.crosvm.extra_args,
            "--initrd", resources.initrd(runner, facts),
            "--params", line,
            resources.vmlinux(runner, facts),
        ]  # fmt: skip
        return LaunchPlan(
            name=runner.name,
            hypervisor=vm.hypervisor,
            process_name=f"microvm@{runner.name}" if vm.pretty_procnames else None,
            argv=tuple(argv),
            helpers=tuple(each.helper for each in self._served),
            volumes=resources.volume_plans(runner),
            taps=resources.taps(runner),
            macvtaps=self._macvtaps(),
            opened=tuple(self._opened),
            directories=(vm.crosvm.pivot_root or EMPTY,),
            sockets=(control,),
            control=control,
            watch=control,
            job=JobEnd(kind="listen", socket=JOB) if facts.job else None,
            statuses=STATUSES,
            layers=tuple(layer.uuid for layer in runner.system.layers),
            notes=(f"accelerator {facts.accelerator.kind}: {facts.accelerator.reason}",),
        )

    def _disks(self) -> list[str]:
        found = resources.disks(self._runner, self._facts)
        if found:
            self._modules += ["virtio_blk", self._vm.store_disk_type]
        return [word for disk in found for word in ("--block", _disk(disk))]

    def _shares(self) -> list[str]:
        if self._served:
            self._modules.append("virtiofs")
        return [
            word
            for each in self._served
            for word in ("--vhost-user", f"type=fs,socket={quoted(each.socket)}")
        ]

    def _interfaces(self) -> list[str]:
        return [
            word
            for number, interface in enumerate(self._vm.interfaces, FIRST_DESCRIPTOR)
            for word in ("--net", self._interface(number, interface))
        ]

    def _interface(self, number: int, interface: Interface) -> str:
        kind: Literal["tap", "macvtap"] = "macvtap" if interface.type == "macvtap" else "tap"
        self._opened.append(Opened(number=number, kind=kind, name=interface.id))
        vhost = ",vhost-net=[device=/dev/vhost-net]" if interface.tap.vhost else ""
        return f"tap-fd={number},mac={quoted(self._mac(interface))}{vhost}"

    def _mac(self, interface: Interface) -> str:
        return interface.mac or mac(self._facts.machine_id, interface.id)

    def _macvtaps(self) -> tuple[MacvtapPlan, ...]:
        return tuple(
            MacvtapPlan(
                name=interface.id, link=interface.macvtap.link, mode=interface.macvtap.mode,
                mac=self._mac(interface),
            )
            for interface in self._vm.interfaces
            if interface.macvtap
        )  # fmt: skip

    def _extras(self) -> list[str]:
        vm = self._vm
        words = [*self._balloon()]
        if vm.hugepage_mem:
            words.append("--hugepages")
        words += ["--pivot-root", vm.crosvm.pivot_root or f"{self._facts.state_dir}/{EMPTY}"]
        if vm.vsock.cid is not None:
            words += ["--vsock", f"cid={vm.vsock.cid}"]
            self._modules.append("vmw_vsock_virtio_transport")
        for device in vm.devices:
            words += ["--vfio", f"/sys/bus/pci/devices/{device.path},iommu=off"]
        if self._facts.job:
            self._modules.append("virtio_console")
            job = f"type=unix-stream,hardware=virtio-console,num=1,path={JOB},input-unix-stream"
            words += ["--serial", job]
        return words

    def _balloon(self) -> list[str]:
        vm = self._vm
        if not vm.balloon:
            return ["--no-balloon"]
        self._modules.append("virtio_balloon")
        words = ["--balloon-page-reporting"]
        if vm.initial_balloon_mem:
            words += ["--init-mem", str(vm.mem - vm.initial_balloon_mem)]
        return words


def _disk(disk: Disk) -> str:
    """Return one disk; the launcher holds the lock that crosvm would take again."""
    words = [f"path={quoted(disk.path)}", "lock=false"]
    if disk.read_only:
        words.append("ro=true")
    if disk.direct is not None:
        words.append(f"direct={'true' if disk.direct else 'false'}")
    if disk.serial:
        words.append(f"id={quoted(disk.serial)}")
    return ",".join(words)


def _tagged(one: Served) -> Served:
    """Let virtiofsd itself tell the tag: crosvm asks it (VHOST_USER_PROTOCOL_F_CONFIG)."""
    argv = (*one.helper.argv, f"--tag={one.tag}")
    return replace(one, helper=replace(one.helper, argv=argv))
