"""Disk images: made whole or not at all, checked against what is declared, grown, locked."""

import fcntl
import json
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from microvm.errors import CommandFailed, HostError, StateError
from microvm.host import files, image_locks, process, superblock
from microvm.host.superblock import Superblock
from microvm.model.devices import names_device
from microvm.model.plan import LaunchPlan, VolumePlan

MIB = 1 << 20
MKFS_TIMEOUT_S = 600
ROOT_LAYERS = ".layers"
"""Suffix of the file beside a root volume that names the layers it was made on."""

_GROW_MOUNTED = ("ext2", "ext3", "ext4", "xfs", "btrfs")
"""File systems that a kernel grows while they are mounted."""

_MKFS = {
    "ext2": ("mkfs.ext2", "e2fsprogs", "-L"),
    "ext3": ("mkfs.ext3", "e2fsprogs", "-L"),
    "ext4": ("mkfs.ext4", "e2fsprogs", "-L"),
    "xfs": ("mkfs.xfs", "xfsprogs", "-L"),
    "btrfs": ("mkfs.btrfs", "btrfs-progs", "-L"),
    "vfat": ("mkfs.vfat", "dosfstools", "-n"),
}


def positions(volumes: Sequence[VolumePlan], state_dir: Path) -> dict[int, str]:
    """Return, by index, the volumes whose file system we did not make: found by position.

    Touches nothing. Raises `HostError` for an image that can't be read, `StateError` for one that
    is neither a file nor a block device.
    """
    found = {}
    for volume in volumes:
        path = state_dir / volume.image
        if not _exists(path):
            continue
        block = _read(path)
        if block is None or block.uuid != volume.uuid:
            found[volume.index] = block.fs_type if block else ""
    return found


def outgrown(volumes: Sequence[VolumePlan], state_dir: Path) -> tuple[int, ...]:
    """Return the indexes of volumes that we made with a smaller file system than is declared now.

    Touches nothing. Raises as `positions` does.
    """
    found = []
    for volume in volumes:
        path = state_dir / volume.image
        if volume.size_mib is None or volume.fs_type not in _GROW_MOUNTED or not _exists(path):
            continue
        block = _read(path)
        if block and block.uuid == volume.uuid and block.size < volume.size_mib * MIB:
            found.append(volume.index)
    return tuple(found)


