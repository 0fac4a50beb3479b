"""A layer's tree after it was built: overlay marks, what never enters, times.

Runs inside the namespace, as the owner of the tree.
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from microvm.errors import MicroVMError

OPAQUE = "user.overlay.opaque"
_MARKS = "user.overlay."

DROPPED = (
    "var/lib/apt/lists", "var/lib/apt/extended_states", "var/cache/apt", "var/cache/ldconfig",
    "var/cache/man", "var/cache/fontconfig", "var/cache/debconf/*-old", "var/log",
    "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock",
    "var/lib/dpkg/*-old", "var/lib/systemd/random-seed", "var/lib/systemd/catalog/database",
    "var/lib/dbus/machine-id", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-",
    "etc/subuid-", "etc/subgid-", "etc/.pwd.lock", "etc/ssh/ssh_host_*", "root/.bash_history",
    "root/.cache", "tmp", "var/tmp", "run", "dev", "proc", "sys",
)  # fmt: skip
"""Lists, logs, caches, locks and secrets: what a build leaves that a guest must not inherit.

debconf's database stays: it is what later layers' packages were answered.
"""


def finish(tree: Path, lowers: list[Path], date: int, keep: Collection[str] = ()) -> None:
    """Make the upper directory of an overlay mount a layer that any overlay can use.

    `keep` are guest paths that were declared and so are never dropped. Raises `MicroVMError` for
    a device node.
    """
    _drop(tree, {path.strip("/") for path in keep})
    for directory in [*_opaque(tree)]:
        _close(directory, tree, lowers)
    for path in _walk(tree):
        info = path.lstat()
        if stat.S_ISBLK(info.st_mode) or (stat.S_ISCHR(info.st_mode) and info.st_rdev != 0):
            raise MicroVMError(f"a layer can't hold the device node /{path.relative_to(tree)}")
        # A directory's time says when its entries were written, in whatever order that happened.
        if info.st_mtime > date or stat.S_ISDIR(info.st_mode):
            os.utime(path, (date, date), follow_symlinks=False)
    os.utime(tree, (date, date))


def _drop(tree: Path, keep: Collection[str]) -> None:
    for pattern in DROPPED:
        for path in tree.glob(pattern):
            if not _is_real(tree, path.parent.relative_to(tree)):
                continue  # it leads elsewhere, perhaps out of the tree
            if path.is_dir() and not path.is_symlink():
                # The directory itself belongs to packages; what is in it does not.
                _empty(path, tree, keep)
            else:
                _remove(path, tree, keep)
    # Python checks a compiled file by its source's time, which an image changes.
    for directory, names, _ in os.walk(tree):
        if "__pycache__" in names and not _kept(Path(directory), tree, keep):
            names.remove("__pycache__")
            shutil.rmtree(Path(directory, "__pycache__"))
    identity = tree / "etc/machine-id"
    if _is_real(tree, Path("etc")) and identity.is_file() and not identity.is_symlink():
        # Empty rather than absent: systemd then takes the machine's own without a first boot.
        identity.write_bytes(b"")
        identity.chmod(0o444)


def _kept(path: Path, tree: Path, keep: Collection[str]) -> bool:
    """Whether the path is declared, lies in something declared, or leads to it."""
    text = str(path.relative_to(tree))
    return any(
        text == name or text.startswith(f"{name}/") or name.startswith(f"{text}/") for name in keep
    )


def _remove(path: Path, tree: Path, keep: Collection[str]) -> None:
    # A whiteout stays: what it hides lies in a layer below.
    if not stat.S_ISCHR(path.lstat().st_mode) and not _kept(path, tree, keep):
        path.unlink()


def _empty(directory: Path, tree: Path, keep: Collection[str]) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _empty(entry, tree, keep)
        else:
            _remove(entry, tree, keep)


def _walk(tree: Path) -> Iterator[Path]:
    """Yield all paths, children before the directory that holds them."""
    for directory, directories, names in os.walk(tree, topdown=False):
        for name in (*names, *directories):
            yield Path(directory, name)


def _opaque(tree: Path) -> Iterator[Path]:
    """Take overlayfs's marks off and yield the directories that were marked opaque."""
    for path in (tree, *_walk(tree)):
        if path.is_symlink():
            continue  # can't have user.* attributes, xattr(7)
        for mark in os.listxattr(path, follow_symlinks=False):
            if mark.startswith(_MARKS):
                value = os.getxattr(path, mark, follow_symlinks=False)
                os.removexattr(path, mark, follow_symlinks=False)
                if mark == OPAQUE and value == b"y":
                    yield path


def _close(directory: Path, tree: Path, lowers: list[Path]) -> None:
    """Hide what lower layers have in a directory, and in those below it, by whiteouts.

    The kernel doesn't mark the directories made in an opaque one: its mark hid all below.
    """
    for current, _, _ in os.walk(directory):
        relative = Path(current).relative_to(tree)
        present = {entry.name for entry in Path(current).iterdir()}
        for name in sorted(_below(relative, lowers) - present):
            os.mknod(Path(current, name), stat.S_IFCHR | 0o000, os.makedev(0, 0))


def _below(relative: Path, lowers: list[Path]) -> set[str]:
    """Return the names that the merged lower layers (bottom first) have in a directory."""
    names: set[str] = set()
    for lower in lowers:
        path = lower / relative
        if not _is_real(lower, relative):
            if path.is_symlink() or path.exists():
                names = set()  # a file, link or whiteout here ends the directory below it
            continue
        for entry in path.iterdir():
            if stat.S_ISCHR(entry.lstat().st_mode):
                names.discard(entry.name)
            else:
                names.add(entry.name)
    return names


def _is_real(lower: Path, relative: Path) -> bool:
    """Whether a layer has a directory at the path that is reached through directories only."""
    path = lower
    for part in relative.parts:
        path = path / part
        if path.is_symlink() or not path.is_dir():
            return False
    return True
