"""Disk images: made whole or not at all, checked against what is declared, locked."""

import fcntl
import json
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from microvm.errors import CommandFailed, HostError, StateError
from microvm.host import files, process, superblock
from microvm.host.superblock import Superblock
from microvm.model.devices import names_device
from microvm.model.plan import LaunchPlan, VolumePlan

MIB = 1 << 20
MKFS_TIMEOUT_S = 600
ROOT_LAYERS = ".layers"
"""Suffix of the file beside a root volume that names the layers it was made on."""

_F_OFD_GETLK = 36  # linux/fcntl.h
_QEMU_BYTES = 100
_QEMU_WRITES = 101

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


def prepare(plan: LaunchPlan, state_dir: Path, *, reset_root: bool) -> list[int]:
    """Make missing volumes, lock all, and check those that are there.

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
            held.append(_lock(path, volume))
            stack.callback(os.close, held[-1])
            _check(volume, path)
            if volume.root:
                _pin(path, plan.layers)
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
    descriptor = _lock(path, volume)
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
    if found != volume.image_type:
        raise StateError(
            f"the volume {path} is {found}, declared is {volume.image_type}",
            hint="correct image_type (`qemu-img info` tells it), or name another image",
        )


def _check(volume: VolumePlan, path: Path) -> None:
    """Raise `StateError` when an image is not what was declared. Never changes it."""
    if volume.image_type != "raw":
        _check_type(volume, path)
        return
    block = _read(path)
    try:
        info = path.stat()
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
    if stat.S_ISREG(info.st_mode) and volume.size_mib and info.st_size < volume.size_mib * MIB:
        raise StateError(
            f"the volume {path} has {info.st_size // MIB} MiB, declared are {volume.size_mib}",
            hint="declare its size as it is, or name another image; it is left as it is",
        )


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


def _lock(path: Path, volume: VolumePlan) -> int:
    """Lock an image for as long as any process has the descriptor (flock(2))."""
    # NFS takes an exclusive lock only from who may write.
    access, kind = (os.O_RDONLY, fcntl.LOCK_SH) if volume.read_only else (os.O_RDWR, fcntl.LOCK_EX)
    with ExitStack() as stack:
        try:
            descriptor = os.open(path, access | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            _refuse_qemus(descriptor, read_only=volume.read_only)
        except BlockingIOError as error:
            raise StateError(
                f"the volume {path} is in use by another VMM{_holder(path)}",
                hint="stop that one first, or name another image",
            ) from error
        except OSError as error:
            raise files.explain(error, f"open and lock the volume {path}") from error
        stack.pop_all()
    os.set_inheritable(descriptor, True)
    return descriptor


def _refuse_qemus(descriptor: int, *, read_only: bool) -> None:
    """Raise `BlockingIOError` for an image that a QEMU of somebody else has.

    QEMU locks a byte for each permission that it takes, by open file description locks
    (block/file-posix.c: RAW_LOCK_PERM_BASE; include/block/block-common.h: BLK_PERM_*).
    """
    start, length = (_QEMU_WRITES, 1) if read_only else (_QEMU_BYTES, 200)
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(descriptor, _F_OFD_GETLK, asked)
    if struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK:
        raise BlockingIOError


def _holder(path: Path) -> str:
    """Return who holds the lock, as far as /proc/locks tells."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        others = len(fields) > 5 and fields[4].isdigit() and int(fields[4]) != os.getpid()
        if others and fields[5].endswith(f":{inode}"):
            return f" (process {fields[4]})"
    return ""
