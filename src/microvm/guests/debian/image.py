"""Disk images of layers: erofs or squashfs, the same bytes for the same tree."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from microvm.errors import MicroVMError
from microvm.host import process
from microvm.model.declaration import MicroVM

TRAILER = 4096
"""Bytes after a squashfs that name the layer; the kernel reads only what the superblock counts."""

_TIMEOUT_S = 1800


def settings(microvm: MicroVM, uuid: str, date: int) -> dict[str, Any]:
    """Return what `pack` needs, as plain data that is also part of the image's name."""
    kind = microvm.store_disk_type
    if kind == "erofs":
        said = microvm.store_disk_erofs_flags
        # lz4: twelve times as fast to write as lz4hc for a fifth more space, and every kernel since
        # 5.4 reads it.
        flags = list(said) if said is not None else ["-zlz4"]
        release = version("mkfs.erofs", "erofs-utils")
    else:
        said = microvm.store_disk_squashfs_flags
        flags = list(said) if said is not None else ["-comp", "zstd", "-Xcompression-level", "3"]
        release = version("mksquashfs", "squashfs-tools", "-version")
    return {
        "kind": kind,
        "flags": flags,
        "uuid": uuid,
        "date": date,
        "version": release,
    }


@cache
def version(program: str, package: str, option: str = "--version") -> str:
    """Return the version of a program whose output shapes a layer. Raises `HostError`."""
    path = process.require_program(program, package)
    done = process.run([path, option], timeout_s=10, check=False, doing=f"ask {program}'s version")
    words = (done.stdout + done.stderr).decode(errors="replace")
    number = re.search(r"\d+(?:\.\d+)*", words)
    return number[0] if number else words[:40]


def pack(tree: Path, target: Path, how: dict[str, Any]) -> None:
    """Write the image of `tree`; runs in the namespace, where owners are the guest's.

    Raises `CommandFailed` with the program's last words.
    """
    if how["kind"] == "erofs":
        _erofs(tree, target, how)
    else:
        _squashfs(tree, target, how)


def _erofs(tree: Path, target: Path, how: dict[str, Any]) -> None:
    program = process.require_program("mkfs.erofs", "erofs-utils")
    argv = [
        program, "-U", how["uuid"], f"-T{how['date']}", "-x1", *how["flags"], target, tree,
    ]  # fmt: skip
    process.run(argv, timeout_s=_TIMEOUT_S, doing="write an erofs image")


def _squashfs(tree: Path, target: Path, how: dict[str, Any]) -> None:
    program = process.require_program("mksquashfs", "squashfs-tools")
    argv = [
        program, tree, target, "-noappend", "-no-progress", "-quiet", "-xattrs",
        "-mkfs-time", str(how["date"]), *how["flags"],
    ]  # fmt: skip
    process.run(argv, timeout_s=_TIMEOUT_S, doing="write a squashfs image")
    if target.stat().st_size % TRAILER:
        raise MicroVMError(f"{target}: mksquashfs did not pad the image to {TRAILER} bytes")
    with target.open("ab") as image:
        image.write(f"microvm-layer {how['uuid']}\n".encode().ljust(TRAILER, b"\0"))
