"""Declared options that only one hypervisor, or virtiofsd, knows."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from microvm.model.constraints import STRICT, HostAccount, HostPath, Json, Line, Pattern
from microvm.model.devices import PcieRootPort


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuOptions:
    """Options of qemu."""

    __pydantic_config__ = STRICT

    machine: Literal["microvm", "q35"] | None = None
    """Machine type; unset: `microvm` with hardware virtualisation where nothing needs PCI, else
    `q35`."""
    machine_opts: dict[
        Annotated[str, Pattern(r"[a-z0-9][a-z0-9._-]{0,63}", "a property's name")], Line
    ] = field(default_factory=dict)
    """Machine properties, over those chosen here; not those that other options say."""
    pcie_root_ports: tuple[PcieRootPort, ...] = ()
    """PCI Express root ports, created before passed-through devices."""
    serial_console: bool = True
    """Serial console on standard input and output."""
    extra_args: tuple[Line, ...] = ()
    """Further arguments, appended."""
    program: HostPath | None = None
    """Program to use: a name on `PATH`, or a path, which starts at the project; unset:
    `qemu-system-ARCH` from `PATH`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudHypervisorOptions:
    """Options of cloud-hypervisor."""

    __pydantic_config__ = STRICT

    platform_oem_strings: tuple[Line, ...] = ()
    """SMBIOS OEM strings. They are seen in the host's process list."""
    extra_args: tuple[Line, ...] = ()
    """Further arguments. Those of an option that is generated too join it: disks and the like are
    added, keys such as those of `--cpus` are replaced one by one, other values as a whole."""
    program: HostPath | None = None
    """Program to use: a name on `PATH`, or a path, which starts at the project; unset:
    `cloud-hypervisor` from `PATH`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirecrackerOptions:
    """Options of firecracker."""

    __pydantic_config__ = STRICT

    cpu: dict[str, Json] | None = None
    """Custom CPU template, in firecracker's own words."""
    drive_io_engine: Literal["Async", "Sync"] = "Async"
    """I/O engine of all drives."""
    extra_args: tuple[Line, ...] = ()
    """Further arguments, appended."""
    extra_config: dict[str, Json] = field(default_factory=dict)
    """Configuration merged over the generated one, key by key, and in lists item by item by their
    `drive_id`, `iface_id` or `id`. Disks are `layerN`, `volumeN` and `credentials`."""
    program: HostPath | None = None
    """Program to use: a name on `PATH`, or a path, which starts at the project; unset:
    `firecracker` from `PATH`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrosvmOptions:
    """Options of crosvm."""

    __pydantic_config__ = STRICT

    pivot_root: HostPath | None = None
    """Empty directory that sandboxed devices have as root; relative paths start at the project."""
    extra_args: tuple[Line, ...] = ()
    """Further arguments, appended."""
    program: HostPath | None = None
    """Program to use: a name on `PATH`, or a path, which starts at the project; unset:
    `crosvm` from `PATH`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvmtoolOptions:
    """Options of kvmtool."""

    __pydantic_config__ = STRICT

    extra_args: tuple[Line, ...] = ()
    """Further arguments, appended."""
    program: HostPath | None = None
    """Program to use: a name on `PATH`, or a path, which starts at the project; unset:
    `lkvm` from `PATH`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtiofsdOptions:
    """Options of the helper that serves virtiofs shares."""

    __pydantic_config__ = STRICT

    inode_file_handles: Literal["prefer", "never", "mandatory"] | None = "prefer"
    """File handles instead of one open descriptor an inode."""
    thread_pool_size: Annotated[int, Ge(0), Le(1024)] | None = None
    """Threads a share; unset leaves the choice to virtiofsd."""
    group: HostAccount | None = None
    """Group that owns the socket."""
    extra_args: tuple[Line, ...] = ()
    """Further arguments for every share."""
    program: HostPath | None = None
    """Program to use: a name on `PATH`, or a path, which starts at the project; unset:
    `virtiofsd` from `PATH` and the places where distributions keep it."""
