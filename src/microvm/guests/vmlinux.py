"""The uncompressed kernel inside a bzImage, which most VMMs boot.

The setup header says where the compressed kernel is (Documentation/arch/x86/boot.rst: fields
setup_sects, payload_offset, payload_length; protocol 2.08).
"""

import gzip
import lzma
import struct
import zlib
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.host import process
from microvm.model.guest import GuestSystem
from microvm.store import Store, item_name

ELF = b"\x7fELF"
_MAGIC = b"HdrS"
_PROGRAMS = {
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd", ("-dcq",)),
    b"\x02\x21\x4c\x18": ("lz4", "lz4", ("-dcq",)),
}
"""Formats that Python can't undo (zstd: not before 3.14), by their first bytes: program, Debian
package, arguments. The kernel's lz4 is the legacy frame format."""


def extract(image: bytes, name: str) -> bytes:
    """Return the ELF kernel of a bzImage, or `image` itself if it is one; `name` is for messages.

    Raises `MicroVMError` for what holds no kernel in a known format, `HostError` for a missing
    program.
    """
    if image.startswith(ELF):
        return image
    if image[0x202:0x206] != _MAGIC:
        raise MicroVMError(f"{name} is no bzImage: it has no setup header")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        found = _decompress(payload, name)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise MicroVMError(f"the kernel in {name} is damaged: {error}") from error
    if not found.startswith(ELF):
        raise MicroVMError(f"{name} holds something else than an ELF kernel")
    return found


def _decompress(payload: bytes, name: str) -> bytes:
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    # To all but gzip, which ends with it, the kernel's build adds the size of what is inside
    # (scripts/Makefile.lib, size_append): four bytes.
    payload = payload[:-4]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(payload)
    for magic, (program, package, arguments) in _PROGRAMS.items():
        if payload.startswith(magic):
            path = process.require_program(program, package)
            doing = f"take the kernel out of {name}"
            return process.run([path, *arguments], input=payload, timeout_s=60, doing=doing).stdout
    raise MicroVMError(f"{name} is compressed in an unknown way ({payload[:4].hex()})")


def add(system: GuestSystem, store: Store) -> str:
    """Return the store item with a guest's uncompressed kernel, made where it is not there.

    Raises what `extract` does.
    """
    name = item_name("vmlinux", [system.kernel])

    def make(directory: Path) -> None:
        image = store.item(system.kernel) / "vmlinuz"
        (directory / "vmlinux").write_bytes(extract(image.read_bytes(), system.kernel_release))

    store.add(name, make)
    return name
