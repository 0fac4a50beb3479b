"""What a declaration may ask of a hypervisor, feature by feature, with the keys that ask it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from microvm.model import forwards
from microvm.model.declaration import MicroVM


class Feature(Enum):
    """Something that a hypervisor may lack."""

    ACCEL_TCG = "emulation without hardware virtualisation"
    CPU_MODEL = "a CPU model"
    HUGE_PAGES = "huge pages"
    HOTPLUG = "memory hot-plug"
    HOTPLUGGED = "hot-plug memory that is plugged in at start"
    BALLOON = "a memory balloon"
    INITIAL_BALLOON = "an inflated balloon at start"
    BALLOON_GIVES = "a balloon that gives memory back when the guest runs out"
    BALLOON_KEEPS = "a balloon that keeps its memory when the guest runs out"
    HUGE_BALLOON = "huge pages and a balloon"
    SOCKET = "a chosen place of the control socket"
    USER = "becoming another user"
    SERIAL = "volumes with a serial number"
    DIRECT = "volumes with direct"
    QCOW2 = "qcow2 images"
    QCOW2_DIRECT = "qcow2 images with direct"
    VHD = "vhd and vhdx images"
    SHARE_9P = "9p shares"
    READ_ONLY_9P = "read-only 9p shares"
    MAPPED_9P = "security models of 9p shares"
    SHARE_VIRTIOFS = "virtiofs shares"
    DAX = "DAX for shares"
    ROOT_SHARED = "a root served from the host's directories"
    ROOT_9P = "a root served over 9p"
    NET_USER = "user networking"
    NET_USER_MORE = "more than one interface of user networking"
    NET_TAP = "tap interfaces"
    NET_MACVTAP = "macvtap interfaces"
    NET_BRIDGE = "bridge interfaces"
    VHOST = "vhost-net"
    FORWARD = "forwarded ports"
    FORWARD_IPV6 = "ports of the host forwarded from or to IPv6 addresses"
    FORWARD_REMAPPED = "ports of the host at another address or port in the guest"
    FORWARD_REMAPPED_UDP = "UDP ports of the host at another address or port in the guest"
    PCI = "PCI passthrough"
    USB = "USB passthrough"
    VSOCK = "vsock"
    GRAPHICS = "a graphical console"
    MACHINED = "registration with systemd-machined"
    CREDENTIALS = "credential files"
    ROOT_PORTS = "PCI Express root ports"


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """One row of what a hypervisor can do: from which version, or what to use instead."""

    feature: Feature
    since: tuple[int, ...] | None = None
    """First version that has it; unset: all versions."""
    available: bool = True
    """False: it can't, or not yet."""
    instead: str = ""
    """What to do with this hypervisor then, where `INSTEAD` doesn't say it well."""
    flaw: str = ""
    """What may go wrong with it, which a plan notes: those without are named instead."""


_TAPS = "use type tap, with a `bridge` of the host"
_CONVERT = "leave it out, and qemu-img convert -O raw"
_FORWARD = "use type tap, and forward on the host"
INSTEAD: Mapping[Feature, str] = {
    Feature.ACCEL_TCG: "leave `accel` out",
    Feature.CPU_MODEL: "leave `cpu` out: the guest gets the host's",
    Feature.HUGE_PAGES: "leave `hugepage_mem` out",
    Feature.HOTPLUG: "add it to `mem`",
    Feature.HOTPLUGGED: "add it to `mem`",
    Feature.BALLOON: "leave `balloon` out",
    Feature.INITIAL_BALLOON: "leave it out, and use microvm-balloon SIZE once it runs",
    Feature.BALLOON_GIVES: "leave `deflate_on_oom` out",
    Feature.BALLOON_KEEPS: "leave `deflate_on_oom` out",
    Feature.HUGE_BALLOON: "leave one of the two out",
    Feature.SOCKET: "leave `socket` out",
    Feature.USER: "start it as that user",
    Feature.SERIAL: "leave `serial` out: the guest finds volumes by UUID or `label`",
    Feature.DIRECT: "leave `direct` out",
    Feature.QCOW2: _CONVERT,
    Feature.QCOW2_DIRECT: "leave `direct` out",
    Feature.VHD: _CONVERT,
    Feature.SHARE_9P: "use proto virtiofs",
    Feature.READ_ONLY_9P: "use proto virtiofs",
    Feature.MAPPED_9P: "leave `security_model` out",
    Feature.SHARE_VIRTIOFS: "use proto 9p",
    Feature.DAX: "leave `dax` and `dax_window_size` out",
    Feature.ROOT_SHARED: "leave `store_on_disk` out: the root is images then",
    Feature.ROOT_9P: "leave `store_proto` out",
    Feature.NET_USER: _TAPS,
    Feature.NET_USER_MORE: _TAPS,
    Feature.NET_MACVTAP: _TAPS,
    Feature.NET_BRIDGE: _TAPS,
    Feature.VHOST: "leave `tap.vhost` out",
    Feature.FORWARD: _FORWARD,
    Feature.FORWARD_IPV6: _FORWARD,
    Feature.FORWARD_REMAPPED: _FORWARD,
    Feature.FORWARD_REMAPPED_UDP: _FORWARD,
    Feature.GRAPHICS: "leave `graphics` out, and use the serial console or ssh",
    Feature.MACHINED: "leave it out",
}
"""What to do without a feature. Which other hypervisors have it follows from their rows."""


