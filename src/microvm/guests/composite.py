"""One disk with a partition for each layer, for hypervisors that take few disks."""

import os
import uuid
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.host import process
from microvm.model.guest import GuestSystem
from microvm.store import Store, item_name
from microvm.store.collect import write_checksums

_ALIGNMENT = 1 << 20
_SECTOR = 512
_TAIL = 1 << 20
"""Room for the second partition table at the end."""


def add(system: GuestSystem, store: Store) -> str:
    """Return the store item whose `image` holds the images of a guest's layers as partitions.

    Raises `CommandFailed`, `HostError`.
    """
    images = [layer.image for layer in system.layers if layer.image]
    name = item_name("disk", images)

    def make(directory: Path) -> None:
        sources = [store.item(image) / "image" for image in images]
        _write(directory / "image", sources, name)
        write_checksums(directory, "image")

    store.add(name, make)
    return name


def _write(target: Path, sources: list[Path], name: str) -> None:
    """Copy the images one after the other, with a GPT whose ids follow from `name`."""
    start = _ALIGNMENT
    lines = ["label: gpt", f"label-id: {_identity(name, 'disk')}"]
    with target.open("xb") as disk:
        for number, source in enumerate(sources):
            size = source.stat().st_size
            if size % _SECTOR:
                raise MicroVMError(f"{source} is not made of whole sectors")
            with source.open("rb") as image:
                _copy(image.fileno(), disk.fileno(), start, size)
            identity = _identity(name, str(number))
            lines.append(
                f"start={start // _SECTOR}, size={size // _SECTOR}, type=linux, uuid={identity}"
            )
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        disk.truncate(start + _TAIL)
    sfdisk = process.require_program("sfdisk", "fdisk")
    script = "".join(f"{line}\n" for line in lines).encode()
    argv = [str(sfdisk), "--quiet", "--no-reread", "--no-tell-kernel", str(target)]
    process.run(argv, input=script, timeout_s=60, doing="write a partition table")


def _copy(source: int, target: int, at: int, size: int) -> None:
    """Copy in the kernel, which shares blocks where the file system can (copy_file_range(2))."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, size - done, done, at + done)
        except OSError:
            count = os.pwrite(target, os.pread(source, 1 << 20, done), at + done)
        if count == 0:
            raise MicroVMError("a layer's image became shorter while it was copied")
        done += count


def _identity(name: str, part: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"microvm:{name}:{part}")).upper()
