"""A guest's root under construction: an overlay of its layers with just enough around it.

Runs inside the namespace.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from microvm.errors import HostError
from microvm.host import linux, process

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "SYSTEMD_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

_TRIAL = "user.overlay.microvm"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


@contextmanager
def overlay(lowers: Sequence[Path], upper: Path, work: Path, target: Path) -> Iterator[Path]:
    """Mount the layers (bottom first) with `upper` on top; nothing in it is synced to disk.

    `userxattr`: without it no directory can be removed in a user namespace. `volatile` (5.10):
    the store syncs once, when the layer is complete. Raises `HostError`.
    """
    for directory in (upper, work, target):
        directory.mkdir(exist_ok=True)
    upper.chmod(0o755)
    stack = ":".join(str(path) for path in reversed(lowers))
    options = f"lowerdir={stack},upperdir={upper},workdir={work},userxattr,volatile"
    # Newer kernels mount without attributes, and then no directory can be removed.
    require_attributes(upper)
    try:
        linux.mount("overlay", target, "overlay", 0, options)
    except OSError as error:
        raise _unfit(error) from error
    try:
        yield target
    finally:
        linux.unmount(target)
        shutil.rmtree(work)


def require_attributes(directory: Path) -> None:
    """Raise `HostError` where the file system of a layer keeps no `user.*` attributes."""
    try:
        os.setxattr(directory, _TRIAL, b"")
        os.removexattr(directory, _TRIAL)
    except OSError as error:
        raise _unfit(error) from error


def _unfit(error: OSError) -> HostError:
    return HostError(
        f"could not build on the store's file system: {error.strerror}",
        hint="the store must lie on a file system with user.* attributes, such as ext4, xfs or "
        "btrfs (a tmpfs from Linux 6.6 on), and --store names another place; Linux must be 5.11 "
        "or newer",
    )


@contextmanager
def furnished(root: Path) -> Iterator[None]:
    """Mount /proc, /dev, /tmp and /run into the root while commands run in it.

    What they leave running is killed: this process is the namespace's first.
    """
    mounted: list[Path] = []

    def mount(name: str, kind: str, flags: int, options: str = "") -> None:
        target = root / name
        target.mkdir(exist_ok=True)
        linux.mount(kind, target, kind, flags, options)
        mounted.append(target)

    quiet = linux.MS_NOSUID | linux.MS_NOEXEC | linux.MS_NODEV
    try:
        try:
            mount("proc", "proc", quiet)
        except PermissionError:
            # A container that hides parts of /proc allows no fresh one; its own serves as well.
            linux.mount("/proc", root / "proc", None, linux.MS_BIND | linux.MS_REC)
            mounted.append(root / "proc")
        mount("dev", "tmpfs", linux.MS_NOSUID, "mode=0755")
        _devices(root / "dev")
        for name in ("tmp", "run"):
            mount(name, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")
        (root / "run/lock").mkdir(exist_ok=True)
        # This process still sees the host's files; its /proc/1/root must not lead there.
        linux.set_dumpable(False)
        yield
    finally:
        _kill_others()
        linux.set_dumpable()
        for target in reversed(mounted):
            linux.unmount(target)


def _kill_others() -> None:
    """Kill and reap every other process of our process namespace."""
    if os.getpid() != 1:
        return
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


@contextmanager
def resolving(root: Path) -> Iterator[None]:
    """Give the root the host's resolv.conf while commands with a network run in it."""
    target = root / "etc/resolv.conf"
    before = target.readlink() if target.is_symlink() else None
    content = target.read_bytes() if before is None and target.exists() else None
    target.unlink(missing_ok=True)
    shutil.copyfile("/etc/resolv.conf", target)
    try:
        yield
    finally:
        target.unlink(missing_ok=True)
        if before is not None:
            target.symlink_to(before)
        elif content is not None:
            target.write_bytes(content)


def _devices(directory: Path) -> None:
    for name in _DEVICES:
        (directory / name).touch()
        linux.mount(f"/dev/{name}", directory / name, None, linux.MS_BIND)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (directory / name).symlink_to(f"/proc/self/{target}")
    (directory / "shm").mkdir(mode=0o1777)


def run(root: Path, argv: Sequence[str], *, date: int, doing: str, timeout_s: float = 3600) -> None:
    """Run a program of the guest in its root. Raises `CommandFailed` with its last words.

    `date` (Unix time) is what account tools write down as the day of a change.
    """
    env = {**ENVIRONMENT, "SOURCE_DATE_EPOCH": str(date)}
    process.run_in_root(root, argv, env=env, timeout_s=timeout_s, doing=doing)
