"""Which file system an image holds, read from its superblock without mounting it.

Offsets: ext4 documentation (ext4/super.rst), xfs_db(8) sb, btrfs on-disk format, Microsoft's FAT
specification.
"""

import uuid
from dataclasses import dataclass, field
from pathlib import Path

READ = 0x10100
"""Bytes that reach behind the last field, btrfs's (its superblock is at 64 KiB)."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """A file system found in an image."""

    fs_type: str
    uuid: str
    size: int = field(default=0, compare=False)
    """Bytes that it takes up; 0 where that is not read."""


def read(path: Path) -> Superblock | None:
    """Return the file system of an image or block device, or None for one that is not known.

    Raises `OSError`.
    """
    with path.open("rb") as file:
        head = file.read(READ)
    if head[0x438:0x43A] == b"\x53\xef":
        return Superblock(_ext(head), str(uuid.UUID(bytes=head[0x468:0x478])), _ext_size(head))
    if head[:4] == b"XFSB":
        blocks = int.from_bytes(head[8:16], "big")
        size = blocks * int.from_bytes(head[4:8], "big")
        return Superblock("xfs", str(uuid.UUID(bytes=head[32:48])), size)
    if head[0x10040:0x10048] == b"_BHRfS_M":
        size = int.from_bytes(head[0x10070:0x10078], "little")
        return Superblock("btrfs", str(uuid.UUID(bytes=head[0x10020:0x10030])), size)
    if head[510:512] == b"\x55\xaa" and b"FAT" in (head[54:57], head[82:85]):
        offset = 67 if head[82:85] == b"FAT" else 39
        number = int.from_bytes(head[offset : offset + 4], "little")
        return Superblock("vfat", f"{number >> 16:04X}-{number & 0xFFFF:04X}")
    return None


def image_type(path: Path) -> str:
    """Return the format of an image by its header or footer. Raises `OSError`.

    Offsets: QEMU's docs/interop/qcow2.txt, Microsoft's specifications of VHD and VHDX, crosvm's
    disk/src.
    """
    with path.open("rb") as file:
        head = file.read(512)
        end = file.seek(0, 2)
        file.seek(max(end - 512, 0))
        foot = file.read(8)
    if head[:4] == b"QFI\xfb":
        return "qcow2"
    if head[:8] == b"vhdxfile":
        return "vhdx"
    if head[:15] == b"composite_disk\x1d":  # crosvm's, which names other files
        return "composite"
    if head[:4] == b"\x3a\xff\x26\xed":
        return "android-sparse"
    return "vhd" if b"conectix" in (head[:8], foot) else "raw"


def is_blank(path: Path) -> bool:
    """Return whether the first megabyte holds nothing but zeros. Raises `OSError`."""
    with path.open("rb") as file:
        return not any(file.read(1 << 20))


def _ext(head: bytes) -> str:
    """Tell ext4, ext3 and ext2 apart by their features, as blkid(8) does."""
    compatible, incompatible, read_only = (
        int.from_bytes(head[offset : offset + 4], "little") for offset in (0x45C, 0x460, 0x464)
    )
    # What ext3 knows of either kind (fs/ext3/ext3.h as it was: EXT3_FEATURE_*_SUPP).
    if incompatible & ~0x16 or read_only & ~0x7:
        return "ext4"
    return "ext3" if compatible & 0x4 else "ext2"


def _ext_size(head: bytes) -> int:
    high = head[0x550:0x554] if head[0x460] & 0x80 else b""  # INCOMPAT_64BIT
    blocks = int.from_bytes(head[0x404:0x408] + high, "little")
    return blocks << 10 + int.from_bytes(head[0x418:0x41C], "little")
