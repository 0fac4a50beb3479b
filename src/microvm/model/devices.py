"""The declared devices of a MicroVM: volumes, shares, interfaces, forwarded ports, passthrough."""

import posixpath
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from microvm.model.constraints import (
    STRICT,
    DiskSize,
    HostPath,
    InterfaceName,
    Label,
    Line,
    Mac,
    Memory,
    MountPoint,
    Pattern,
    Port,
    Serial,
    Tag,
)

FsType = Literal["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"]
ImageType = Literal["raw", "qcow2", "vhd", "vhdx"]
Protocol = Literal["9p", "virtiofs"]
InterfaceType = Literal["user", "tap", "macvtap", "bridge"]

Address = Annotated[str, Pattern(r"|[0-9a-fA-F:.]+", "an IP address, or empty for any")]


IdMap = Annotated[
    str,
    Pattern(
        r"(?:map|guest|host|squash-guest|squash-host):\d{1,9}:\d{1,9}:\d{1,9}|forbid-guest:\d{1,9}:\d{1,9}",
        "a translation of ids such as `map:1000:0:1`: 1 of them, from the guest's 1000 on",
    ),
]
"""As `virtiofsd --help` has them at --translate-uid."""


def shortest(path: str) -> str:
    """Return a path without what does not count in it: `.`, doubled and final slashes."""
    short = posixpath.normpath(path)
    return "/" + short.lstrip("/") if path.startswith("/") else short


