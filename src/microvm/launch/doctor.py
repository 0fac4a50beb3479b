"""What this host can do for MicroVMs, and the command that mends each lack."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microvm.errors import MicroVMError
from microvm.host import facts, kvm, namespace, places, process
from microvm.hypervisors import Hypervisor, hypervisor, virtiofsd
from microvm.model.declaration import HypervisorKind
from microvm.model.facts import dotted

LOW_SPACE = 2 << 30
"""Bytes free at the store; with less, the next build may find no room."""

Lack = Literal["lacking", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    state: Literal["good"] | Lack
    """`broken`: no guest can be built or run; `lacking`: some features can't be used."""
    text: str
    mend: str | None = None
    """Command that mends it."""


_PROGRAMS: tuple[tuple[str, str, Lack, str], ...] = (
    ("mmdebstrap", "mmdebstrap", "broken", "Debian guests"),
    ("apt-get", "apt", "broken", "Debian guests"),
    ("dpkg-deb", "dpkg", "broken", "Debian guests"),
    ("depmod", "kmod", "broken", "kernels"),
    ("mkfs.erofs", "erofs-utils", "broken", "images of the root"),
    ("zstd", "zstd", "lacking", "kernels for other hypervisors than qemu"),
    ("sfdisk", "fdisk", "lacking", "roots of kvmtool's guests"),
    ("mksquashfs", "squashfs-tools", "lacking", "squashfs images of the root"),
    ("mkfs.ext4", "e2fsprogs", "lacking", "ext4 volumes"),
    ("mkfs.xfs", "xfsprogs", "lacking", "xfs volumes"),
    ("mkfs.btrfs", "btrfs-progs", "lacking", "btrfs volumes"),
    ("mkfs.vfat", "dosfstools", "lacking", "vfat volumes"),
    ("git", "git", "lacking", "projects in Git"),
)
"""Programs, the Debian package of each, what it means when they are missing, what needs them."""


def examine(store: Path) -> list[Finding]:
    """Return what this host can do for MicroVMs and what it lacks, the most important first."""
    qemu, *others = [_vmm(hypervisor(kind), store) for kind in HypervisorKind]
    return [
        qemu, *_kvm(), *_namespaces(store), *_groups(), *_programs(), *_keyrings(),
        *_virtiofsd(), *others, *_space(store),
    ]  # fmt: skip


def _kvm() -> Iterator[Finding]:
    module, obstacle = kvm.module(), kvm.obstacle()
    if obstacle is None:
        text = f"/dev/kvm by {module or 'an unknown module'}; tried out before the first guest"
        yield Finding(topic="kvm", state="good", text=text)
        return
    mend = None
    if "permission" in obstacle:
        mend = "sudo usermod -aG kvm $USER    # then log in again"
    elif not kvm.KVM.exists():
        mend = "sudo modprobe kvm_intel || sudo modprobe kvm_amd"
    text = f"{obstacle}; guests are emulated, about ten times slower"
    yield Finding(topic="kvm", state="lacking", text=text, mend=mend)


def _namespaces(store: Path) -> Iterator[Finding]:
    if os.geteuid() != 0 and process.find_program("newuidmap") is None:
        yield Finding(
            topic="user namespaces",
            state="broken",
            text="newuidmap is missing",
            mend="sudo apt install uidmap",
        )
        return
    if forbidden := namespace.check_support():
        setting, _, mend = forbidden.partition(": ")
        yield Finding(topic="user namespaces", state="broken", text=setting, mend=mend)
        return
    try:
        ids = namespace.id_range(store)
        namespace.run_inside(
            "microvm.host.inside:whoami", {}, doing="try namespaces", binds={}, ids=ids,
            timeout_s=60,
        )  # fmt: skip
    except MicroVMError as error:
        yield Finding(topic="user namespaces", state="broken", text=error.message, mend=error.hint)
        return
    text = f"work; builds use the ids {ids.first_uid} to {ids.first_uid + ids.count - 1}"
    yield Finding(topic="user namespaces", state="good", text=text)


