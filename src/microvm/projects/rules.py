"""Rules between fields, which types can't say."""

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from microvm.errors import Problem
from microvm.host import credentials
from microvm.host.files import obstacle
from microvm.host.stream import LIMIT as SOCKET_LIMIT
from microvm.hypervisors import hybrid_vsock, hypervisor, resources
from microvm.hypervisors.kernel_line import ROOM
from microvm.hypervisors.qemu_plan import WATCH
from microvm.hypervisors.shares import socket_of
from microvm.model import forwards
from microvm.model.declaration import MicroVM
from microvm.model.devices import ForwardPort, Volume, names_device, shortest
from microvm.projects import between_rules, guest_rules, keypath, lone_rules

HUGE_PAGE_MIB = 2
_FORMAT = {"vhd": "vpc -o subformat=fixed,force_size=on"}
"""qemu-img's words; cloud-hypervisor takes no other kind of VHD."""
_LABELS = {"xfs": 12, "vfat": 11, "ext2": 16, "ext3": 16, "ext4": 16, "btrfs": 16}
_LEAST = {"xfs": 300, "btrfs": 110}
"""MiB that mkfs asks for (xfsprogs 5.19, btrfs-progs 6.2)."""
_OURS = (
    "lock", "current", "host-id", "taps.json", "credentials.img", "firecracker.json",
    "cpu-template.json", "power.key", "power.cid", "empty",
)  # fmt: skip
_OUR_STARTS = (".", "virtiofs-microvm-")
_OUR_ENDINGS = (".lock", ".layers", ".log")
"""What our own files in the state directory are called, with sockets (docs/state-directory.md)."""


def check_all(microvms: Mapping[str, MicroVM], directory: Path) -> list[Problem]:
    """Return what is wrong within and between MicroVMs of one project."""
    problems = [
        Problem(where=f"{_key(name)}.{problem.where}", message=problem.message, hint=problem.hint)
        for name, microvm in microvms.items()
        for rule in _RULES
        for problem in rule(microvm, directory)
    ]
    return [*problems, *between_rules.check(microvms)]


def _key(name: str) -> str:
    return keypath.join(("microvms", name))


def _twice(pairs: Iterable[tuple[str, object]], what: str) -> Iterator[Problem]:
    first: dict[object, str] = {}
    for where, value in pairs:
        if value in first:
            yield Problem(where=where, message=f"{what} {value} is that of {first[value]} too")
        else:
            first[value] = where