def names_device(image: str) -> bool:
    """Return whether an image is a device of the host; the files in /dev are those of /dev/shm."""
    path = shortest(image)
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A disk image or block device attached as a virtio block device."""

    __pydantic_config__ = STRICT

    image: HostPath
    """Image file or block device; relative paths start at the machine's state directory."""
    mount_point: MountPoint | None = None
    """Where the guest mounts it; unset attaches it unmounted. `/` makes it the writable side of the
    root."""
    size: DiskSize | None = None
    """Size in MiB at creation, and the least it has later: raise it, and image and file system grow
    at the next start (not vfat, nor what was not made here). Needed with `auto_create`."""
    auto_create: bool = True
    """Create image and file system before the first start."""
    fs_type: FsType = "ext4"
    """File system made and mounted."""
    label: Label | None = None
    """File system label at creation."""
    mkfs_extra_args: tuple[Line, ...] = ()
    """Further arguments of the mkfs program."""
    serial: Serial | None = None
    """Serial number that the guest sees."""
    direct: bool | None = None
    """Bypass the host's page cache. Unset leaves the choice to the hypervisor."""
    read_only: bool = False
    """Refuse guest writes."""
    image_type: ImageType = "raw"
    """Format of the image; images that are created here are raw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A host directory that the guest mounts."""

    __pydantic_config__ = STRICT

    tag: Tag
    """Name of the share on the device."""
    source: HostPath
    """Directory of the host; relative paths start at the project."""
    mount_point: MountPoint
    """Where the guest mounts it."""
    proto: Protocol = "virtiofs"
    """Protocol: `virtiofs` is the faster one, `9p` needs no helper but a `generic` kernel."""
    socket: HostPath | None = None
    """Socket of virtiofsd; unset: one in the state directory."""
    security_model: Literal["passthrough", "none", "mapped", "mapped-file"] = "none"
    """How 9p keeps owners and modes on the host."""
    read_only: bool = False
    """Refuse guest writes."""
    cache: Literal["auto", "always", "metadata", "never"] = "auto"
    """virtiofsd's cache policy."""
    posix_acl: bool = False
    """Let virtiofsd keep POSIX ACLs (and so extended attributes)."""
    uid_map: tuple[IdMap, ...] = ()
    """virtiofsd `--translate-uid` maps, such as `map:1000:0:1`."""
    gid_map: tuple[IdMap, ...] = ()
    """virtiofsd `--translate-gid` maps."""
    dax: bool = False
    """Map file contents into the guest's memory."""
    dax_window_size: Annotated[Memory, Gt(0)] | None = None
    """Size of the DAX window in MiB."""
    extra_args: tuple[Line, ...] = ()
    """Further virtiofsd arguments for this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MacvtapOptions:
    """Where and how a macvtap interface is attached."""

    __pydantic_config__ = STRICT

    link: InterfaceName
    """Parent interface of the host."""
    mode: Literal["private", "vepa", "bridge", "passthru", "source"] = "bridge"
    """macvtap mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOptions:
    """How a tap interface is attached."""

    __pydantic_config__ = STRICT

    vhost: bool = False
    """Move packets in the host's kernel (vhost-net)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface of the guest."""

    __pydantic_config__ = STRICT

    type: InterfaceType
    """`user` needs no rights; `tap`, `macvtap` and `bridge` join the host's networks. `bridge` is a
    tap that always has a `bridge`.
    User networking lets the guest reach services that listen on the host's loopback address."""
    id: InterfaceName
    """Name of the host's interface (tap, bridge, macvtap), and of the device in the VMM."""
    mac: Mac | None = None
    """MAC address; unset: derived from host, machine and id at launch."""
    bridge: InterfaceName | None = None
    """Bridge to join; needed for type `bridge`, allowed for `tap`."""
    macvtap: MacvtapOptions | None = None
    """Needed for type `macvtap`."""
    tap: TapOptions = field(default_factory=TapOptions)
    """Options of type `tap`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One end of a forwarded port."""

    __pydantic_config__ = STRICT

    port: Port
    """Port number."""
    address: Address = ""
    """Address; empty: on the host 127.0.0.1; on the guest its own one, or with `origin = "guest"`
    its 127.0.0.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPort:
    """A port passed on between host and guest by user networking."""

    __pydantic_config__ = STRICT

    host: Endpoint
    """The host's end."""
    guest: Endpoint
    """The guest's end; with `origin = "guest"` the address and port that the guest connects to,
    which may be any address that is not in use."""
    origin: Literal["host", "guest"] = "host"
    """Who connects: `host` opens a port on the host, `guest` opens one for the guest. (MicroVM.nix:
    `from`.)"""
    proto: Literal["tcp", "udp"] = "tcp"
    """Transport protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuDeviceOptions:
    """Properties of a passed-through device that only qemu knows."""

    __pydantic_config__ = STRICT

    id: Line | None = None
    """Id of the device."""
    bus: Line | None = None
    """Bus it is plugged into, such as a root port's id."""
    device_extra_args: Line | None = None
    """Further properties, `key=value` separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A host device that the guest gets as its own."""

    __pydantic_config__ = STRICT

    bus: Literal["pci", "usb"]
    """Kind of device."""
    path: Annotated[
        str,
        Pattern(
            r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|(?:[a-z]+=[0-9A-Za-z.x]+)(?:,[a-z]+=[0-9A-Za-z.x]+)*",
            "a PCI address such as `0000:03:00.0`, or for USB `vendorid=0x0000,productid=0x0000`",
        ),
    ]
    """PCI address, or QEMU's selector of a USB device."""
    qemu: QemuDeviceOptions = field(default_factory=QemuDeviceOptions)
    """Properties that only qemu knows; the others pass over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockSsh:
    """ssh over vsock."""

    __pydantic_config__ = STRICT

    enable: bool = False
    """Let sshd of the guest listen on vsock port 22; adds the package `openssh-server`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vsock:
    """The socket family between host and guest."""

    __pydantic_config__ = STRICT

    cid: Annotated[int, Ge(3), Le(0xFFFFFFFE)] | None = None
    """Context id of the guest; unset: no vsock. 0 to 2 are reserved (vsock(7))."""
    ssh: VsockSsh = field(default_factory=VsockSsh)
    """Whether sshd is reached that way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphics:
    """A graphical console."""

    __pydantic_config__ = STRICT

    enable: bool = False
    """Give the guest a GPU and a window."""
    backend: Literal["gtk", "headless"] = "gtk"
    """qemu's display."""
    socket: HostPath | None = None
    """Socket of the vhost-user GPU process."""
    vulkan: Literal["venus", "drm_native_context"] | None = None
    """Vulkan over virtio-gpu."""
    hostmem: Annotated[str, Pattern(r"[1-9][0-9]{0,6}[MG]", "a size such as `256M`")] = "256M"
    """GPU host-memory window, used with `vulkan`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PcieRootPort:
    """A PCI Express port into which devices can be plugged at run time."""

    __pydantic_config__ = STRICT

    id: Annotated[str, Pattern(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", "a qemu device id")]
    """Id of the port."""
    bus: Line | None = None
    """Bus that the port is on."""
    chassis: Annotated[int, Ge(0), Le(255)] | None = None
    """Chassis number."""
    slot: Annotated[int, Ge(0), Le(8191)] | None = None
    """Slot number, at most 8191 (PCI Express has 13 bits for it)."""
    addr: Line | None = None
    """Address on the bus."""
