"""The built guest system and its lock: what guest sources return and read."""

from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["erofs", "squashfs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPackage:
    """One package as it was resolved."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    """Size of the `.deb` in bytes."""
    url: str
    """Where it was found; empty for a local file, which is found by its hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedLayer:
    """The packages that one layer adds to those below it."""

    name: Literal["kernel", "base", "defaults", "packages"]
    packages: tuple[LockedPackage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemLock:
    """What one system's loose words meant when they were resolved."""

    request: str
    """Hash of the declared words that were resolved; another hash resolves again."""
    date: int
    """Unix time that clamps every mtime: the newest date of the mirrors' Release files."""
    mirrors: dict[str, str]
    """SHA-256 of each repository's InRelease, by its URL."""
    sources: str
    """The guest's apt sources in deb822 format."""
    kernel_release: str
    """Release of the kernel, such as `6.12.48+deb13-cloud-amd64`; empty for a kernel by path."""
    layers: tuple[LockedLayer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One read-only layer of a guest's root."""

    name: str
    """What it holds: `kernel`, `base`, `defaults`, `packages`, `configuration`."""
    tree: str
    """Store item with the layer as a directory `tree`."""
    image: str | None
    """Store item with the layer as a file `image`; `None` where no image was made."""
    kind: LayerKind | None
    """File system of the image."""
    uuid: str
    """UUID that the image carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSystem:
    """A built operating system: kernel, initrd, layers. All names are names of store items."""

    name: str
    """Store item that holds `system.json`, links to the parts, and nothing else."""
    source: str
    """Guest source: `debian`."""
    description: str
    """One line for people: `Debian 13 (trixie), kernel 6.12.48+deb13-cloud-amd64`."""
    architecture: str
    """Machine name as `uname -m` prints it."""
    kernel: str
    """Store item with the kernel as `vmlinuz` (the distribution's image: a bzImage on x86)."""
    kernel_release: str
    initrd: str
    """Store item with the initrd as `initrd`."""
    features: tuple[str, ...]
    """What the kernel can, as far as launching depends on it: `9p`, `virtiofs`, `vsock`,
    `pvpanic`."""
    layers: tuple[Layer, ...]
    """From bottom to top."""
    kernel_params: tuple[str, ...]
    """Parameters that this source wants on every hypervisor."""
