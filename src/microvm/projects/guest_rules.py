"""Rules of what is inside the guest: mounts, files, units, accounts, packages, kernel."""

import difflib
import stat
from collections.abc import Iterator
from pathlib import Path

from microvm.errors import Problem
from microvm.guests.debian.sources import DEBIAN, UBUNTU
from microvm.host.files import obstacle
from microvm.model.declaration import MicroVM

_MOUNTED = ("dev", "proc", "run", "sys")
"""Directories that the initrd mounts over whatever is there."""
_NEEDED = frozenset(
    (
        "/bin", "/etc", "/etc/microvm", "/etc/systemd", "/lib", "/lib64", "/sbin", "/usr",
        "/usr/bin", "/usr/lib", "/usr/lib/microvm", "/usr/lib/systemd", "/usr/sbin",
    )
)  # fmt: skip
"""Directories whose contents a guest starts from."""
_LAST_ID = 65535


def mount_points(vm: MicroVM) -> list[tuple[str, str]]:
    """Return the mount points with their key paths."""
    points = [
        (f"volumes.{i}.mount_point", volume.mount_point)
        for i, volume in enumerate(vm.volumes)
        if volume.mount_point
    ]
    return points + [(f"shares.{i}.mount_point", s.mount_point) for i, s in enumerate(vm.shares)]


def mounts(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield mounts that would hide what a guest needs, or be hidden, or lose data."""
    for where, point in mount_points(vm):
        message = None
        if point.split("/")[1] in _MOUNTED:
            message = f"{point} is hidden by a file system of the guest's own"
        elif point in _NEEDED:
            message = f"it hides {point}, which a guest starts from"
        elif point.startswith("/tmp/") and ("/" in (v.mount_point for v in vm.volumes)):  # noqa: S108
            message = "with a volume as the root, a file system of its own hides what is in /tmp"
        elif point == "/tmp" and where.startswith("shares"):  # noqa: S108
            message = "a guest empties /tmp when it starts, and so the host's directory"
        elif point == "/" and where.startswith("shares"):
            message = "a share can't be the root"
        if message:
            yield Problem(where=where, message=message, hint="choose another mount point")


def files(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield files whose source or owner can't be."""
    for path, file in vm.system.files.items():
        key = f"system.files.{path!r}"
        if (file.text is None) == (file.source is None):
            yield Problem(where=key, message="it needs one of text and source, not both")
        elif file.source is not None and (why := obstacle(directory / file.source)):
            yield Problem(where=f"{key}.source", message=why)
        for part in file.owner.split(":"):
            if part.isdigit() and int(part) > _LAST_ID:
                yield Problem(where=f"{key}.owner", message=f"ids of a guest end at {_LAST_ID}")


def places(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield files at places where there can be none, or where a running guest has another."""
    points = {point: where for where, point in mount_points(vm) if point != "/"}
    for path in vm.system.files:
        key, top = f"system.files.{path!r}", path.split("/")[1]
        if top in (*_MOUNTED, "tmp"):
            message = f"/{top} of a running guest is a file system of its own, which hides the file"
            hint = "place it elsewhere, and let a tmpfiles.d(5) entry or a unit bring it there"
            yield Problem(where=key, message=message, hint=hint)
        above = [path[:end] for end in _slashes(path)]
        for covering in points.keys() & {path, *above}:
            message = f"what is mounted at {covering} hides it ({points[covering]})"
            yield Problem(where=key, message=message, hint="put it there in the running guest")
        for parent in above:
            if parent in vm.system.files and vm.system.files[parent].text is not None:
                yield Problem(where=key, message=f"{parent} is a file, not a directory")


def _slashes(path: str) -> list[int]:
    return [index for index, character in enumerate(path) if character == "/" and index]


def packages(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield releases that are not known, packages and keys that are not there."""
    release = vm.system.release
    if release not in (known := (*DEBIAN, *UBUNTU)):
        near = difflib.get_close_matches(release, known, n=1)
        yield Problem(
            where="system.release",
            message=f"{release!r} is no known release",
            hint=f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}",
        )
    for index, package in enumerate(vm.system.packages):
        if package.endswith(".deb") and (why := obstacle(directory / package, stat.S_ISREG)):
            yield Problem(where=f"system.packages.{index}", message=why)
    keys: dict[str, str] = {}
    for index, repository in enumerate(vm.system.repositories):
        where = f"system.repositories.{index}.key"
        if not repository.key:
            continue
        path = str(directory / repository.key)
        if why := obstacle(Path(path), stat.S_ISREG):
            yield Problem(where=where, message=why)
        # apt takes a value of Signed-By for a list (apt-pkg/deb/debmetaindex.cc).
        if "," in path or path.split() != [path]:
            message = f"apt can't read a key from a path with spaces or commas: {path}"
            yield Problem(where=where, message=message)
        if keys.setdefault(Path(path).name, path) != path:
            message = f"the guest keeps keys by their file's name, and {keys[Path(path).name]}"
            yield Problem(where=where, message=f"{message} has the same", hint="rename one")


def accounts(vm: MicroVM, directory: Path) -> Iterator[Problem]:
    """Yield users that can't be, and a kernel that is none."""
    login = vm.system.autologin
    if login and login != "root" and login not in vm.system.users:
        yield Problem(where="system.autologin", message=f"there is no user {login}")
    if "root" in vm.system.users and vm.system.users["root"].uid not in (None, 0):
        yield Problem(where="system.users.root.uid", message="the uid of root is 0")
    kernel = vm.system.kernel
    if kernel in (None, "cloud", "generic"):
        return
    place = directory / str(kernel)
    if why := obstacle(place, stat.S_ISDIR):
        message = f"{kernel!r} is neither cloud nor generic nor a directory: {why}"
        yield Problem(where="system.kernel", message=message)
        return
    for path, kind in ((place / "vmlinuz", stat.S_ISREG), (place / "lib/modules", stat.S_ISDIR)):
        if why := obstacle(path, kind):
            message = f"it holds vmlinuz and lib/modules/RELEASE: {why}"
            yield Problem(where="system.kernel", message=message)
