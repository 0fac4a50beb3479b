"""crosvm: every device in a process and sandbox of its own; virtiofs through vhost-user.

Sources: src/crosvm/cmdline.rs, devices/src/serial_device.rs and src/main.rs of crosvm (2026-08).
"""

from dataclasses import replace
from pathlib import Path

from microvm.errors import Problem
from microvm.hypervisors import flawless, limits, resources, shares, virtiofsd
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support, use
from microvm.hypervisors.kernel_line import kernel_line
from microvm.hypervisors.resources import Disk
from microvm.hypervisors.room import Most, Room
from microvm.hypervisors.shares import Served
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts
from microvm.model.identity import dashed, mac
from microvm.model.plan import JobEnd, LaunchPlan
from microvm.model.runner import Runner

PROGRAM = "crosvm"
CONTROL = "crosvm.sock"
STATUSES = {
    32: "reboot",
    33: "crosvm told of a crash of the guest",
    34: "crosvm told of a panic of the guest's kernel",
    36: "crosvm's watchdog ended the guest",
}
"""What its exit statuses say of the guest (enum CommandStatus)."""
EMPTY = "empty"
"""Directory in the state directory that its sandboxed devices see as their root."""
NO_MSI = "pci=nomsi"
"""Kernel parameter with which a guest's devices interrupt by their old lines."""
_WITHOUT_MSIX = (
    "crosvm since September 2025 loses MSI-X interrupts of devices of the host: if yours hangs,"
    f' say kernel_params = ["{NO_MSI}"] (slower)'
)
"""It maps the table of vectors into the guest where Linux says that a BAR may be mapped whole
(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE), so it does not see them set (its commit eb98b0b02;
devices/src/vfio.rs and pci/vfio_pci.rs)."""


