"""Disk images: made whole or not at all, checked against what is declared, locked."""

import fcntl
import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from microvm.errors import StateError
from microvm.host import files, process, superblock
from microvm.model.plan import LaunchPlan, VolumePlan

MIB = 1 << 20
MKFS_TIMEOUT_S = 600
ROOT_LAYERS = ".layers"
"""Suffix of the file beside a root volume that names the layers it was made on."""

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

    Touches nothing. Raises `HostError` for an image that can't be read.
    """
    found = {}
    for volume in volumes:
        path = state_dir / volume.image
        if not path.exists():
            continue
        try:
            block = superblock.read(path)
        except OSError as error:
            raise files.explain(error, f"read the volume {volume.image}") from error
        if block is None or block.uuid != volume.uuid:
            found[volume.index] = block.fs_type if block else ""
    return found


def prepare(plan: LaunchPlan, state_dir: Path, *, reset_root: bool) -> list[int]:
    """Make missing volumes, check those that are there, and lock all.

    Returns descriptors that hold the locks; the VMM inherits them. Raises `HostError`,
    `StateError` when a volume is not what was declared or another VMM has it.
    """
    held: list[int] = []
    for volume in plan.volumes:
        path = state_dir / volume.image
        if volume.root and reset_root and path.exists():
            os.close(_lock(path, volume))  # refused while another VMM has it
            path.unlink()
            _layers_file(path).unlink(missing_ok=True)
        if not path.exists():
            _create(volume, path)
        _check(volume, path)
        if volume.root:
            _pin(path, plan.layers)
        held.append(_lock(path, volume))
    return held


def _create(volume: VolumePlan, path: Path) -> None:
    if not volume.create:
        raise StateError(
            f"the volume {path} is not there, and auto_create is off",
            hint="make it, or set auto_create",
        )
    if volume.size_mib is None:
        raise StateError(f"the volume {path} is not there, and has no size to create it with")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            draft.chmod(0o600)
            _no_copy_on_write(file.fileno())
            file.truncate(volume.size_mib * MIB)
        _format(volume, draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        # A link, not a rename: what another process made meanwhile is not written over.
        path.hardlink_to(draft)
        files.sync_directory(path.parent)
    except OSError as error:
        raise files.explain(error, f"create the volume {path}") from error
    finally:
        draft.unlink(missing_ok=True)


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


def _check(volume: VolumePlan, path: Path) -> None:
    """Raise `StateError` when an image is not what was declared. Never changes it."""
    try:
        block = superblock.read(path)
        info = path.stat()
        blank = block is None and superblock.is_blank(path)
    except OSError as error:
        raise files.explain(error, f"read the volume {path}") from error
    if blank:
        raise StateError(
            f"the volume {path} exists but holds no file system",
            hint=f"format it (mkfs.{volume.fs_type}), or remove it to have it made again",
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
    elif json.loads(record.read_text()) != list(layers):
        raise StateError(
            f"the root volume {path} was made on other layers than this build has",
            hint="start it anew with --reset-root (its contents are lost), or build what it was "
            "made on; keep data on volumes of their own",
        )


def _lock(path: Path, volume: VolumePlan) -> int:
    """Lock an image for as long as any process has the descriptor (flock(2))."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise files.explain(error, f"open the volume {path}") from error
    try:
        fcntl.flock(
            descriptor, (fcntl.LOCK_SH if volume.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB
        )
    except BlockingIOError as error:
        os.close(descriptor)
        raise StateError(
            f"the volume {path} is in use by another VMM{_holder(path)}",
            hint="stop that one first, or name another image",
        ) from error
    os.set_inheritable(descriptor, True)
    return descriptor


def _holder(path: Path) -> str:
    """Return who holds the lock, as far as /proc/locks tells."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[5].endswith(f":{inode}"):
            return f" (process {fields[4]})"
    return ""