def _devices(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    yield from _twice(guest_rules.mount_points(vm), "the mount point")
    yield from _twice(((f"shares.{i}.tag", s.tag) for i, s in enumerate(vm.shares)), "the tag")
    yield from _twice(((f"interfaces.{i}.id", n.id) for i, n in enumerate(vm.interfaces)), "the id")
    macs = ((f"interfaces.{i}.mac", n.mac.lower()) for i, n in enumerate(vm.interfaces) if n.mac)
    yield from _twice(macs, "the MAC address")
    passed = ((f"devices.{i}.path", device.path) for i, device in enumerate(vm.devices))
    yield from _twice(passed, "the device")
    yield from _ports(vm)
    opened = (
        (f"forward_ports.{i}.guest", (f.proto, *forwards.entrance(f)))
        for i, f in enumerate(vm.forward_ports)
        if f.origin == "guest"
    )
    yield from _twice(opened, "the port opened for the guest")


def _ports(vm: MicroVM) -> Iterator[Problem]:
    before: dict[str, ForwardPort] = {}
    for index, forward in enumerate(vm.forward_ports):
        if forward.origin != "host":
            continue
        where = f"forward_ports.{index}.host"
        if rival := next((at for at, f in before.items() if forwards.collide(f, forward)), None):
            message = f"the forwarded port {forwards.port(forward)} is that of {rival} too"
            yield Problem(where=where, message=message)
        else:
            before[where] = forward


def _volumes(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, volume in enumerate(vm.volumes):
        key = f"volumes.{index}"
        if volume.auto_create and volume.size is None and not names_device(volume.image):
            yield Problem(
                where=f"{key}.size",
                message="it is needed to create the image",
                hint="say a size in MiB, or auto_create = false",
            )
        least = _LEAST.get(volume.fs_type, 1)
        made = volume.auto_create and not names_device(volume.image) and not volume.mkfs_extra_args
        if made and volume.size is not None and volume.size < least:
            yield Problem(where=f"{key}.size", message=f"{volume.fs_type} needs {least} MiB")
        if volume.label and len(volume.label) > _LABELS[volume.fs_type]:
            yield Problem(
                where=f"{key}.label",
                message=f"{volume.fs_type} has room for {_LABELS[volume.fs_type]} characters",
            )
        if volume.fs_type == "vfat" and "." in (volume.label or ""):
            yield Problem(where=f"{key}.label", message="vfat takes no `.` in a label")
        if volume.image_type != "raw":
            yield from _not_raw(volume, key)
        if volume.mount_point == "/" and volume.read_only:
            yield Problem(
                where=f"{key}.read_only", message="the writable side of the root can't be read-only"
            )
        if volume.mount_point == "/" and volume.fs_type == "vfat":
            yield Problem(
                where=f"{key}.fs_type",
                message="vfat can't be the writable side of the root",
                hint="use ext4",
            )


def _not_raw(volume: Volume, key: str) -> Iterator[Problem]:
    """What is done only with raw images."""
    kind = volume.image_type
    if volume.auto_create:
        yield Problem(
            where=f"{key}.auto_create",
            message=f"images are made here raw, not {kind}",
            hint="set it to false, and make the image of a raw one with a file system: "
            f"qemu-img convert -f raw -O {_FORMAT.get(kind, kind)} RAW {volume.image}",
        )
    if volume.size is not None:
        message = f"the size of a {kind} image is not looked at"
        yield Problem(where=f"{key}.size", message=message, hint="leave it out")


def _state(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Relative images and sockets lie in the state directory, among files of ours."""
    images = [(f"volumes.{i}.image", volume.image) for i, volume in enumerate(vm.volumes)]
    sockets = [("socket", vm.socket)] if vm.socket else []
    sockets += [(f"shares.{i}.socket", s.socket) for i, s in enumerate(vm.shares) if s.socket]
    for where, path in (*images, *sockets):
        names = shortest(path).split("/")
        ours = _OUR_ENDINGS if (where, path) in sockets else (*_OUR_ENDINGS, ".sock")
        if ".." in path.split("/"):
            yield Problem(
                where=where,
                message=f"{path} must not contain `..`",
                hint="what lies outside the state directory is named by an absolute path",
            )
        elif path.endswith("/") or names[-1] in (".", ""):
            yield Problem(where=where, message=f"{path} is a directory")
        elif not path.startswith("/") and (
            names[0] in _OURS or names[0].startswith(_OUR_STARTS) or names[-1].endswith(ours)
        ):
            message = f"{path}: such names in the state directory are our own"
            yield Problem(where=where, message=message)
    for where, path in sockets:
        if len(path.encode()) > SOCKET_LIMIT:
            message = f"a socket's path has at most {SOCKET_LIMIT} bytes"
            yield Problem(where=where, message=message)
    own = [hypervisor(vm.hypervisor).control_socket] if vm.socket is None else []
    own += [socket_of(share) for share in vm.shares if not share.socket]
    own += [WATCH, resources.JOB, hybrid_vsock.SOCKET, hybrid_vsock.JOB_SOCKET]
    taken = [("microvm itself", name) for name in dict.fromkeys(own)]
    named = [(where, shortest(path)) for where, path in (*images, *sockets)]
    yield from _twice([*taken, *named], "the file")


def _shares(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, share in enumerate(vm.shares):
        key = f"shares.{index}"
        if share.tag.startswith("microvm-"):
            yield Problem(where=f"{key}.tag", message="tags with `microvm-` are our own")
        if share.posix_acl and (share.uid_map or share.gid_map):
            yield Problem(
                where=f"{key}.posix_acl", message="it can't go together with uid_map and gid_map"
            )
        only_virtiofs = (
            share.socket,
            share.uid_map,
            share.gid_map,
            share.extra_args,
            share.posix_acl,
            share.cache != "auto",
        )
        if share.proto == "9p" and any(only_virtiofs):
            yield Problem(
                where=f"{key}.proto",
                message="socket, cache, uid_map, gid_map, posix_acl, extra_args are for virtiofs",
            )
        if share.proto == "virtiofs" and share.security_model != "none":
            yield Problem(where=f"{key}.security_model", message="it is a 9p option")


def _interfaces(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, interface in enumerate(vm.interfaces):
        key = f"interfaces.{index}"
        if interface.type == "bridge" and interface.bridge is None:
            yield Problem(where=f"{key}.bridge", message="it is needed for type bridge")
        if interface.type in ("user", "macvtap") and interface.bridge is not None:
            yield Problem(where=f"{key}.bridge", message=f"type {interface.type} joins no bridge")
        if interface.tap.vhost and interface.type != "tap":
            yield Problem(
                where=f"{key}.tap.vhost",
                message="it goes only with type tap",
                hint="say type tap; it may name a bridge too",
            )
        if (interface.type == "macvtap") != (interface.macvtap is not None):
            said = "is needed for" if interface.type == "macvtap" else "goes only with"
            yield Problem(where=f"{key}.macvtap", message=f"it {said} type macvtap")
        if interface.mac and int(interface.mac[:2], 16) & 1:
            yield Problem(
                where=f"{key}.mac",
                message=f"{interface.mac} is a multicast address",
                hint="its first byte must be even, such as 02",
            )
        elif interface.mac and not interface.mac.strip("0:"):
            yield Problem(where=f"{key}.mac", message="an address of zeros means none")
    yield from _forwards(vm)


def _forwards(vm: MicroVM) -> Iterator[Problem]:
    users = [i for i in vm.interfaces if i.type == "user"]
    if len(users) > 1 and vm.forward_ports:
        yield Problem(
            where="forward_ports",
            message="with several user interfaces it is not clear which forwards",
        )


def _addresses(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, forward in enumerate(vm.forward_ports):
        for end in ("host", "guest"):
            text = getattr(forward, end).address
            where = f"forward_ports.{index}.{end}.address"
            try:
                address = ip_address(text or "127.0.0.1")
            except ValueError:
                yield Problem(where=where, message=f"{text!r} is no IP address")
                continue
            if text and text != str(address):
                yield Problem(where=where, message=f"write {text} as {address}")
            if address.is_multicast or (address.version == 6 and address.is_link_local):
                yield Problem(where=where, message=f"{text} is not the address of one machine")


def _opened_for_the_guest(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """What user networking, or a guest that holds the address itself, can't lead anywhere."""
    found = [(i, f) for i, f in enumerate(vm.forward_ports) if f.origin == "guest"]
    taken = {forwards.target(forward)[0] for _, forward in found}
    for index, forward in found:
        host, (entrance, _) = forward.host.address, forwards.entrance(forward)
        if host.startswith("127.") and host != "127.0.0.1":
            yield Problem(
                where=f"forward_ports.{index}.host.address",
                message=f"of the host's loopback addresses guests reach 127.0.0.1, not {host}",
                hint="leave it out, and let the service listen there",
            )
        if host in forwards.EVERYWHERE:
            yield Problem(
                where=f"forward_ports.{index}.host.address",
                message=f"{host} is no address to connect to",
                hint="leave it out: such a service is reached at the loopback address too",
            )
        if entrance in {*taken, *forwards.OTHERS} and not forwards.is_direct(forward):
            yield Problem(
                where=f"forward_ports.{index}.guest.address",
                message=f"the guest finds others at {entrance} and can't have it as its own",
                hint="leave it out, or name an address that is not in use",
            )


def _machine(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    if vm.hotplugged_mem > vm.hotplug_mem > 0:
        yield Problem(
            where="hotplugged_mem",
            message=f"{vm.hotplugged_mem} MiB are more than hotplug_mem, {vm.hotplug_mem}",
        )
    for index, text in enumerate(vm.cloud_hypervisor.platform_oem_strings):
        if "oem_strings" in text:
            yield Problem(
                where=f"cloud_hypervisor.platform_oem_strings.{index}",
                message="say the string alone, without `oem_strings=`",
            )
    yield from credentials.problems(
        {key: directory / path for key, path in vm.credential_files.items()}
    )
    if vm.initrd_path and (why := obstacle(directory / vm.initrd_path, stat.S_ISREG)):
        yield Problem(where="initrd_path", message=why)
    if vm.machine_id and not vm.machine_id.strip("0-"):
        yield Problem(where="machine_id", message="an id of zeros means none (machine-id(5))")


def _kernel_params(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """The kernel takes the last of two: a declared one would take the place of ours."""
    for index, word in enumerate(vm.kernel_params):
        name = word.partition("=")[0].replace("-", "_")
        message, hint = None, None
        if word == "--":
            message = "what follows it would go to init, not to the kernel"
        elif name == "systemd.machine_id":
            message, hint = "it would take the place of ours", "say machine_id"
        elif name.startswith("microvm.") and word != "microvm.shell":
            message, hint = "parameters with `microvm.` are our own", "only microvm.shell is free"
        if message:
            yield Problem(where=f"kernel_params.{index}", message=f"{word}: {message}", hint=hint)
    length = sum(len(word) + 1 for word in vm.kernel_params)
    if length > ROOM:
        message = f"they have {length} bytes, there is room for {ROOM}"
        yield Problem(where="kernel_params", message=message)


def _memory(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    if vm.initial_balloon_mem >= vm.mem:
        yield Problem(
            where="initial_balloon_mem",
            message=f"{vm.initial_balloon_mem} MiB leave the guest nothing of mem, {vm.mem}",
        )
    if vm.hugepage_mem and vm.mem % HUGE_PAGE_MIB:
        yield Problem(
            where="mem",
            message=f"{vm.mem} MiB are no whole number of huge pages of {HUGE_PAGE_MIB} MiB",
            hint=f"say {vm.mem + 1}",
        )


def _accounts(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    uids = (
        (f"system.users.{n}.uid", u.uid) for n, u in vm.system.users.items() if u.uid is not None
    )
    yield from _twice(uids, "the uid")


_RULES: tuple[Callable[[MicroVM, Path], Iterator[Problem]], ...] = (
    _devices, _volumes, _state, _shares, _interfaces, _addresses, _opened_for_the_guest, _machine,
    _memory, _kernel_params, _accounts, lone_rules.lone,
    guest_rules.mounts, guest_rules.files, guest_rules.places, guest_rules.packages,
    guest_rules.accounts,
)  # fmt: skip