class Crosvm(Hypervisor):
    """Sandboxed devices; taps, vsock and virtiofs; no user networking, no 9p."""

    name = "crosvm"
    program = PROGRAM
    control_socket = CONTROL
    boots_vmlinux = True
    supports = (
        Support(feature=Feature.HUGE_PAGES),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.INITIAL_BALLOON),
        Support(feature=Feature.BALLOON_GIVES),
        Support(feature=Feature.HUGE_BALLOON),
        Support(feature=Feature.SOCKET),
        Support(feature=Feature.SERIAL),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.QCOW2),
        Support(feature=Feature.SHARE_VIRTIOFS),
        Support(feature=Feature.ROOT_SHARED),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.NET_BRIDGE),
        Support(feature=Feature.NET_MACVTAP),
        Support(feature=Feature.VHOST),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.CREDENTIALS),
        Support(feature=Feature.PCI, flaw=_WITHOUT_MSIX),
    )  # fmt: skip
    takes = (
        Most(room=Room.VCPUS, most=254),
        Most(room=Room.DEVICES, most=limits.PCI_SLOTS),
    )

    def own_devices(self, microvm: MicroVM) -> int:
        """Return how many devices it has at most beyond what is declared; one is its console."""
        return limits.own_devices(microvm) + 1

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse PCI devices that are named like those of USB."""
        return list(limits.pci_addresses(microvm))

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Refuse huge pages that nobody gives, and what this virtiofsd can't do."""
        problems = [*limits.vhost_net(microvm, facts), *limits.vhost_vsock(microvm, facts)]
        if microvm.hugepage_mem and facts.shmem_thp in ("never", "deny"):
            message = (
                "crosvm asks for transparent huge pages, which this host refuses shared memory"
            )
            hint = (
                "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled,"
                f" or {self.others(Feature.HUGE_PAGES)}"
            )
            problems.append(Problem(where="hugepage_mem", message=message, hint=hint))
        found = facts.programs.get(virtiofsd.PROGRAM)
        if found is None:
            return problems
        problems += virtiofsd.unmet(found, microvm)
        if found.flavour == "c":  # crosvm asks it for the share's tag
            message = "crosvm's shares need virtiofsd 1.x; this is the one of QEMU 7.2"
            problems.append(Problem(where="shares", message=message, hint="install virtiofsd 1.x"))
        return problems

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
        self._served = [_tagged(each) for each in shares.served(runner, facts)]

    def plan(self) -> LaunchPlan:
        runner, facts, vm = self._runner, self._facts, self._vm
        control = vm.socket or CONTROL
        credentials = resources.credential_disk(runner, facts)
        line = kernel_line(
            runner, facts,
            own=("console=hvc0", "reboot=k", "panic=-1"),
            modules=resources.modules(
                runner, "virtio_pci", "virtio_console", *self._vsock_modules()
            ),
            job="tty:hvc1", credentials=credentials,
        )  # fmt: skip
        argv = [
            facts.programs[PROGRAM].path, "--log-level", "warn", "--extended-status", "run",
            "--name", runner.name,
            "--socket", control,
            "--cpus", f"num-cores={vm.vcpu}",
            "--mem", f"size={vm.mem}",
            "--smbios", f"uuid={dashed(facts.machine_id)}",
            "--no-usb",
            # A sandboxed serial port is asked byte by byte: too slow for a console.
            "--serial", "type=stdout,hardware=virtio-console,num=1,console=true,stdin=true",
            *self._devices(),
            *vm.crosvm.extra_args,
            "--initrd", resources.initrd(runner, facts),
            "--params", line,
            resources.vmlinux(runner, facts),
        ]  # fmt: skip
        common = resources.common_plan(runner, facts, control)
        return replace(
            common,
            argv=tuple(argv),
            volumes=resources.volume_plans(runner, guessed=True),
            helpers=tuple(each.helper for each in self._served),
            credentials=credentials,
            opened=resources.opened(runner),
            directories=() if vm.crosvm.pivot_root else (EMPTY,),
            sockets=(control, *((resources.JOB,) if facts.job else ())),
            job=JobEnd(kind="listen", socket=resources.JOB) if facts.job else None,
            statuses=STATUSES,
            notes=(*common.notes, *self._notes()),
        )

    def _notes(self) -> tuple[str, ...]:
        words = (word for word in self._vm.kernel_params if word.startswith("pci="))
        avoided = any("nomsi" in word.removeprefix("pci=").split(",") for word in words)
        if avoided or not self._vm.devices:
            return ()
        return (f"{_WITHOUT_MSIX}, or {use(flawless(Feature.PCI))}",)

    def _vsock_modules(self) -> tuple[str, ...]:
        return () if self._vm.vsock.cid is None else (resources.VSOCK,)

    def _devices(self) -> list[str]:
        return [*self._disks(), *self._shares(), *self._interfaces(), *self._extras()]

    def _disks(self) -> list[str]:
        found = resources.disks_with_credentials(self._runner, self._facts)
        return [word for disk in found for word in ("--block", _disk(disk))]

    def _shares(self) -> list[str]:
        return [
            word
            for each in self._served
            for word in ("--vhost-user", f"type=fs,socket={quoted(each.socket)}")
        ]

    def _interfaces(self) -> list[str]:
        words = []
        for interface, one in zip(self._vm.interfaces, resources.opened(self._runner), strict=True):
            address = interface.mac or mac(self._facts.machine_id, interface.id)
            vhost = ",vhost-net=[device=/dev/vhost-net]" if interface.tap.vhost else ""
            words += ["--net", f"tap-fd={one.number},mac={quoted(address)}{vhost}"]
        return words

    def _extras(self) -> list[str]:
        vm = self._vm
        words = [*self._balloon()]
        if vm.hugepage_mem:
            words.append("--hugepages")
        root = vm.crosvm.pivot_root
        own = f"{self._facts.state_dir}/{EMPTY}"
        words += ["--pivot-root", resources.in_project(root, self._facts) if root else own]
        if vm.vsock.cid is not None:
            words += ["--vsock", f"cid={vm.vsock.cid}"]
        for device in vm.devices:
            words += ["--vfio", f"/sys/bus/pci/devices/{device.path},iommu=off"]
        if self._facts.job:
            job = f"num=2,path={resources.JOB},input-unix-stream"
            words += ["--serial", f"type=unix-stream,hardware=virtio-console,{job}"]
        return words

    def _balloon(self) -> list[str]:
        vm = self._vm
        if not vm.balloon:
            return ["--no-balloon"]
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
