"""The command line of one qemu process, put together device by device.

Sources: qemu-system-x86_64(1), `-device help` of 7.2 and 10.0.
"""

import platform
from dataclasses import dataclass, field

from microvm.hypervisors.kernel_line import STORE_TAG, kernel_line
from microvm.hypervisors.qemu_syntax import dashed, escape
from microvm.hypervisors.virtiofsd import virtiofsd
from microvm.model.devices import Interface, Share, names_device
from microvm.model.facts import Facts
from microvm.model.identity import filesystem_uuid, mac
from microvm.model.plan import Helper, LaunchPlan, PortPlan, TapPlan, VolumePlan
from microvm.model.runner import Runner

CONTROL = "qmp.sock"
WATCH = "watch.sock"
"""A second control socket: QEMU serves one client on each, and a launcher that stays keeps its."""
JOB = "job.sock"
JOB_PORT = "microvm.job"
_SERVES = "qemu runs in a user namespace, where the layers that it serves have the guest's owners"
PROGRAM = f"qemu-system-{platform.machine()}"


@dataclass(slots=True)
class QemuPlan:
    """The parts of one plan while it is put together."""

    runner: Runner
    facts: Facts
    argv: list[str] = field(default_factory=list)
    helpers: list[Helper] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)
    disks: int = 0

    def plan(self) -> LaunchPlan:
        """Return the whole plan. Raises `SpecError` for a kernel command line that is too long."""
        runner, facts = self.runner, self.facts
        vm = runner.microvm
        # libcrc32c asks the crypto layer for crc32c while it loads; modules.dep does not say so.
        self.modules = ["virtio_pci" if self.pci else "virtio_mmio", "crc32c_generic", "overlay"]
        self._machine()
        self._root()
        self._volumes()
        for index, share in enumerate(vm.shares):
            self._share(index, share)
        for interface in vm.interfaces:
            self._interface(interface)
        self._extras()
        line = kernel_line(
            runner, facts,
            own=self._own_parameters(), modules=tuple(dict.fromkeys(self.modules)),
            disks=self.disks, job=f"port:{JOB_PORT}",
        )  # fmt: skip
        store = facts.store_dir
        given = vm.initrd_path
        initrd = f"{store}/{runner.system.initrd}/initrd"
        if given:
            initrd = given if given.startswith("/") else f"{facts.project_dir}/{given}"
        self.argv += [
            "-kernel", f"{store}/{runner.system.kernel}/vmlinuz",
            "-initrd", initrd,
            "-append", line,
            *vm.qemu.extra_args,
        ]  # fmt: skip
        control = vm.socket or CONTROL
        return LaunchPlan(
            name=runner.name,
            process_name=f"microvm@{runner.name}" if vm.pretty_procnames else None,
            argv=tuple(self.argv),
            helpers=tuple(self.helpers),
            volumes=tuple(self._volume_plans()),
            taps=tuple(
                TapPlan(name=i.id, bridge=i.bridge) for i in vm.interfaces if i.type == "tap"
            ),
            ports=tuple(
                PortPlan(
                    where=f"forward_ports.{index}",
                    proto=forward.proto,
                    address=forward.host.address or "127.0.0.1",
                    port=forward.host.port,
                )
                for index, forward in enumerate(vm.forward_ports)
                if forward.origin == "host"
            ),
            sockets=(
                control,
                *((WATCH,) if facts.watched else ()),
                *((JOB,) if facts.job else ()),
            ),
            control=control,
            watch=WATCH if facts.watched else None,
            console=vm.qemu.serial_console,
            job_socket=JOB if facts.job else None,
            trees=tuple(self.trees),
            layers=tuple(layer.uuid for layer in runner.system.layers),
            notes=(
                f"accelerator {facts.accelerator.kind}: {facts.accelerator.reason}",
                *((_SERVES,) if self.trees else ()),
            ),
        )

    @property
    def machine(self) -> str:
        """The machine type."""
        vm = self.runner.microvm
        if platform.machine() == "aarch64":
            return "virt"
        if vm.qemu.machine:
            return vm.qemu.machine
        if self.facts.accelerator.kind == "tcg" or vm.shares or not vm.store_on_disk:
            return "q35"  # machine microvm hangs now and then under emulation, and has no PCI here
        return "q35" if self.facts.positions else "microvm"

    @property
    def pci(self) -> bool:
        """Whether virtio devices are PCI functions; else they are memory-mapped."""
        return self.machine != "microvm"

    @property
    def shared_memory(self) -> bool:
        """Whether a helper has to see the guest's memory (vhost-user)."""
        vm = self.runner.microvm
        return any(share.proto == "virtiofs" for share in vm.shares) or (
            not vm.store_on_disk and vm.store_proto == "virtiofs"
        )

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
        tcg = facts.accelerator.kind == "tcg"
        if self.shared_memory or vm.hugepage_mem:
            options["memory-backend"] = "mem"
        options |= vm.qemu.machine_opts
        pairs = (f"{key}={escape(value)}" for key, value in options.items())
        machine = ",".join([self.machine, *pairs])
        self.argv += [
            facts.programs[PROGRAM].path,
            "-name", f"guest={escape(self.runner.name)}",
            "-machine", machine,
            "-accel", "tcg,thread=multi" if tcg else "kvm",
            "-cpu", vm.cpu or self._cpu(),
            "-smp", str(vm.vcpu),
            "-m", f"{vm.mem}M",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-uuid", dashed(facts.machine_id),
            # What a guest that took over the process could ask of the host's kernel.
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-qmp", f"unix:path={escape(vm.socket or CONTROL)},server=on,wait=off",
        ]  # fmt: skip
        if facts.watched:
            self.argv += ["-qmp", f"unix:path={WATCH},server=on,wait=off"]
        if self.shared_memory or vm.hugepage_mem:
            huge = ",hugetlb=on" if vm.hugepage_mem else ""
            self.argv += ["-object", f"memory-backend-memfd,id=mem,size={vm.mem}M,share=on{huge}"]
        if vm.qemu.serial_console:
            self.argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        if self.machine == "microvm":
            self.argv += ["-device", "i8042"]
        self.device("virtio-rng")

    def _cpu(self) -> str:
        if self.facts.accelerator.kind == "kvm":
            return "host"
        return "max" if self.machine == "virt" else "qemu64"

    def _own_parameters(self) -> tuple[str, ...]:
        console = "ttyAMA0" if self.machine == "virt" else "ttyS0"
        words = [f"console={console}"] if self.runner.microvm.qemu.serial_console else []
        # A triple fault is the reset that every machine type has; -1: at once.
        return (*words, "reboot=t", "panic=-1") if self.machine != "virt" else (*words, "panic=-1")

    def _disk(
        self, name: str, path: str, *, read_only: bool, direct: bool | None, serial: str
    ) -> None:
        cache = "" if direct is None else f",cache.direct={'on' if direct else 'off'}"
        driver = "host_device" if names_device(path) else "file"
        self.argv += [
            "-drive",
            f"if=none,id={name},format=raw,file.driver={driver},file.filename={escape(path)}"
            f",read-only={'on' if read_only else 'off'},discard=unmap{cache}",
        ]
        self.device("virtio-blk", f"drive={name}{f',serial={serial}' if serial else ''}")

    def _root(self) -> None:
        runner, store = self.runner, self.facts.store_dir
        if runner.microvm.store_on_disk:
            self.modules += ["virtio_blk", runner.microvm.store_disk_type]
            for index, layer in enumerate(runner.system.layers):
                self._disk(
                    f"layer{index}",
                    f"{store}/{layer.image}/image",
                    read_only=True,
                    direct=None,
                    serial="",
                )
                self.disks += 1
            return
        proto = runner.microvm.store_proto
        self.modules += ["virtiofs"] if proto == "virtiofs" else ["9pnet_virtio", "9p"]
        for index, layer in enumerate(runner.system.layers):
            tag, path = STORE_TAG.format(index), f"{store}/{layer.tree}/tree"
            if proto == "virtiofs":
                self._virtiofs(
                    tag,
                    path,
                    Share(tag=tag, source=path, mount_point="/", read_only=True, cache="always"),
                    mapped=True,
                )
            else:
                self.trees.append(path)
                self._9p(tag, path, "passthrough", read_only=True)

    def _volumes(self) -> None:
        if self.runner.microvm.volumes:
            self.modules.append("virtio_blk")
        for index, volume in enumerate(self.runner.microvm.volumes):
            self._disk(
                f"volume{index}", volume.image,
                read_only=volume.read_only, direct=volume.direct, serial=volume.serial or "",
            )  # fmt: skip

    def _volume_plans(self) -> list[VolumePlan]:
        return [
            VolumePlan(
                index=index,
                image=volume.image,
                size_mib=volume.size,
                fs_type=volume.fs_type,
                uuid=filesystem_uuid(self.runner.name, volume),
                label=volume.label,
                mkfs_args=volume.mkfs_extra_args,
                create=volume.auto_create,
                read_only=volume.read_only,
                root=volume.mount_point == "/",
            )
            for index, volume in enumerate(self.runner.microvm.volumes)
        ]

    def _share(self, index: int, share: Share) -> None:
        source = (
            share.source
            if share.source.startswith("/")
            else f"{self.facts.project_dir}/{share.source}"
        )
        if share.proto == "virtiofs":
            self.modules.append("virtiofs")
            self._virtiofs(share.tag, source, share, mapped=False)
        else:
            self.modules += ["9pnet_virtio", "9p"]
            self._9p(share.tag, source, share.security_model, read_only=share.read_only)

    def _virtiofs(self, tag: str, source: str, share: Share, *, mapped: bool) -> None:
        socket = share.socket or f"virtiofs-{tag}.sock"
        options = self.runner.microvm.virtiofsd
        argv = virtiofsd(self.facts.programs["virtiofsd"], share, source, options, mapped=mapped)
        ids = "store" if mapped else ""
        if not mapped and not self.facts.root and self.facts.programs["virtiofsd"].flavour == "c":
            ids = "own"  # the C implementation wants to be root of something
        frozen = None
        if mapped or (share.read_only and self.facts.programs["virtiofsd"].flavour == "c"):
            ids, frozen = ids or "host", source  # the C one has no option for that
        self.helpers.append(
            Helper(
                name=f"virtiofsd-{tag}",
                argv=argv,
                socket=socket,
                ids=ids,
                socket_group=options.group,
                read_only=frozen,
            )
        )
        self.argv += ["-chardev", f"socket,id=fs-{tag},path={escape(socket)}"]
        self.device("vhost-user-fs", f"chardev=fs-{tag},tag={tag}")

    def _9p(self, tag: str, source: str, security_model: str, *, read_only: bool) -> None:
        ro = ",readonly=on" if read_only else ""
        self.argv += [
            "-fsdev",
            f"local,id=fs-{tag},path={escape(source)},security_model={security_model},multidevs=remap{ro}",
        ]
        self.device("virtio-9p", f"fsdev=fs-{tag},mount_tag={tag}")

    def _interface(self, interface: Interface) -> None:
        address = interface.mac or mac(self.facts.machine_id, interface.id)
        if interface.type == "user":
            netdev = f"user,id={interface.id}{self._forwards()}"
        else:
            vhost = ",vhost=on" if interface.tap.vhost else ""
            netdev = f"tap,id={interface.id},ifname={interface.id},script=no,downscript=no{vhost}"
        rom = ",romfile=" if self.pci else ""
        self.argv += ["-netdev", netdev]
        self.device("virtio-net", f"netdev={interface.id},mac={address}{rom}")

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
            self.modules.append("virtio_console")
            self.argv += ["-chardev", f"socket,id=job,path={JOB},server=on,wait=off"]
            self.device("virtio-serial")
            self.argv += ["-device", f"virtserialport,chardev=job,name={JOB_PORT}"]
        if vm.balloon:
            oom = "on" if vm.deflate_on_oom else "off"
            self.device("virtio-balloon", f"free-page-reporting=on,deflate-on-oom={oom}")
            self.modules.append("virtio_balloon")
        if vm.vsock.cid is not None:
            self.device("vhost-vsock", f"guest-cid={vm.vsock.cid}")
            self.modules.append("vmw_vsock_virtio_transport")
        for name, path in sorted(vm.credential_files.items()):
            file = path if path.startswith("/") else f"{self.facts.project_dir}/{path}"
            self.argv += ["-fw_cfg", f"name=opt/io.systemd.credentials/{name},file={escape(file)}"]
