"""Rules of options that mean something only together with another one."""

from collections.abc import Iterator
from pathlib import Path

from microvm.errors import Problem
from microvm.model.declaration import MicroVM
from microvm.model.devices import Graphics, Volume, names_device
from microvm.model.system import DebianSystem

_IMAGES = "store_on_disk = true"


def lone(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield options that would have no effect as the others are."""
    plain = Graphics()
    asked = (
        ("deflate_on_oom", vm.deflate_on_oom is not None and not vm.balloon, "balloon = true"),
        ("store_proto", vm.store_proto != "virtiofs" and vm.store_on_disk, "store_on_disk = false"),
        ("store_disk_type", vm.store_disk_type != "erofs" and not vm.store_on_disk, _IMAGES),
        *(
            (f"graphics.{key}", getattr(vm.graphics, key) != getattr(plain, key), "graphics.enable")
            for key in ("backend", "socket", "vulkan", "hostmem")
            if not vm.graphics.enable
        ),
        *_flags(vm),
        *_packages(vm.system),
    )
    for where, alone, needed in asked:
        if alone:
            message = f"it has no effect without {needed}"
            yield Problem(where=where, message=message, hint="say that too, or leave it out")
    for index, volume in enumerate(vm.volumes):
        yield from _formatting(volume, f"volumes.{index}")


def _flags(vm: MicroVM) -> Iterator[tuple[str, bool, str]]:
    for kind, flags in (
        ("erofs", vm.store_disk_erofs_flags),
        ("squashfs", vm.store_disk_squashfs_flags),
    ):
        where = f"store_disk_{kind}_flags"
        if flags is not None and not vm.store_on_disk:
            yield where, True, _IMAGES
        elif flags is not None:
            yield where, vm.store_disk_type != kind, f'store_disk_type = "{kind}"'


def _packages(system: DebianSystem) -> Iterator[tuple[str, bool, str]]:
    where, said = "system.security_mirror", system.security_mirror is not None
    yield where, said and not system.updates, "system.updates = true"
    yield where, said and system.release == "sid", "a release that has a security suite"
    for index, repository in enumerate(system.repositories):
        where, said = f"system.repositories.{index}.key", repository.key is not None
        yield where, said and repository.trusted, "trusted = false"


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
