"""The MicroVM as declared: one frozen object with everything that a user may say."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from annotated_types import Ge, Le

from microvm.model.constraints import (
    LEAST_MIB,
    STRICT,
    Cpus,
    CredentialName,
    HostAccount,
    HostPath,
    KernelParameter,
    Line,
    Memory,
    Pattern,
)
from microvm.model.devices import (
    Device,
    ForwardPort,
    Graphics,
    Interface,
    Protocol,
    Share,
    Volume,
    Vsock,
)
from microvm.model.options import (
    CloudHypervisorOptions,
    CrosvmOptions,
    FirecrackerOptions,
    KvmtoolOptions,
    QemuOptions,
    VirtiofsdOptions,
)
from microvm.model.system import DebianSystem


class HypervisorKind(StrEnum):
    """The programs that can run a MicroVM."""

    QEMU = "qemu"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    FIRECRACKER = "firecracker"
    CROSVM = "crosvm"
    KVMTOOL = "kvmtool"


Hypervisor = Literal["qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroVM:
    """A MicroVM: its guest system, its size, its devices and the hypervisor that runs it."""

    __pydantic_config__ = STRICT

    system: DebianSystem = field(default_factory=DebianSystem)
    """The guest's operating system."""
    hypervisor: Hypervisor = "qemu"
    """Program that runs it."""
    accel: Literal["kvm", "tcg"] | None = None
    """`kvm` (hardware) or `tcg` (emulation, qemu only); unset: what works on the host."""
    cpu: (
        Annotated[
            str,
            Pattern(
                r"[A-Za-z0-9][A-Za-z0-9_.-]*(?:,[+-]?[A-Za-z0-9_.-]+(?:=[A-Za-z0-9_.-]+)?)*",
                "a CPU model, with features after commas such as `max,pmu=off`",
            ),
        ]
        | None
    ) = None
    """CPU model to emulate; on qemu features of it may follow after commas: `max,pmu=off`."""
    vcpu: Cpus = 1
    """Virtual CPUs, at most 255."""
    mem: Annotated[int, Ge(LEAST_MIB), Le(2**24)] = 512
    """Memory in MiB."""
    hugepage_mem: bool = False
    """Back the guest's memory with huge pages."""
    hotplug_mem: Memory = 0
    """Memory in MiB that can be plugged in at run time, on top of `mem`."""
    hotplugged_mem: Memory = 0
    """Part of `hotplug_mem`, in MiB, that is plugged in at start."""
    balloon: bool = False
    """Let the host take memory back at run time."""
    initial_balloon_mem: Memory = 0
    """Memory in MiB that the balloon holds at start."""
    deflate_on_oom: bool | None = None
    """The balloon gives memory back when the guest runs out of it. Unset: where the hypervisor
    can."""
    socket: HostPath | None = None
    """Control socket of the VMM; unset: one in the state directory."""
    user: HostAccount | None = None
    """User of the host that the VMM becomes once it has opened its files and devices; only root can
    start such a machine."""
    pretty_procnames: bool = True
    """Show the VMM as `microvm@NAME` in the process list."""
    kernel_params: tuple[KernelParameter, ...] = ()
    """Further kernel parameters. Of those that are ours only `microvm.shell` may be among them."""
    initrd_path: HostPath | None = None
    """Initrd to use instead of the one made for the guest; relative to the project."""
    store_on_disk: bool = True
    """Make disk images of the guest's layers; false serves them from the host's directories."""
    store_disk_type: Literal["erofs", "squashfs"] = "erofs"
    """File system of the layers' images."""
    store_disk_erofs_flags: tuple[Line, ...] | None = None
    """Arguments of mkfs.erofs; unset: fitted to program and guest kernel."""
    store_disk_squashfs_flags: tuple[Line, ...] | None = None
    """Arguments of mksquashfs; unset: fitted to the guest kernel."""
    store_proto: Literal["virtiofs", "9p"] = "virtiofs"
    """How the layers' directories reach the guest with `store_on_disk = false`. With `9p` no share
    can be one over 9p."""
    volumes: tuple[Volume, ...] = ()
    """Disks."""
    shares: tuple[Share, ...] = ()
    """Host directories."""
    interfaces: tuple[Interface, ...] = ()
    """Network interfaces."""
    forward_ports: tuple[ForwardPort, ...] = ()
    """Ports passed on by user networking."""
    devices: tuple[Device, ...] = ()
    """Host devices passed through."""
    vsock: Vsock = field(default_factory=Vsock)
    """Sockets between host and guest."""
    graphics: Graphics = field(default_factory=Graphics)
    """Graphical console."""
    machine_id: (
        Annotated[
            str,
            Pattern(
                r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}",
                "a UUID or 32 hexadecimal digits",
            ),
        ]
        | None
    ) = None
    """machine-id and SMBIOS UUID of the guest; unset: derived from host and machine at launch."""
    register_with_machined: bool = False
    """Register the running machine with systemd-machined."""
    credential_files: dict[CredentialName, HostPath] = field(default_factory=dict)
    """Host files handed to the guest as systemd credentials, by credential name."""
    qemu: QemuOptions = field(default_factory=QemuOptions)
    """Options of qemu."""
    cloud_hypervisor: CloudHypervisorOptions = field(default_factory=CloudHypervisorOptions)
    """Options of cloud-hypervisor."""
    firecracker: FirecrackerOptions = field(default_factory=FirecrackerOptions)
    """Options of firecracker."""
    crosvm: CrosvmOptions = field(default_factory=CrosvmOptions)
    """Options of crosvm."""
    kvmtool: KvmtoolOptions = field(default_factory=KvmtoolOptions)
    """Options of kvmtool."""
    virtiofsd: VirtiofsdOptions = field(default_factory=VirtiofsdOptions)
    """Options of virtiofsd."""

    def uses(self, protocol: Protocol) -> bool:
        """Return whether a share, or the root itself, reaches the guest that way."""
        root = not self.store_on_disk and self.store_proto == protocol
        return root or any(share.proto == protocol for share in self.shares)
