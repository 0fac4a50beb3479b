"""System calls that Python 3.11 does not offer, through libc."""

import ctypes
import os
import platform
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

# Numbers that are the same on every architecture (include/uapi/asm-generic/unistd.h, Linux 5.12).
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_LANDLOCK_CREATE_RULESET = 444
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1
_LANDLOCK_CREATE_RULESET_VERSION = 1

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SIGKILL = 9

CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names (unshare(2)). Raises `OSError`."""
    _check(_libc.unshare(flags))


def mount(
    source: str | Path | None,
    target: str | Path,
    kind: str | None = None,
    flags: int = 0,
    options: str = "",
) -> None:
    """Mount (mount(2)). Raises `OSError`."""
    _check(
        _libc.mount(
            None if source is None else os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            os.fsencode(options) if options else None,
        ),
        str(target),
    )


def unmount(target: str | Path) -> None:
    """Take a mount away, also when it is in use (umount2(2) with MNT_DETACH). Raises `OSError`."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), str(target))


def clone_tree(path: Path) -> int:
    """Return a descriptor of a detached copy of the mount tree at `path` (open_tree(2))."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    return _check(
        _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)),
        str(path),
    )


def attach_tree(tree: int, target: Path, *, read_only: bool) -> None:
    """Mount a tree from `clone_tree` at `target` (move_mount(2), mount_setattr(2))."""
    if read_only:
        _set_read_only(tree, "", _AT_EMPTY_PATH)
    _check(
        _libc.syscall(
            _SYS_MOVE_MOUNT,
            tree,
            b"",
            _AT_FDCWD,
            os.fsencode(target),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        str(target),
    )
    os.close(tree)


def freeze(path: str) -> None:
    """Make all mounts at and below a path read-only in this mount namespace."""
    _set_read_only(_AT_FDCWD, path, 0)


def _set_read_only(directory: int, path: str, flags: int) -> None:
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    _check(
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            directory,
            path.encode(),
            ctypes.c_uint(flags | _AT_RECURSIVE),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        path,
    )


def leave_keyring() -> None:
    """Take an empty session keyring instead of the one of who called us (keyctl(2)).

    A kernel without keyrings has none to leave.
    """
    if number := _SYS_KEYCTL.get(platform.machine()):
        _libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)


def die_with_parent(number: int = _SIGKILL) -> None:
    """Let the kernel send a signal to this process when its parent ends (prctl(2)).

    An exec keeps it, a change of uid forgets it.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def set_dumpable(dumpable: bool = True) -> None:
    """Own `/proc/self` after a change of uid, or close it to others (prctl(2), PR_SET_DUMPABLE).

    A process that isn't dumpable gives its `/proc/PID/root` to no one in a user namespace.
    """
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


def keep_capability(number: int) -> None:
    """Let the next exec keep one capability, and lose all others (capabilities(7), ambient set)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    _check(_libc.capget(header, sets))
    sets[2 + 3 * (number // 32)] |= 1 << number % 32
    _check(_libc.capset(header, sets))
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0))


def confine(root: Path) -> None:
    """Make the mount `root` all that this process sees (pivot_root(2)); chroot(2) can be left."""
    unshare(CLONE_NEWNS)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), str(root))
    unmount(".")
    os.chdir("/")


def sync_filesystem(descriptor: int) -> None:
    """Make all that was written to the descriptor's file system durable (syncfs(2))."""
    _check(_libc.syncfs(descriptor))


def landlock_abi() -> int:
    """Return which landlock(7) the kernel has: its ABI's number, 0 for none."""
    flags = ctypes.c_uint(_LANDLOCK_CREATE_RULESET_VERSION)
    number: int = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), flags)
    return max(number, 0)
