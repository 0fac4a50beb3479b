"""Locks on disk images: ours, which a VMM inherits, and those that VMMs of others have."""

import errno
import fcntl
import os
import stat
import struct
from contextlib import ExitStack
from pathlib import Path

from microvm.errors import StateError
from microvm.host import files, holders

_QEMU_BYTES = 100
_QEMU_WRITES = 101


def lock(path: Path, *, read_only: bool) -> int:
    """Lock an image for as long as any process has the descriptor (flock(2)); return that.

    Readers share it. Raises `StateError` when another VMM has it, `HostError`.
    """
    # NFS takes an exclusive lock only from who may write.
    access, kind = (os.O_RDONLY, fcntl.LOCK_SH) if read_only else (os.O_RDWR, fcntl.LOCK_EX)
    with ExitStack() as stack:
        try:
            if not read_only and stat.S_ISBLK(path.stat().st_mode):
                # Nobody else's, by whatever node, and not mounted here (open(2)).
                access |= os.O_EXCL
            descriptor = os.open(path, access | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            _refuse_others(descriptor, read_only=read_only)
        except BlockingIOError as error:
            raise StateError(
                f"the volume {path} is in use by another VMM{holders.of(path)}",
                hint="stop that one first, or name another image",
            ) from error
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise StateError(
                    f"the volume {path} is in use: mounted, a part of something, or another VMM's",
                    hint="`lsblk` shows what by; release it first, or name another device",
                ) from error
            raise files.explain(error, f"open and lock the volume {path}") from error
        stack.pop_all()
    os.set_inheritable(descriptor, True)
    return descriptor


def _refuse_others(descriptor: int, *, read_only: bool) -> None:
    """Raise `BlockingIOError` for an image that a VMM of somebody else has.

    QEMU locks a byte for each permission that it takes, by open file description locks
    (block/file-posix.c: RAW_LOCK_PERM_BASE; include/block/block-common.h: BLK_PERM_*);
    cloud-hypervisor locks all bytes, and for reading only where it does nothing else.
    """
    start, length = (_QEMU_WRITES, 1) if read_only else (_QEMU_BYTES, 200)
    asked = struct.pack(holders.FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(descriptor, holders.F_OFD_GETLK, asked)
    kind, _, first, _, _ = struct.unpack(holders.FLOCK, answer)
    reader = kind == fcntl.F_RDLCK and first < _QEMU_BYTES
    if kind != fcntl.F_UNLCK and not (read_only and reader):
        raise BlockingIOError
