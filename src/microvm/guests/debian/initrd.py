"""The initrd: a static busybox, one script, and the modules that any hypervisor's boot may need.

It depends on kernel and architecture alone; the kernel command line says what to load and mount.
"""

import gzip
import io
import lzma
import stat
from collections.abc import Iterator
from pathlib import Path

PLAIN_MODULES = (
    "autofs4", "virtio_rng", "qemu_fw_cfg", "button", "evdev",
    "virtio_net", "net_failover", "failover",
)  # fmt: skip
"""Modules that every guest's systemd loads, or nearly every guest's: they lie in the root as they
are, since to unpack one costs ten times as much as to load it."""

BOOT_MODULES = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console",
    "erofs", "squashfs", "overlay", "ext4",
    "virtiofs", "9p", "9pnet_virtio", "crc32c_generic", "libcrc32c",
)  # fmt: skip
"""Modules that a boot may name; those built into a kernel, or unknown to it, are passed over."""

RARE_MODULES = (
    "xfs", "btrfs", "vfat", "nls_ascii", "nls_cp437", "crc32c-intel", "virtio_balloon",
    "virtio_mem", "vsock", "vmw_vsock_virtio_transport",
)  # fmt: skip
"""The same for few guests. They stay as they are in the package, where busybox can unpack that:
every guest would pay for 11 MB more of initrd."""


def write_initrd(
    target: Path, *, modules_tree: Path, kernel_release: str, busybox: Path, script: bytes
) -> None:
    """Write the initrd for a kernel whose modules lie in `modules_tree/lib/modules/RELEASE`.

    `script` is its init. The bytes follow from the inputs alone.
    """
    archive = Cpio()
    home = f"lib/modules/{kernel_release}"
    layers = ("layers", *(f"layers/{number}" for number in range(8)))
    for name in ("bin", "dev", "etc", "proc", "sys", "run", *layers, "writable", "sysroot",
                 "lib", "lib/modules", home):  # fmt: skip
        archive.directory(name)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.file("init", script, 0o755)
    archive.symlink("bin/sh", "busybox")
    directory = modules_tree / "lib/modules" / kernel_release
    table = (directory / "modules.dep").read_text()
    often = boot_modules(table)
    wanted = boot_modules(table, (*BOOT_MODULES, *RARE_MODULES))
    names = {path: _packed_name(path, rare=path not in often) for path in wanted}
    lines = []
    for path, needs in sorted(wanted.items()):
        data = (directory / path).read_bytes()
        if names[path].endswith(".ko"):
            data = _plain_module(directory / path, data)
        archive.file(f"{home}/{names[path]}", data, 0o644)
        lines.append(" ".join((f"{names[path]}:", *(names[each] for each in needs))) + "\n")
    archive.file(f"{home}/modules.dep", "".join(lines).encode(), 0o644)
    target.write_bytes(archive.finish())


def boot_modules(
    dependencies: str, names: tuple[str, ...] = BOOT_MODULES
) -> dict[str, tuple[str, ...]]:
    """Return the named modules and what they need, from the text of modules.dep (depmod(8)).

    Keys are paths; values list the modules needed, the last of which is loaded first.
    """
    table: dict[str, tuple[str, ...]] = {}
    by_name: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, needs = line.partition(":")
        table[path] = tuple(needs.split())
        by_name[module_name(path)] = path
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if top := by_name.get(name.replace("-", "_")):
            found |= {each: table[each] for each in (top, *table[top])}
    return found


def unpack_modules(directory: Path, names: tuple[str, ...] = PLAIN_MODULES) -> None:
    """Replace compressed modules below a directory by what they hold."""
    for path in sorted(directory.rglob("*.ko.*")):
        if module_name(path.name) in names:
            path.with_suffix("").write_bytes(_plain_module(path, path.read_bytes()))
            path.unlink()


def module_name(path: str) -> str:
    """Return a module's name as the kernel spells it: `kernel/fs/erofs/erofs.ko.xz` is `erofs`."""
    return path.rsplit("/", 1)[-1].partition(".")[0].replace("-", "_")


def _packed_name(path: str, *, rare: bool) -> str:
    """Return the name in the initrd: compressed only where busybox can undo it."""
    suffix = Path(path).suffix
    return f"{module_name(path)}.ko{suffix if rare and suffix in ('.xz', '.gz') else ''}"


def _plain_module(path: Path, data: bytes) -> bytes:
    if path.name.endswith(".xz"):
        return lzma.decompress(data)
    if path.name.endswith(".gz"):
        return gzip.decompress(data)
    if path.name.endswith(".zst"):
        return _zstd(data, path)
    return data


def _zstd(data: bytes, path: Path) -> bytes:
    """Undo zstd with its program: Python has no decoder before 3.14."""
    from microvm.host import process

    program = process.require_program("zstd", "zstd")
    done = process.run([program, "-dcq"], input=data, timeout_s=60, doing=f"unpack {path.name}")
    return done.stdout


class Cpio:
    """A cpio archive in the format that the kernel reads (newc, buffer-format.rst)."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, mode: int) -> None:
        """Add a file."""
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        """Return the archive."""
        self._entry("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        # inode, mode, uid, gid, nlink, mtime, size, device and rdevice numbers, name size, check.
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        self._out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + raw)
        self._pad()
        self._out.write(data)
        self._pad()

    def _pad(self) -> None:
        self._out.write(b"\0" * (-self._out.tell() % 4))


def built_in(modules_tree: Path, kernel_release: str) -> Iterator[str]:
    """Yield the names of the modules that are part of the kernel itself."""
    listed = modules_tree / "lib/modules" / kernel_release / "modules.builtin"
    for line in listed.read_text().splitlines():
        yield module_name(line)
