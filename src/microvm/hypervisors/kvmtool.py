"""kvmtool: the smallest of them; 9p, taps and user networking, four disks, no power button.

Sources: builtin-run.c, disk/core.c, virtio/net.c, kvm-ipc.c of kvmtool (2024-08).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from microvm.errors import Problem
from microvm.hypervisors import flawless, limits, resources
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import Feature, Support, use
from microvm.hypervisors.kernel_line import kernel_line
from microvm.hypervisors.room import Most, Room
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts
from microvm.model.identity import cid, mac, vsock_port
from microvm.model.plan import JobEnd, LaunchPlan
from microvm.model.runner import Runner

PROGRAM = "lkvm"
CONTROL = ".lkvm/vm.sock"
BALLOON = ".lkvm/balloon"
"""MiB in the balloon: its protocol only knows more and less."""
OWN_PARAMETERS = (
    "noapic", "acpi=off", "pci=conf1", "i8042.direct=1", "i8042.dumbkbd=1", "i8042.nopnp=1",
    "i8042.noaux=1", "console=ttyS0", "reboot=k", "panic=-1", "microvm.poweroff=reset",
)  # fmt: skip
"""What kvmtool says by itself (x86/kvm.c) less the early console, and that only a reset ends it."""
ESCAPE = "\x01"
"""Ctrl-A, on every line of the guest's; Ctrl-A x would end it (term.c)."""
POWER_KEY = "power.key"
POWER_CID = "power.cid"
POWER_PORT = 6977
"""vsock port on which the guest takes the wish to power off."""

_SHARED_BAR = (
    "kvmtool can't serve a device of the host whose MSI-X table or PBA shares a BAR with its"
    " registers (lspci -vv): if yours does nothing"
)
"""It traps the BARs of both as if they held nothing else (vfio/pci.c)."""


class Kvmtool(Hypervisor):
    """9p shares, taps, macvtaps, user networking; no virtiofs, no sandbox."""

    name = "kvmtool"
    program = PROGRAM
    newest = (3, 18)  # what every build tells since 2015 (util/KVMTOOLS-VERSION-GEN)
    control_socket = CONTROL
    one_disk = True
    supports = (
        Support(feature=Feature.HUGE_PAGES),
        Support(feature=Feature.BALLOON),
        Support(feature=Feature.BALLOON_KEEPS),
        Support(feature=Feature.HUGE_BALLOON),
        Support(
            feature=Feature.SOCKET, available=False, instead=f"leave `socket` out: it is {CONTROL}"
        ),
        Support(feature=Feature.DIRECT),
        Support(feature=Feature.SHARE_9P),
        Support(
            feature=Feature.READ_ONLY_9P, available=False,
            instead="share a directory that is mounted read-only on the host",
        ),
        Support(feature=Feature.NET_USER),
        Support(feature=Feature.NET_TAP),
        Support(feature=Feature.NET_BRIDGE),
        Support(feature=Feature.NET_MACVTAP),
        Support(
            feature=Feature.VHOST, available=False,
            instead="leave out `tap.vhost`: the guest's MAC address would be lost",
        ),
        Support(feature=Feature.VSOCK),
        Support(feature=Feature.CREDENTIALS),
        Support(feature=Feature.PCI, flaw=_SHARED_BAR),
    )  # fmt: skip
    takes = (
        Most(room=Room.VCPUS, most=255),  # MPTABLE_MAX_CPUS
        Most(room=Room.DISKS, most=4),  # MAX_DISK_IMAGES
        Most(room=Room.DEVICES, most=32),  # it registers more, which no guest can address
    )

    def own_devices(self, microvm: MicroVM) -> int:
        """Return how many devices it has at most beyond what is declared.

        The root's disk, the source of randomness, vsock, and what one key asks for.
        """
        return 3 + sum(map(bool, (microvm.balloon, microvm.credential_files)))

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Refuse what its command line and its devices can't say."""
        return [
            *limits.kernel(microvm), *limits.pci_addresses(microvm),
            *_disk_problems(microvm), *_share_problems(microvm),
        ]  # fmt: skip

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Refuse directories that its command line can't name, and huge pages that are nowhere."""
        places = [("store", facts.store_dir)]
        places += [
            (f"shares.{index}.source", facts.project_dir)
            for index, share in enumerate(microvm.shares)
            if not share.source.startswith("/")
        ]
        message = "kvmtool's command line can't name a path with a comma: {}"
        hint = "move it; or use another hypervisor"
        problems = [
            Problem(where=where, message=message.format(path), hint=hint)
            for where, path in places
            if "," in path
        ]
        problems += limits.huge_pages(microvm, facts)
        problems += limits.vhost_vsock(microvm, facts)
        if microvm.hugepage_mem and facts.hugetlbfs is None:
            message = (
                "kvmtool takes huge pages from a hugetlbfs; none is mounted that we may write to"
            )
            mount = "sudo mount -t hugetlbfs -o uid=$USER none /dev/hugepages"
            hint = f"{mount}, or {self.others(Feature.HUGE_PAGES)}"
            problems.append(Problem(where="hugepage_mem", message=message, hint=hint))
        return problems

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a handle on its IPC socket."""
        from microvm.hypervisors.kvmtool_control import KvmtoolControl

        return KvmtoolControl(path, timeout_s=timeout_s, mem_mib=mem_mib)

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return the command line of `lkvm run`."""
        return _Plan(runner, facts).plan()


def _disk_problems(vm: MicroVM) -> list[Problem]:
    problems = []
    for index, volume in enumerate(vm.volumes):
        problems += _comma(f"volumes.{index}.image", volume.image)
        if volume.image.startswith("scsi:"):
            message = "kvmtool takes what begins with scsi: for something else than a path"
            hint = "rename it, or use another hypervisor"
            problems.append(Problem(where=f"volumes.{index}.image", message=message, hint=hint))
    return problems