def use(names: Sequence[str]) -> str:
    """Return the advice to use one of these hypervisors; empty where there is none."""
    *most, last = names or [""]
    return f"use {', '.join(most)}{' or ' if most else ''}{last}" if last else ""


Found = Iterator[tuple[Feature, str]]


def wanted(microvm: MicroVM) -> dict[Feature, list[str]]:
    """Return the features that a declaration asks for, each with the keys that do."""
    found: dict[Feature, list[str]] = {}
    for part in _PARTS:
        for feature, where in part(microvm):
            found.setdefault(feature, []).append(where)
    return found


def _machine(vm: MicroVM) -> Found:
    asked = (
        (Feature.ACCEL_TCG, "accel", vm.accel == "tcg"),
        (Feature.CPU_MODEL, "cpu", vm.cpu is not None),
        (Feature.HUGE_PAGES, "hugepage_mem", vm.hugepage_mem),
        (Feature.HOTPLUG, "hotplug_mem", vm.hotplug_mem > 0),
        (Feature.HOTPLUGGED, "hotplugged_mem", vm.hotplugged_mem > 0),
        (Feature.BALLOON, "balloon", vm.balloon),
        (Feature.INITIAL_BALLOON, "initial_balloon_mem", vm.initial_balloon_mem > 0),
        (Feature.BALLOON_GIVES, "deflate_on_oom", vm.balloon and vm.deflate_on_oom is True),
        (Feature.BALLOON_KEEPS, "deflate_on_oom", vm.balloon and vm.deflate_on_oom is False),
        (Feature.HUGE_BALLOON, "hugepage_mem", vm.hugepage_mem and vm.balloon),
        (Feature.SOCKET, "socket", vm.socket is not None),
        (Feature.USER, "user", vm.user is not None),
        (Feature.VSOCK, "vsock.cid", vm.vsock.cid is not None),
        (Feature.GRAPHICS, "graphics.enable", vm.graphics.enable),
        (Feature.MACHINED, "register_with_machined", vm.register_with_machined),
        (Feature.CREDENTIALS, "credential_files", bool(vm.credential_files)),
        (
            Feature.ROOT_PORTS,
            "qemu.pcie_root_ports",
            vm.hypervisor == "qemu" and bool(vm.qemu.pcie_root_ports),
        ),
        (Feature.ROOT_SHARED, "store_on_disk", not vm.store_on_disk),
        (Feature.ROOT_9P, "store_proto", not vm.store_on_disk and vm.store_proto == "9p"),
    )
    yield from ((feature, where) for feature, where, asks in asked if asks)


def _volumes(vm: MicroVM) -> Found:
    for index, volume in enumerate(vm.volumes):
        key = f"volumes.{index}"
        if volume.serial is not None:
            yield Feature.SERIAL, f"{key}.serial"
        if volume.direct:
            yield Feature.DIRECT, f"{key}.direct"
        if volume.image_type != "raw":
            kind = Feature.QCOW2 if volume.image_type == "qcow2" else Feature.VHD
            yield kind, f"{key}.image_type"
        if volume.image_type == "qcow2" and volume.direct:
            yield Feature.QCOW2_DIRECT, f"{key}.direct"


def _shares(vm: MicroVM) -> Found:
    for index, share in enumerate(vm.shares):
        key = f"shares.{index}"
        yield (Feature.SHARE_9P if share.proto == "9p" else Feature.SHARE_VIRTIOFS), f"{key}.proto"
        if share.proto == "9p" and share.read_only:
            yield Feature.READ_ONLY_9P, f"{key}.read_only"
        if share.proto == "9p" and share.security_model != "none":
            yield Feature.MAPPED_9P, f"{key}.security_model"
        if share.dax:
            yield Feature.DAX, f"{key}.dax"
        if share.dax_window_size is not None:
            yield Feature.DAX, f"{key}.dax_window_size"


def _interfaces(vm: MicroVM) -> Found:
    kinds = {
        "user": Feature.NET_USER,
        "tap": Feature.NET_TAP,
        "macvtap": Feature.NET_MACVTAP,
        "bridge": Feature.NET_BRIDGE,
    }
    for index, interface in enumerate(vm.interfaces):
        yield kinds[interface.type], f"interfaces.{index}.type"
        if interface.tap.vhost:
            yield Feature.VHOST, f"interfaces.{index}.tap.vhost"
    of_user = [index for index, each in enumerate(vm.interfaces) if each.type == "user"]
    yield from ((Feature.NET_USER_MORE, f"interfaces.{index}.type") for index in of_user[1:])


def _forwards(vm: MicroVM) -> Found:
    for index, forward in enumerate(vm.forward_ports):
        yield Feature.FORWARD, f"forward_ports.{index}"
        if forward.origin == "host":
            ends = (("host", forward.host.address), ("guest", forward.guest.address))
            for end, address in ends:
                if ":" in address:
                    yield Feature.FORWARD_IPV6, f"forward_ports.{index}.{end}.address"
        elif not forwards.is_direct(forward):
            tcp = forward.proto == "tcp"
            feature = Feature.FORWARD_REMAPPED if tcp else Feature.FORWARD_REMAPPED_UDP
            yield feature, f"forward_ports.{index}.guest"


def _devices(vm: MicroVM) -> Found:
    for index, device in enumerate(vm.devices):
        yield (Feature.PCI if device.bus == "pci" else Feature.USB), f"devices.{index}"


_PARTS: tuple[Callable[[MicroVM], Found], ...] = (
    _machine, _volumes, _shares, _interfaces, _forwards, _devices,
)  # fmt: skip
