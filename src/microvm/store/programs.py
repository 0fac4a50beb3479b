"""Programs of hypervisors that are fetched from their projects and kept in the store.

`STORE/.programs/NAME` links to the item of program NAME: that link is what keeps the item, and
`STORE/.programs/NAME/bin` is where a program is looked for after PATH.
"""

import os
import platform
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from microvm.errors import HostError, MicroVMError, StateError, UnsupportedOperation
from microvm.host import download, facts, files, places, process
from microvm.hypervisors import hypervisor
from microvm.model.declaration import HypervisorKind
from microvm.model.facts import dotted
from microvm.model.progress import Event, Progress, silent
from microvm.store.collect import write_checksums
from microvm.store.store import Store, default_path, item_name

GITHUB = "https://github.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A file that a project publishes, and the programs in it."""

    version: str
    path: str
    """Path below the server, which a mirror keeps."""
    sha256: str
    members: Mapping[str, str] = field(default_factory=dict)
    """Programs in a tar archive: name here, path in it. Empty: the file is the program."""


def _cloud_hypervisor(suffix: str, sha256: str) -> Release:
    path = "cloud-hypervisor/cloud-hypervisor/releases/download/v53.0/cloud-hypervisor-static"
    return Release(version="53.0", path=f"{path}{suffix}", sha256=sha256)


def _firecracker(machine: str, sha256: str) -> Release:
    version = "1.16.1"
    end = f"v{version}-{machine}"
    return Release(
        version=version,
        path=f"firecracker-microvm/firecracker/releases/download/v{version}/firecracker-{end}.tgz",
        sha256=sha256,
        members={name: f"release-{end}/{name}-{end}" for name in ("firecracker", "jailer")},
    )


# Checksums: firecracker publishes them beside its archives (`*.tgz.sha256.txt`), cloud-hypervisor
# does not. All four were taken from public projects that pin the same files (installers, a
# Homebrew formula, Nix, Salt and Go sources), each found alike in at least four that are
# independent of one another. What they belong to was not downloaded when they were written down.
RELEASES: Mapping[tuple[str, str], Release] = {
    ("cloud-hypervisor", "x86_64"): _cloud_hypervisor(
        "", "448af3d4e59b22c2987f7df94c213ad40fb53a10d437e42b5ee6c4fce7c29ecc"
    ),
    ("cloud-hypervisor", "aarch64"): _cloud_hypervisor(
        "-aarch64", "f192b510eea1c710cbc439d716bb0573c223fc463dbe3e6523788a2b7ef62850"
    ),
    ("firecracker", "x86_64"): _firecracker(
        "x86_64", "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6"
    ),
    ("firecracker", "aarch64"): _firecracker(
        "aarch64", "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e"
    ),
}
"""What is fetched, by hypervisor and machine name."""

