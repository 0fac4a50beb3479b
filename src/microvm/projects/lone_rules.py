"""Rules of options that mean something only together with another one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from microvm.errors import Problem
from microvm.model.declaration import MicroVM
from microvm.model.devices import Volume, names_device

_IMAGES = "store_on_disk = true"
_NOTHING = MicroVM()


@dataclass(frozen=True, slots=True)
class Need:
    """What options need: without it a value of theirs changes nothing."""

    options: tuple[str, ...]
    words: str
    """What is needed, as a user would say it."""
    reads: tuple[str, ...]
    """The options that say whether it is there."""
    met: Callable[[MicroVM], bool]


def _layers_are(kind: str, vm: MicroVM) -> bool:
    return vm.store_disk_type == kind or not vm.store_on_disk  # which is told already


NEEDS = (
    Need(
        ("deflate_on_oom", "initial_balloon_mem"), "balloon = true",
        ("balloon",), lambda vm: vm.balloon,
    ),
    Need(("hotplugged_mem",), "hotplug_mem", ("hotplug_mem",), lambda vm: vm.hotplug_mem > 0),
    Need(("vsock.ssh.enable",), "vsock.cid", ("vsock",), lambda vm: vm.vsock.cid is not None),
    Need(
        ("forward_ports",), "an interface of type user",
        ("interfaces",), lambda vm: any(each.type == "user" for each in vm.interfaces),
    ),
    Need(
        ("store_proto",), "store_on_disk = false",
        ("store_on_disk",), lambda vm: not vm.store_on_disk,
    ),
    Need(
        ("store_disk_type", "store_disk_erofs_flags", "store_disk_squashfs_flags"), _IMAGES,
        ("store_on_disk",), lambda vm: vm.store_on_disk,
    ),
    Need(
        ("store_disk_erofs_flags",), 'store_disk_type = "erofs"',
        ("store_disk_type",), lambda vm: _layers_are("erofs", vm),
    ),
    Need(
        ("store_disk_squashfs_flags",), 'store_disk_type = "squashfs"',
        ("store_disk_type",), lambda vm: _layers_are("squashfs", vm),
    ),
    Need(
        tuple(f"graphics.{key}" for key in ("backend", "socket", "vulkan", "hostmem")),
        "graphics.enable", ("graphics",), lambda vm: vm.graphics.enable,
    ),
    Need(
        tuple(f"virtiofsd.{key}" for key in ("thread_pool_size", "group", "extra_args", "program")),
        "a share over virtiofs, or the root over it",
        ("shares", "store_on_disk", "store_proto"), lambda vm: vm.uses("virtiofs"),
    ),
    Need(
        # What serves the root is in a user namespace, which has none.
        ("virtiofsd.inode_file_handles",), "a share over virtiofs",
        ("shares",), lambda vm: any(share.proto == "virtiofs" for share in vm.shares),
    ),
    Need(
        ("system.security_mirror",), "system.updates = true",
        ("system.updates",), lambda vm: vm.system.updates,
    ),
    Need(
        ("system.security_mirror", "system.updates"), "a release that has a security suite",
        ("system.release",), lambda vm: vm.system.release != "sid",
    ),
    Need(("system.network",), "system.run", ("system.run",), lambda vm: bool(vm.system.run)),
)  # fmt: skip


def lone(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield options that would have no effect as the others are."""
    for need in NEEDS:
        for option in () if need.met(vm) else need.options:
            if _value(vm, option) != _value(_NOTHING, option):
                yield _without(option, need.words)
    yield from _repositories(vm)
    yield from _masked(vm)
    for index, volume in enumerate(vm.volumes):
        yield from _formatting(volume, f"volumes.{index}")
        if volume.image_type != "raw" and not volume.mount_point and volume.fs_type != "ext4":
            yield _without(f"volumes.{index}.fs_type", "mount_point")


def _value(vm: MicroVM, option: str) -> object:
    return reduce(getattr, option.split("."), vm)


def _without(where: str, needed: str) -> Problem:
    message = f"it has no effect without {needed}"
    return Problem(where=where, message=message, hint="say that too, or leave it out")


def _repositories(vm: MicroVM) -> Iterator[Problem]:
    for index, repository in enumerate(vm.system.repositories):
        where = f"system.repositories.{index}"
        if repository.key is not None and repository.trusted:
            yield _without(f"{where}.key", "trusted = false")
        flat = (repository.suite or "").endswith("/")
        if flat and repository.components != ("main",):
            message = "it has no effect: a suite that ends with `/` has no components"
            yield Problem(where=f"{where}.components", message=message, hint="leave it out")


def _masked(vm: MicroVM) -> Iterator[Problem]:
    for name, unit in vm.system.units.items():
        for key in ("text", "dropin", "enable"):
            if unit.mask and getattr(unit, key) not in (None, False):
                where = f"system.units.{name!r}.{key}"
                message = "it has no effect on a unit that is masked"
                yield Problem(where=where, message=message, hint="leave one of the two out")


def _formatting(volume: Volume, key: str) -> Iterator[Problem]:
    """A file system that is not made here gets no label and no arguments."""
    device = names_device(volume.image)
    if volume.auto_create and not device:
        return
    why = "a device is not formatted here" if device else "auto_create is off"
    for name in ("label", "mkfs_extra_args"):
        if getattr(volume, name):
            hint = "say it when you make the file system, and leave it out here"
            yield Problem(where=f"{key}.{name}", message=f"it has no effect: {why}", hint=hint)
