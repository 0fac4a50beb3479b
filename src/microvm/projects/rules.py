"""Rules between fields and between MicroVMs, which types can't say."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from microvm.errors import Problem
from microvm.model.declaration import MicroVM

SOCKET_LIMIT = 107
_LABELS = {"xfs": 12, "vfat": 11, "ext2": 16, "ext3": 16, "ext4": 16, "btrfs": 16}


def check_all(microvms: Mapping[str, MicroVM], directory: Path) -> list[Problem]:
    """Return what is wrong within and between MicroVMs of one project."""
    problems = [
        Problem(
            where=f"microvms.{name}.{problem.where}", message=problem.message, hint=problem.hint
        )
        for name, microvm in microvms.items()
        for rule in _RULES
        for problem in rule(microvm, directory)
    ]
    return [*problems, *_between(microvms)]


def _twice(pairs: Iterable[tuple[str, object]], what: str) -> Iterator[Problem]:
    first: dict[object, str] = {}
    for where, value in pairs:
        if value in first:
            yield Problem(where=where, message=f"{what} {value} is that of {first[value]} too")
        else:
            first[value] = where


def _devices(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    volumes = list(enumerate(vm.volumes))
    yield from _twice(((f"volumes.{i}.image", v.image) for i, v in volumes), "the image")
    points = [(f"volumes.{i}.mount_point", v.mount_point) for i, v in volumes if v.mount_point]
    points += [(f"shares.{i}.mount_point", s.mount_point) for i, s in enumerate(vm.shares)]
    yield from _twice(points, "the mount point")
    yield from _twice(((f"shares.{i}.tag", s.tag) for i, s in enumerate(vm.shares)), "the tag")
    yield from _twice(((f"interfaces.{i}.id", n.id) for i, n in enumerate(vm.interfaces)), "the id")
    macs = ((f"interfaces.{i}.mac", n.mac.lower()) for i, n in enumerate(vm.interfaces) if n.mac)
    yield from _twice(macs, "the MAC address")
    ports = (
        (f"forward_ports.{i}.host", (f.proto, f.host.address or "127.0.0.1", f.host.port))
        for i, f in enumerate(vm.forward_ports)
        if f.origin == "host"
    )
    yield from _twice(ports, "the forwarded port")


def _volumes(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, volume in enumerate(vm.volumes):
        key = f"volumes.{index}"
        if volume.auto_create and volume.size is None and not volume.image.startswith("/dev/"):
            yield Problem(
                where=f"{key}.size",
                message="it is needed to create the image",
                hint="say a size in MiB, or auto_create = false",
            )
        if volume.label and len(volume.label) > _LABELS[volume.fs_type]:
            yield Problem(
                where=f"{key}.label",
                message=f"{volume.fs_type} has room for {_LABELS[volume.fs_type]} characters",
            )
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
        if ".." in Path(volume.image).parts:
            yield Problem(
                where=f"{key}.image",
                message="an image outside the state directory is named by an absolute path",
            )


def _shares(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, share in enumerate(vm.shares):
        key = f"shares.{index}"
        if share.mount_point == "/":
            yield Problem(where=f"{key}.mount_point", message="a share can't be the root")
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
            yield Problem(where=f"{key}.tap.vhost", message="it goes only with type tap")
        if (interface.type == "macvtap") != (interface.macvtap is not None):
            said = "is needed for" if interface.type == "macvtap" else "goes only with"
            yield Problem(where=f"{key}.macvtap", message=f"it {said} type macvtap")
        if interface.mac and int(interface.mac[:2], 16) & 1:
            yield Problem(
                where=f"{key}.mac",
                message=f"{interface.mac} is a multicast address",
                hint="its first byte must be even, such as 02",
            )
    users = [i for i in vm.interfaces if i.type == "user"]
    if vm.forward_ports and not users:
        yield Problem(
            where="forward_ports", message="ports are forwarded by an interface of type user"
        )
    if len(users) > 1 and vm.forward_ports:
        yield Problem(
            where="forward_ports",
            message="with several user interfaces it is not clear which forwards",
        )


def _machine(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    if vm.hotplugged_mem > vm.hotplug_mem:
        yield Problem(
            where="hotplugged_mem",
            message=f"{vm.hotplugged_mem} MiB are more than hotplug_mem, {vm.hotplug_mem}",
        )
    if vm.vsock.ssh.enable and vm.vsock.cid is None:
        yield Problem(where="vsock.ssh.enable", message="it needs vsock.cid")
    for index, text in enumerate(vm.cloud_hypervisor.platform_oem_strings):
        if "oem_strings" in text:
            yield Problem(
                where=f"cloud_hypervisor.platform_oem_strings.{index}",
                message="say the string alone, without `oem_strings=`",
            )
    if vm.socket and len(vm.socket.encode()) > SOCKET_LIMIT:
        yield Problem(where="socket", message=f"a socket's path has at most {SOCKET_LIMIT} bytes")
    for key, path in vm.credential_files.items():
        if not (directory / path).exists():
            yield Problem(
                where=f"credential_files.{key}", message=f"there is no file {directory / path}"
            )


def _system(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for path, file in vm.system.files.items():
        key = f"system.files.{path!r}"
        if (file.text is None) == (file.source is None):
            yield Problem(where=key, message="it needs one of text and source, not both")
        elif file.source is not None and not (directory / file.source).exists():
            yield Problem(where=f"{key}.source", message=f"there is no {directory / file.source}")
        if ".." in path.split("/") or "." in path.split("/"):
            yield Problem(where=key, message="a path in the guest has no `.` or `..`")


def _packages(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    for index, package in enumerate(vm.system.packages):
        if package.endswith(".deb") and not (directory / package).is_file():
            yield Problem(
                where=f"system.packages.{index}", message=f"there is no file {directory / package}"
            )
    for index, repository in enumerate(vm.system.repositories):
        if repository.key and not (directory / repository.key).is_file():
            yield Problem(
                where=f"system.repositories.{index}.key",
                message=f"there is no file {directory / repository.key}",
            )


def _accounts(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    uids = (
        (f"system.users.{n}.uid", u.uid) for n, u in vm.system.users.items() if u.uid is not None
    )
    yield from _twice(uids, "the uid")
    login = vm.system.autologin
    if login and login != "root" and login not in vm.system.users:
        yield Problem(where="system.autologin", message=f"there is no user {login}")
    kernel = vm.system.kernel
    if kernel not in (None, "cloud", "generic") and not (directory / str(kernel)).is_dir():
        yield Problem(
            where="system.kernel",
            message=f"{kernel!r} is neither cloud nor generic nor a directory",
        )


_RULES: tuple[Callable[[MicroVM, Path], Iterator[Problem]], ...] = (
    _devices, _volumes, _shares, _interfaces, _machine, _system, _packages,
    _accounts,
)  # fmt: skip


def _between(microvms: Mapping[str, MicroVM]) -> Iterator[Problem]:
    """What only one machine of a host can have."""
    each = [(f"microvms.{name}", vm) for name, vm in microvms.items()]
    macs = (
        (f"{key}.interfaces.{i}.mac", n.mac.lower())
        for key, vm in each
        for i, n in enumerate(vm.interfaces)
        if n.mac
    )
    taps = (
        (f"{key}.interfaces.{i}.id", n.id)
        for key, vm in each
        for i, n in enumerate(vm.interfaces)
        if n.type != "user"
    )
    cids = ((f"{key}.vsock.cid", vm.vsock.cid) for key, vm in each if vm.vsock.cid is not None)
    images = (
        (f"{key}.volumes.{i}.image", v.image)
        for key, vm in each
        for i, v in enumerate(vm.volumes)
        if v.image.startswith("/") and not v.read_only
    )
    ports = (
        (f"{key}.forward_ports.{i}.host", (f.proto, f.host.address or "127.0.0.1", f.host.port))
        for key, vm in each
        for i, f in enumerate(vm.forward_ports)
        if f.origin == "host"
    )
    for pairs, what in (
        (macs, "the MAC address"), (taps, "the interface"), (cids, "the CID"),
        (images, "the image"), (ports, "the forwarded port"),
    ):  # fmt: skip
        yield from _twice_across(pairs, what)


def _twice_across(pairs: Iterable[tuple[str, object]], what: str) -> Iterator[Problem]:
    """Like `_twice`, but only between different MicroVMs: rules of one told the rest."""
    first: dict[object, str] = {}
    for where, value in pairs:
        other = first.setdefault(value, where)
        if other.split(".")[:2] != where.split(".")[:2]:
            yield Problem(where=where, message=f"{what} {value} is that of {other} too")
