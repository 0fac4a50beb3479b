"""The JSON configuration of one firecracker process.

Sources: src/vmm/src/resources.rs (VmmConfig) and src/vmm/src/vmm_config of 1.8 to 1.16.
"""

import json
import platform
from dataclasses import dataclass, field, replace
from typing import Any

from microvm.hypervisors import hybrid_vsock, resources
from microvm.hypervisors.kernel_line import kernel_line
from microvm.model.facts import Facts, Program
from microvm.model.identity import mac
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

CONTROL = "firecracker.sock"
CONFIG = "firecracker.json"
CPU_TEMPLATE = "cpu-template.json"
LOG = "firecracker.log"
PROGRAM = "firecracker"
PCI_SINCE = (1, 13)
REPORTING_SINCE = (1, 14)
NAMES = ("drive_id", "iface_id", "id")
"""Keys that tell the items of a list apart."""

Json = dict[str, Any]


@dataclass(slots=True)
class FirecrackerPlan:
    """The parts of one plan while it is put together."""

    runner: Runner
    facts: Facts
    notes: list[str] = field(default_factory=list)

    def plan(self) -> LaunchPlan:
        """Return the whole plan. Raises `SpecError` for a kernel command line that is too long."""
        runner, facts = self.runner, self.facts
        vm = runner.microvm
        options = vm.firecracker
        control = vm.socket or CONTROL
        files = {CONFIG: _text(merged(self._config(), options.extra_config))}
        if options.cpu is not None:
            files[CPU_TEMPLATE] = _text(options.cpu)
        argv = [
            self.program.path,
            "--id", runner.name,
            "--api-sock", control,
            "--config-file", CONFIG,
            # By itself it logs to the guest's console, and at `Warning` each port it does not know.
            "--log-path", LOG,
            "--level", "Error",
        ]  # fmt: skip
        if self.pci:
            argv.append("--enable-pci")
        if platform.machine() == "aarch64":
            self.notes.append("firecracker can't ask a guest to power off on aarch64")
        common = resources.common_plan(runner, facts, control)
        return replace(
            common,
            argv=(*argv, *options.extra_args),
            files=files,
            log=LOG,
            credentials=resources.credential_disk(runner, facts),
            sockets=(control, *hybrid_vsock.sockets(runner, facts)),
            job=hybrid_vsock.job_end(facts),
            notes=(*common.notes, *self.notes),
        )

    @property
    def program(self) -> Program:
        """The firecracker that will run."""
        return self.facts.programs[PROGRAM]

    @property
    def pci(self) -> bool:
        """Whether devices are PCI functions; else they are memory-mapped and told by ACPI."""
        return self.program.has(PCI_SINCE)

    def _config(self) -> Json:
        vm = self.runner.microvm
        machine: Json = {"vcpu_count": vm.vcpu, "mem_size_mib": vm.mem, "smt": False}
        if vm.hugepage_mem:
            machine["huge_pages"] = "2M"
        config: Json = {
            "boot-source": self._boot_source(),
            "machine-config": machine,
            "drives": self._drives(),
            "network-interfaces": self._interfaces(),
            "entropy": {},
        }
        if vm.firecracker.cpu is not None:
            config["cpu-config"] = CPU_TEMPLATE
        if vm.balloon:
            config["balloon"] = self._balloon()
        if vm.hotplug_mem:
            config["memory-hotplug"] = {"total_size_mib": vm.hotplug_mem}
        if (number := hybrid_vsock.cid(self.runner, self.facts)) is not None:
            config["vsock"] = {"guest_cid": number, "uds_path": hybrid_vsock.SOCKET}
        return config

    def _boot_source(self) -> Json:
        runner, facts = self.runner, self.facts
        line = kernel_line(
            runner, facts,
            own=self._own_parameters(),
            modules=resources.modules(
                runner,
                "virtio_pci" if self.pci else "virtio_mmio",
                *hybrid_vsock.modules(runner, facts),
            ),
            job=hybrid_vsock.JOB,
            credentials=resources.credential_disk(runner, facts),
        )  # fmt: skip
        return {
            "kernel_image_path": resources.vmlinux(runner, facts),
            "initrd_path": resources.initrd(runner, facts),
            "boot_args": line,
        }

    def _own_parameters(self) -> tuple[str, ...]:
        words = ["console=ttyS0", "reboot=k", "panic=-1"]
        if platform.machine() == "x86_64":
            # The keyboard controller has no mouse and answers no probe; not `nopnp`: its
            # interrupt is told by ACPI alone. Only a reset through it ends the process.
            words += ["i8042.noaux", "i8042.nomux", "i8042.dumbkbd"]
            words.append("microvm.poweroff=reset")
        if not self.pci:
            words.append("pci=off")
        return tuple(words)

    def _drives(self) -> list[Json]:
        engine = self.runner.microvm.firecracker.drive_io_engine
        return [
            {
                "drive_id": disk.name,
                "path_on_host": disk.path,
                "is_root_device": False,
                "is_read_only": disk.read_only,
                # Its default ignores the guest's flushes.
                "cache_type": "Unsafe" if disk.read_only else "Writeback",
                "io_engine": engine,
            }
            for disk in resources.disks_with_credentials(self.runner, self.facts)
        ]

    def _interfaces(self) -> list[Json]:
        return [
            {
                "iface_id": interface.id,
                "host_dev_name": interface.id,
                "guest_mac": interface.mac or mac(self.facts.machine_id, interface.id),
            }
            for interface in self.runner.microvm.interfaces
        ]

    def _balloon(self) -> Json:
        vm = self.runner.microvm
        balloon: Json = {
            "amount_mib": vm.initial_balloon_mem,
            "deflate_on_oom": vm.deflate_on_oom is not False,
            "stats_polling_interval_s": 0,
        }
        if self.program.has(REPORTING_SINCE):
            balloon["free_page_reporting"] = True
        return balloon


def merged(ours: Any, theirs: Any) -> Any:
    """Return `theirs` over `ours`: tables key by key, lists item by item where items have names."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {**ours, **{key: merged(ours.get(key), item) for key, item in theirs.items()}}
    if isinstance(ours, list) and isinstance(theirs, list) and all(map(_name, (*ours, *theirs))):
        named = {_name(item): item for item in ours}
        for item in theirs:
            named[_name(item)] = merged(named.get(_name(item)), item)
        return list(named.values())
    return theirs


def _name(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    return next((str(item[key]) for key in NAMES if item.get(key)), None)


def _text(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