_BY_HAND = {  # what to do for those that publish no programs
    "qemu": "sudo apt install {package}    # Debian and Ubuntu",
    "crosvm": "build it: git clone --recurse-submodules "
    "https://chromium.googlesource.com/crosvm/crosvm && cd crosvm && cargo build --release "
    "--no-default-features --features net,balloon,qcow,usb; then put target/release/crosvm on PATH",
    "kvmtool": "build it: git clone "
    "https://git.kernel.org/pub/scm/linux/kernel/git/will/kvmtool.git && make -C kvmtool; "
    "then put kvmtool/lkvm on PATH",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A hypervisor's program in the store."""

    hypervisor: str
    version: str
    item: str
    """Path of the store item."""
    program: str
    """Path of the program, which stays the same when a later version is installed."""
    fetched: bool
    """Whether it was downloaded now; else it was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPlace:
    """Where a hypervisor's program is found, if a declaration names none."""

    hypervisor: str
    program: str
    """Its name."""
    path: str | None
    """Unset: it is missing."""
    version: str | None
    place: str | None
    """`PATH` or `store`."""
    problem: str | None = None
    """Why it can't be used."""


def install_hypervisor(
    name: str,
    store: Store,
    *,
    mirror: str = GITHUB,
    releases: Mapping[tuple[str, str], Release] | None = None,
    progress: Progress = silent,
) -> Installed:
    """Fetch a hypervisor's official release, check it and put it into the store.

    Takes no second download for what is there. `releases`: what to fetch by hypervisor and machine
    name, instead of those that are known here. Raises `UnsupportedOperation` where there is no
    release, `MicroVMError` and `HostError` for what goes wrong; nothing is left then.
    """
    program = _program(name)
    release = (RELEASES if releases is None else releases).get((name, platform.machine()))
    if release is None:
        raise _no_release(name, program)
    item = item_name(f"{name}-{release.version}", [release.path, release.sha256])
    fetched = not store.has(item)

    def make(directory: Path) -> None:
        url = f"{mirror.rstrip('/')}/{release.path}"
        progress(Event(step="download", detail=url))
        _unpack(release, program, url, directory, progress)

    link = places.programs(store.path, program).parent
    with store.building(progress):
        path = store.add(item, make, progress=progress)
        try:
            link.parent.mkdir(exist_ok=True)
            link.parent.chmod(0o755)
        except OSError as error:
            raise files.explain(error, f"make {link.parent}") from error
        store.add_root(link, item)
    found = link / "bin" / program
    if not os.access(found, os.X_OK):
        raise HostError(
            f"{found} can't be executed",
            hint="the store is on a file system that is mounted noexec: choose another (--store)",
        )
    return Installed(
        hypervisor=name, version=release.version, item=str(path), program=str(found),
        fetched=fetched,
    )  # fmt: skip


def _program(name: str) -> str:
    try:
        return hypervisor(HypervisorKind(name)).program
    except ValueError as error:
        raise MicroVMError(
            f"there is no hypervisor {name!r}", hint=f"there are: {', '.join(HypervisorKind)}"
        ) from error


def _no_release(name: str, program: str) -> UnsupportedOperation:
    if name in _BY_HAND:
        return UnsupportedOperation(
            f"the project {name} publishes no programs to install",
            hint=_BY_HAND[name].format(package=facts.package(program)),
        )
    return UnsupportedOperation(
        f"{name} has no release for {platform.machine()} that is known here",
        hint="build it, and put it on PATH or name it as `program`",
    )


def _unpack(release: Release, program: str, url: str, directory: Path, progress: Progress) -> None:
    """Download a release into an item: its programs in `bin`, their checksums."""
    (directory / "bin").mkdir()
    if not release.members:
        download.download(url, directory / "bin" / program, release.sha256, progress=progress)
        names = [program]
    else:
        archive = directory / "archive"
        download.download(url, archive, release.sha256, progress=progress)
        names = sorted(release.members)
        try:
            with tarfile.open(archive) as tar:
                for name in names:
                    _take(tar, release.members[name], directory / "bin" / name)
        except (tarfile.TarError, EOFError, KeyError) as error:
            raise MicroVMError(
                f"{url} is not laid out as its release should be: {error}"
            ) from error
        archive.unlink()
    # Other users may run them, whatever the umask.
    for path in (directory, directory / "bin", *(directory / "bin" / name for name in names)):
        path.chmod(0o755)
    write_checksums(directory, *(f"bin/{name}" for name in names))


def _take(tar: tarfile.TarFile, member: str, target: Path) -> None:
    """Copy one file of an archive; nothing in it decides where anything goes."""
    source = tar.extractfile(member)
    if source is None:
        raise KeyError(f"{member} is no file")
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def remove_hypervisor(name: str, store: Store) -> None:
    """Forget an installed hypervisor; the next collection deletes it, machines that run go on.

    Raises `StateError` when it is not installed.
    """
    link = places.programs(store.path, _program(name)).parent
    try:
        link.unlink()
    except FileNotFoundError as error:
        raise StateError(
            f"{name} is not installed in the store {store.path}",
            hint="microvm hypervisors    # tells where each program is found",
        ) from error
    except OSError as error:
        raise files.explain(error, f"remove {link}") from error


def find_hypervisors(store: Path | None = None) -> list[ProgramPlace]:
    """Return where each hypervisor's program is found without a declared path, and its version."""
    return [find_hypervisor(kind.value, store) for kind in HypervisorKind]


def find_hypervisor(name: str, store: Path | None = None) -> ProgramPlace:
    """Return where one hypervisor's program is found, and its version.

    Raises `MicroVMError` for a name that is none.
    """
    store = (store or default_path()).absolute()
    program = _program(name)
    ours = places.installed(store, program)
    path = process.find_program(program, ours)
    if path is None:
        return ProgramPlace(hypervisor=name, program=program, path=None, version=None, place=None)
    version = problem = None
    try:
        version = dotted(facts.program(program, None, ours).version) or None
    except MicroVMError as error:
        problem = error.message
    return ProgramPlace(
        hypervisor=name, program=program, path=str(path), version=version,
        place="store" if str(path.parent) in ours else "PATH", problem=problem,
    )  # fmt: skip