def prepare(
    plan: LaunchPlan,
    state_dir: Path,
    *,
    reset_root: bool,
    say: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """Make missing volumes, lock all, check those that are there, grow those that are too small.

    An image grows here, its file system in the guest (`outgrown`). `say` is told of sizes.
    Returns descriptors that hold the locks; the VMM inherits them. When it raises, it holds none.
    Raises `HostError`, `StateError` when a volume is not what was declared or another VMM has it.
    """
    with ExitStack() as stack:
        held: list[int] = []
        for volume in plan.volumes:
            path = state_dir / volume.image
            if volume.root and reset_root and _exists(path):
                _remove(volume, path)
            if not _exists(path):
                _create(volume, path)
            held.append(image_locks.lock(path, read_only=volume.read_only))
            stack.callback(os.close, held[-1])
            block = _check(volume, path)
            if volume.root:
                _pin(path, plan.layers)
            _fit(volume, path, held[-1], block, say)
        stack.pop_all()
    return held


def _exists(path: Path) -> bool:
    """Return whether an image is there. Raises `StateError` for what can't be one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise files.explain(error, f"read the volume {path}") from error
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return True
    raise StateError(
        f"the volume {path} is neither a file nor a block device",
        hint="name another image; it is left as it is",
    )


def _read(path: Path) -> Superblock | None:
    try:
        return superblock.read(path)
    except OSError as error:
        raise files.explain(error, f"read the volume {path}") from error


def _refuse_to_create(volume: VolumePlan, what: str) -> None:
    """Raise `StateError` for a volume that we are not to make."""
    if names_device(volume.image):
        raise StateError(f"{what}, and a device is not made here", hint="make it, or wait for it")
    if volume.image_type != "raw":
        hint = "make it (`qemu-img convert` makes one of a raw image)"
        raise StateError(f"{what}, and images of type {volume.image_type} aren't made", hint=hint)
    if not volume.create:
        raise StateError(f"{what}, and auto_create is off", hint="make it, or set auto_create")
    if volume.size_mib is None:
        raise StateError(f"{what}, and has no size to create it with", hint="declare its size")


def _remove(volume: VolumePlan, path: Path) -> None:
    """Remove a root volume that is to be made anew, unless another VMM has it."""
    _refuse_to_create(volume, f"the root volume {path} is to start anew")
    descriptor = image_locks.lock(path, read_only=volume.read_only)
    try:
        path.resolve().unlink()
        _layers_file(path).unlink(missing_ok=True)
    except OSError as error:
        raise files.explain(error, f"remove the volume {path}") from error
    finally:
        os.close(descriptor)


def _create(volume: VolumePlan, path: Path) -> None:
    _refuse_to_create(volume, f"the volume {path} is not there")
    try:
        target = path.resolve()  # a symbolic link that leads nowhere yet says where to make it
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.draft(target) as (draft, file):
            _draw_up(volume, draft, file.fileno())
            if volume.root:  # it speaks of an image that is gone
                _layers_file(path).unlink(missing_ok=True)
            # A link, not a rename: what another process made meanwhile is not written over.
            target.hardlink_to(draft)
        files.sync_directory(target.parent)
    except OSError as error:
        raise files.explain(error, f"create the volume {path}") from error


def _draw_up(volume: VolumePlan, draft: Path, descriptor: int) -> None:
    """Give the file the file system, durable. Raises `OSError` and what `_format` does."""
    _no_copy_on_write(descriptor)
    os.ftruncate(descriptor, (volume.size_mib or 0) * MIB)
    try:
        _format(volume, draft)
    except CommandFailed as error:
        room = os.statvfs(draft.parent)
        if room.f_bavail * room.f_frsize >= MIB:  # not every mkfs says so
            raise
        hint = f"there is no room left in {draft.parent}; make some, then try again"
        raise HostError(error.message, hint=hint) from error
    os.fsync(descriptor)
    block = superblock.read(draft)
    if block != Superblock(volume.fs_type, volume.uuid):
        made = f"{block.fs_type} {block.uuid}" if block else "nothing that is known"
        raise StateError(
            f"mkfs made {made} of the volume {volume.image}; the guest looks for "
            f"{volume.fs_type} {volume.uuid}",
            hint="leave file system and UUID out of mkfs_extra_args",
        )


def _format(volume: VolumePlan, draft: Path) -> None:
    name, package, label_option = _MKFS[volume.fs_type]
    program = process.require_program(name, package)
    identity = {
        "xfs": ["-q", "-m", f"uuid={volume.uuid}"],
        "btrfs": ["-q", "-U", volume.uuid],
        "vfat": ["-i", volume.uuid.replace("-", "")],
    }.get(volume.fs_type, ["-q", "-F", "-U", volume.uuid])
    label = [label_option, volume.label] if volume.label else []
    argv = [str(program), *identity, *label, *volume.mkfs_args, str(draft)]
    process.run(argv, timeout_s=MKFS_TIMEOUT_S, doing=f"format the volume {volume.image}")


def _no_copy_on_write(descriptor: int) -> None:
    """Set FS_NOCOW_FL where the file system knows it (ioctl_iflags(2)): btrfs; others refuse."""
    try:
        fcntl.ioctl(descriptor, 0x40086602, (0x00800000).to_bytes(8, "little"))
    except OSError:
        return


def _check_type(volume: VolumePlan, path: Path) -> None:
    """Raise `StateError` for an image of another format; its contents are the guest's business."""
    try:
        found = superblock.image_type(path)
    except OSError as error:
        raise files.explain(error, f"read the volume {path}") from error
    if found != volume.image_type == "raw":
        raise StateError(
            f"the volume {path} begins or ends like a {found} image, and this hypervisor would "
            "open it as one: its guest may have written that to read files of the host",
            hint="run it on qemu, which takes a raw image for what it is; it is left as it is",
        )
    if found != volume.image_type:
        raise StateError(
            f"the volume {path} is {found}, declared is {volume.image_type}",
            hint="correct image_type (`qemu-img info` tells it), or name another image",
        )


def _check(volume: VolumePlan, path: Path) -> Superblock | None:
    """Return what an image holds; raise `StateError` when that is not what was declared."""
    if volume.image_type != "raw":
        _check_type(volume, path)
        return None
    if volume.guessed:
        _check_type(volume, path)
    block = _read(path)
    try:
        blank = block is None and superblock.is_blank(path)
    except OSError as error:
        raise files.explain(error, f"read the volume {path}") from error
    if blank:
        raise StateError(
            f"the volume {path} exists but holds no file system",
            hint=f"format it (mkfs.{volume.fs_type}), or remove it to have it made again",
        )
    # With auto_create off it may be a disk with partitions, which is the guest's business.
    if block is None and (volume.create or volume.root):
        raise StateError(
            f"the volume {path} holds something else than {volume.fs_type}",
            hint="name another image, or set auto_create off to attach it; it is left as it is",
        )
    if block is not None and block.fs_type != volume.fs_type:
        raise StateError(
            f"the volume {path} holds {block.fs_type}, declared is {volume.fs_type}",
            hint="correct fs_type, or name another image; it is left as it is",
        )
    return block


def _fit(
    volume: VolumePlan,
    path: Path,
    descriptor: int,
    block: Superblock | None,
    say: Callable[[str], None],
) -> None:
    """Let an image that is smaller than declared grow, or refuse to; none ever shrinks."""
    if volume.size_mib is None:
        return
    try:
        have, want = os.lseek(descriptor, 0, os.SEEK_END), volume.size_mib * MIB
        file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError as error:
        raise files.explain(error, f"read the volume {path}") from error
    sizes = f"{have // MIB} MiB, declared are {volume.size_mib}"
    if have > want:
        say(f"the volume {path} has {sizes}: it is left as it is, volumes never shrink")
        return
    if have == want:
        return
    own = block is not None and block.uuid == volume.uuid
    if why := _obstacle_to_growth(volume, own=own, file=file):
        raise StateError(
            f"the volume {path} has {sizes}, and {why}",
            hint="declare its size as it is, or make it larger yourself; it is left as it is",
        )
    try:
        os.ftruncate(descriptor, want)
        os.fsync(descriptor)
    except OSError as error:
        raise files.explain(error, f"let the volume {path} grow") from error
    todo = "" if volume.mounted else "; the guest has to grow its file system, nothing mounts it"
    say(f"the volume {path} grows: it had {sizes}{todo}")


def _obstacle_to_growth(volume: VolumePlan, *, own: bool, file: bool) -> str | None:
    """Return why an image can't grow, or None."""
    if not file:
        return "a device does not grow here"
    if not own:
        return "it was not made for this machine: nothing of it is changed"
    if volume.fs_type not in _GROW_MOUNTED:
        return f"{volume.fs_type} can't grow"
    if volume.read_only:
        return "what is read-only can't grow"
    return None


def _layers_file(path: Path) -> Path:
    return path.with_name(path.name + ROOT_LAYERS)


def _pin(path: Path, layers: Sequence[str]) -> None:
    """Record the layers of a root volume, or refuse it on others."""
    record = _layers_file(path)
    if not record.exists():
        files.write_atomic(record, json.dumps(list(layers)) + "\n")
    elif _read_layers(record) != list(layers):
        raise StateError(
            f"the root volume {path} was made on other layers than this build has",
            hint="start it anew with --reset-root (its contents are lost), or build what it was "
            "made on; keep data on volumes of their own",
        )


def _read_layers(record: Path) -> object:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise StateError(
            f"can't tell which layers the root volume was made on: {record}: {error}",
            hint="start it anew with --reset-root (its contents are lost)",
        ) from error
