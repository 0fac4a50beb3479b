"""A layer's tree after it was built: overlay marks, what never enters, mtimes.

Runs inside the namespace, as the owner of the tree.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from microvm.errors import MicroVMError

OPAQUE = "user.overlay.opaque"

DROPPED = (
    "var/lib/apt/lists", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/log",
    "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock",
    "var/lib/dpkg/status-old", "var/lib/dpkg/available-old", "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old", "var/cache/debconf/config.dat-old", "var/lib/systemd/random-seed",
    "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/.pwd.lock",
    "etc/ssh/ssh_host_*", "root/.bash_history", "tmp", "var/tmp", "run", "dev", "proc", "sys",
)  # fmt: skip
"""Lists, logs, caches, locks and secrets: what a build leaves that a guest must not inherit."""


def finish(tree: Path, lowers: list[Path], date: int) -> None:
    """Make the upper directory of an overlay mount a layer that any overlay can use.

    Raises `MicroVMError` for a device node.
    """
    _drop(tree)
    for directory in _opaque(tree):
        _close(directory, tree, lowers)
    for path in _walk(tree):
        info = path.lstat()
        if stat.S_ISBLK(info.st_mode) or (stat.S_ISCHR(info.st_mode) and info.st_rdev != 0):
            raise MicroVMError(f"a layer can't hold the device node /{path.relative_to(tree)}")
        if info.st_mtime > date:
            os.utime(path, (date, date), follow_symlinks=False)
    os.utime(tree, (date, date))


def _drop(tree: Path) -> None:
    for pattern in DROPPED:
        for path in tree.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                # The directory itself belongs to packages; what is in it does not.
                _empty(path)
            else:
                path.unlink()
    for directory in tree.rglob("__pycache__"):
        shutil.rmtree(directory)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _empty(entry)
        elif not stat.S_ISCHR(entry.lstat().st_mode):  # a whiteout stays
            entry.unlink()


def _walk(tree: Path) -> Iterator[Path]:
    """Yield all paths, children before the directory that holds them."""
    for directory, directories, names in os.walk(tree, topdown=False):
        for name in (*names, *directories):
            yield Path(directory, name)


def _opaque(tree: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(tree):
        marks = os.listxattr(directory, follow_symlinks=False)
        for mark in marks:
            if mark.startswith("user.overlay."):
                value = os.getxattr(directory, mark)
                os.removexattr(directory, mark)
                if mark == OPAQUE and value == b"y":
                    yield Path(directory)


def _close(directory: Path, tree: Path, lowers: list[Path]) -> None:
    """Hide what lower layers have in a directory by whiteouts of its entries."""
    relative = directory.relative_to(tree)
    present = {entry.name for entry in directory.iterdir()}
    for lower in lowers:
        below = lower / relative
        if not below.is_dir() or below.is_symlink():
            continue
        for entry in below.iterdir():
            if entry.name not in present:
                os.mknod(directory / entry.name, stat.S_IFCHR | 0o000, os.makedev(0, 0))
                present.add(entry.name)
