"""Which file system an image holds, read from its superblock without mounting it.

Offsets: ext4 documentation (ext4/super.rst), xfs_db(8) sb, btrfs on-disk format, Microsoft's FAT
specification.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path

READ = 0x10100


@dataclass(frozen=True, slots=True)
class Superblock:
    """A file system found in an image."""

    fs_type: str
    uuid: str


def read(path: Path) -> Superblock | None:
    """Return the file system of an image or block device, or None for one that is not known.

    Raises `OSError`.
    """
    with path.open("rb") as file:
        head = file.read(READ)
    if head[0x438:0x43A] == b"\x53\xef":
        return Superblock(_ext(head), str(uuid.UUID(bytes=head[0x468:0x478])))
    if head[:4] == b"XFSB":
        return Superblock("xfs", str(uuid.UUID(bytes=head[32:48])))
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return Superblock("btrfs", str(uuid.UUID(bytes=head[0x10020:0x10030])))
    if head[510:512] == b"\x55\xaa" and b"FAT" in (head[54:57], head[82:85]):
        offset = 67 if head[82:85] == b"FAT" else 39
        number = int.from_bytes(head[offset : offset + 4], "little")
        return Superblock("vfat", f"{number >> 16:04X}-{number & 0xFFFF:04X}")
    return None


def image_type(path: Path) -> str:
    """Return the format of an image by its header or footer. Raises `OSError`.

    Offsets: QEMU's docs/interop/qcow2.txt, Microsoft's specifications of VHD and VHDX.
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