def _comma(where: str, path: str) -> list[Problem]:
    if "," not in path:
        return []
    message = "kvmtool's command line can't name a path with a comma"
    return [Problem(where=where, message=message, hint="rename it, or use another hypervisor")]


def _share_problems(vm: MicroVM) -> list[Problem]:
    problems = []
    for index, share in enumerate(vm.shares):
        problems += _comma(f"shares.{index}.source", share.source)
    return problems


class _Plan:
    """The parts of one plan while it is put together."""

    def __init__(self, runner: Runner, facts: Facts) -> None:
        self._runner = runner
        self._facts = facts
        self._vm = runner.microvm

    def plan(self) -> LaunchPlan:
        runner, facts, vm = self._runner, self._facts, self._vm
        credentials = resources.credential_disk(runner, facts)
        vsock = (resources.VSOCK,) if self._context() else ()
        job = self._job_end()
        line = kernel_line(
            runner, facts,
            own=self._own_parameters(),
            modules=resources.modules(runner, "virtio_pci", *vsock),
            disks=1, credentials=credentials,
            job=f"vsock:{job.port}" if job.kind == "vsock" else "tty:ttyS1",
            # The guest has one serial line unless told otherwise later.
            late=("8250.nr_uarts=2",) if facts.job and job.kind == "terminal" else (),
        )  # fmt: skip
        argv = (
            facts.programs[PROGRAM].path, "run",
            "--name", "vm",
            "--cpus", str(vm.vcpu),
            "--mem", f"{vm.mem}M",
            "--console", "serial",
            "--nodefaults",
            "--rng",
            *self._disks(), *self._shares(), *self._interfaces(), *self._extras(),
            *vm.kvmtool.extra_args,
            "--kernel", resources.kernel(runner, facts),
            "--initrd", resources.initrd(runner, facts),
            "--params", line,
        )  # fmt: skip
        common = resources.common_plan(runner, facts, CONTROL)
        return replace(
            common,
            argv=argv,
            env={"HOME": "."},  # its socket lies below, at a path that is short enough
            files={BALLOON: "0\n", **self._power_files()},
            credentials=credentials,
            volumes=resources.volume_plans(runner, guessed=True),
            opened=resources.opened(runner),
            directories=(".lkvm",),
            sockets=(CONTROL,),
            escape=ESCAPE,
            job=job if facts.job else None,
            notes=(*common.notes, *self._notes()),
        )

    def _context(self) -> int | None:
        """Return the guest's vsock context id; where the host has vsock, every guest gets one."""
        declared = self._vm.vsock.cid
        return declared or (cid(self._facts.machine_id) if self._facts.vhost_vsock else None)

    def _job_end(self) -> JobEnd:
        """Return the host's end of a job's stream: vsock, or else a serial line, which is slow."""
        context = self._context()
        if context is None or not self._facts.vhost_vsock:
            return JobEnd(kind="terminal")
        return JobEnd(kind="vsock", port=vsock_port(self._facts.machine_id), context=context)

    def _power_files(self) -> dict[str, str]:
        if not self._facts.vhost_vsock:
            return {}
        return {POWER_KEY: f"{self._facts.secret}\n", POWER_CID: f"{self._context()}\n"}

    def _notes(self) -> Iterator[str]:
        if not self._facts.vhost_vsock:
            yield (
                "no /dev/vhost-vsock: jobs have a slow serial line, and the guest can't be asked"
                " to shut down (modprobe vhost_vsock)"
            )
        if self._vm.devices:
            yield f"{_SHARED_BAR}, {use(flawless(Feature.PCI))}"

    def _own_parameters(self) -> tuple[str, ...]:
        words = list(OWN_PARAMETERS)
        if self._facts.vhost_vsock:
            digest = hashlib.sha256(self._facts.secret.encode()).hexdigest()
            words.append(f"microvm.power=vsock:{POWER_PORT}:{digest}")
        return tuple(words)

    def _disks(self) -> list[str]:
        words = ["--disk", f"{self._facts.store_dir}/{self._runner.disk}/image,ro"]
        for disk in resources.disks_with_credentials(self._runner, self._facts):
            if disk.name.startswith("layer"):
                continue  # a partition of the first
            flags = (",ro" if disk.read_only else "") + (",direct" if disk.direct else "")
            words += ["--disk", f"{disk.path}{flags}"]
        return words

    def _shares(self) -> list[str]:
        return [
            word
            for share in self._vm.shares
            for word in ("--9p", f"{resources.in_project(share.source, self._facts)},{share.tag}")
        ]

    def _interfaces(self) -> list[str]:
        words = []
        numbers = {one.name: one.number for one in resources.opened(self._runner)}
        for interface in self._vm.interfaces:
            address = f"guest_mac={interface.mac or mac(self._facts.machine_id, interface.id)}"
            if interface.type == "user":
                words += ["--network", f"mode=user,{address}"]
                continue
            # A path for a name keeps it from attaching the descriptor anew
            # (virtio_net__tap_create).
            number = numbers[interface.id]
            words += ["--network", f"mode=tap,tapif=/{interface.id},fd={number},{address}"]
        return words or ["--network", "mode=none"]

    def _extras(self) -> list[str]:
        words = ["--balloon"] if self._vm.balloon else []
        if self._vm.hugepage_mem and self._facts.hugetlbfs:
            words += ["--hugetlbfs", self._facts.hugetlbfs]
        if context := self._context():
            words += ["--vsock", str(context)]
        for device in self._vm.devices:
            words += ["--vfio-pci", device.path]
        if self._facts.job and self._job_end().kind == "terminal":
            words += ["--tty", "1"]
        return words