def _groups() -> Iterator[Finding]:
    """Look at the devices that the groups of an ordinary user must open; `_kvm` tells of kvm's."""
    vsock, tun = Path("/dev/vhost-vsock"), Path("/dev/net/tun")
    if vsock.exists() and not os.access(vsock, os.R_OK | os.W_OK):
        yield Finding(
            topic=str(vsock),
            state="lacking",
            text="no permission; needed for vsock",
            mend="sudo usermod -aG kvm $USER    # then log in again",
        )
    for device, module, purpose in ((vsock, "vhost_vsock", "vsock"), (tun, "tun", "taps")):
        if not device.exists():
            yield Finding(
                topic=str(device),
                state="lacking",
                text=f"missing; needed for {purpose}",
                mend=f"sudo modprobe {module}",
            )


def _programs() -> Iterator[Finding]:
    for name, package, state, purpose in _PROGRAMS:
        found = process.find_program(name)
        if found:
            yield Finding(topic=name, state="good", text=str(found))
        else:
            yield Finding(
                topic=name,
                state=state,
                text=f"missing; needed for {purpose}",
                mend=f"sudo apt install {package}",
            )


def _keyrings() -> Iterator[Finding]:
    for name, package in (("debian", "debian-archive-keyring"), ("ubuntu", "ubuntu-keyring")):
        path = Path(f"/usr/share/keyrings/{name}-archive-keyring.gpg")
        if path.exists():
            yield Finding(topic=f"{name} keys", state="good", text=str(path))
        else:
            yield Finding(
                topic=f"{name} keys",
                state="lacking",
                text=f"missing; needed for {name.capitalize()} guests",
                mend=f"sudo apt install {package}",
            )


def _virtiofsd() -> Iterator[Finding]:
    try:
        found = facts.program(virtiofsd.PROGRAM, None, virtiofsd.PLACES)
    except MicroVMError:
        yield Finding(
            topic=virtiofsd.PROGRAM,
            state="lacking",
            text="missing; needed for virtiofs shares",
            mend="sudo apt install virtiofsd    # Debian 12: qemu-system-common",
        )
        return
    kind = "the old C one" if found.flavour == "c" else "the Rust one"
    yield Finding(topic=virtiofsd.PROGRAM, state="good", text=f"{kind}, at {found.path}")


def _vmm(backend: Hypervisor, store: Path) -> Finding:
    """Say where a hypervisor's program is and how well its version is known."""
    installed = places.installed(store, backend.program)
    path = process.find_program(backend.program, installed)
    # Without qemu no example of ours runs; the others are a choice.
    state: Lack = "broken" if backend.name == "qemu" else "lacking"
    mend = f"microvm hypervisors install {backend.name}"
    if backend.name == "qemu":
        mend = f"sudo apt install {facts.package(backend.program)}"
    if path is None:
        text = f"{backend.program} is missing"
        return Finding(topic=backend.name, state=state, text=text, mend=mend)
    try:
        program = facts.program(backend.program, None, installed)
    except MicroVMError as error:
        return Finding(topic=backend.name, state=state, text=error.message, mend=error.hint)
    whose = " (in the store)" if str(path.parent) in installed else ""
    text = f"{dotted(program.version) or 'a version that it does not tell'} at {path}{whose}"
    if not program.has(backend.oldest):
        text += f"; older than {dotted(backend.oldest)}, the first that can be used"
        mend = f"{mend}    # a later one, and take the old one off PATH"
        return Finding(topic=backend.name, state=state, text=text, mend=mend)
    if backend.newest and program.version[: len(backend.newest)] > backend.newest:
        text += f"; newer than {dotted(backend.newest)}, the last that is known: used like that one"
    return Finding(topic=backend.name, state="good", text=text)


def _space(store: Path) -> Iterator[Finding]:
    info = os.statvfs(store)
    free = info.f_bavail * info.f_frsize
    text = f"{free >> 30} GiB free at {store}"
    if free < LOW_SPACE:
        yield Finding(topic="space", state="lacking", text=text, mend="microvm store gc")
    else:
        yield Finding(topic="space", state="good", text=text)
