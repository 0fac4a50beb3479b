"""A kernel of the user's own: a directory with `vmlinuz` and `lib/modules/RELEASE`."""

import hashlib
import tarfile
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.host import process
from microvm.host.files import explain

_LINKS = ("build", "source")
"""Links that point to where a kernel was compiled."""


def archive(directory: Path, target: Path) -> str:
    """Write vmlinuz and the modules as a tar archive shaped by their content alone.

    Returns its SHA-256. Raises `MicroVMError` when the directory is no kernel, `HostError`.
    """
    if not (directory / "vmlinuz").is_file() or not (directory / "lib/modules").is_dir():
        raise MicroVMError(
            f"system.kernel: {directory} is no kernel",
            hint="it needs vmlinuz and lib/modules/RELEASE, as `make modules_install` makes them",
        )

    def neutral(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name.rpartition("/")[2] in _LINKS and member.issym():
            return None
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    try:
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.add((directory / "vmlinuz").resolve(), arcname="boot/vmlinuz-given", filter=neutral)
            tar.add((directory / "lib/modules").resolve(), arcname="lib/modules", filter=neutral)
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise explain(error, f"read the kernel {directory}") from error


def extract(archived: Path, target: Path) -> None:
    """Unpack what `archive` wrote; runs in the namespace."""
    argv = ["tar", "-x", "-C", str(target), "-f", str(archived)]
    process.run(argv, timeout_s=300, doing="unpack the kernel")
