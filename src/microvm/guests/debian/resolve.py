"""A system's loose words made exact: package versions, hashes and the state of the mirrors."""

import hashlib
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from microvm.errors import HostError, MicroVMError
from microvm.guests.debian import runtime
from microvm.guests.debian.apt import Apt
from microvm.guests.debian.configuration import guest_key
from microvm.guests.debian.lists import Lists
from microvm.guests.debian.sources import KEYRINGS, Source, distribution, sources
from microvm.host import files, process
from microvm.hypervisors.limits import lacks_of_cloud_kernel
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM
from microvm.model.guest import LockedLayer, LockedPackage, SystemLock
from microvm.model.progress import Event, Progress
from microvm.store import Store, item_name

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names of what `uname -m` prints."""

_KERNELS = {
    ("debian", "cloud"): "linux-image-cloud-{}",
    ("debian", "generic"): "linux-image-{}",
    ("ubuntu", "cloud"): "linux-image-virtual",
    ("ubuntu", "generic"): "linux-image-generic",
}
_KERNEL_PART = re.compile(r"linux-(?:image|modules|modules-extra|binary|base)(?:-unsigned)?-\d\S*")


def architecture() -> str:
    """Return Debian's name of the host's architecture. Raises `HostError` for one not supported."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise HostError(f"guests can't be built on {machine}: {', '.join(ARCHITECTURES)} can")
    return ARCHITECTURES[machine]


def kernel_flavour(microvm: MicroVM) -> str:
    """Return `cloud`, `generic` or the directory of the kernel that this MicroVM boots."""
    if microvm.system.kernel is not None:
        return microvm.system.kernel
    return "generic" if any(reasons_for_generic(microvm)) else "cloud"


def reasons_for_generic(microvm: MicroVM) -> Iterator[str]:
    """Yield why a MicroVM that names no kernel boots the generic one; nothing: it doesn't."""
    for problem in lacks_of_cloud_kernel(microvm):
        yield problem.message
    if any(device.bus == "pci" for device in microvm.devices):
        # Some it has: who knows that theirs is among them may say "cloud".
        yield "the cloud kernel has few drivers of real devices, and one is passed through"


def request(microvm: MicroVM, shared_packages: Sequence[str], project_dir: Path) -> str:
    """Return the hash of all declared words that resolving looks at."""
    system = microvm.system
    local = {name: _digest(project_dir / name) for name in _local(system.packages, shared_packages)}
    words = {
        "architecture": architecture(),
        "release": system.release,
        "sources": [system.mirror, system.security_mirror, system.updates, system.components],
        "repositories": to_plain(system.repositories),
        "kernel": kernel_flavour(microvm) in ("cloud", "generic") and kernel_flavour(microvm),
        "base": runtime.BASE_PACKAGES,
        "defaults": sorted(shared_packages),
        "packages": sorted({*system.packages, *runtime.packages_for(microvm)}),
        "local": local,
    }
    return item_name("request", words).partition("-")[0]


def resolve(
    name: str,
    microvm: MicroVM,
    *,
    shared_packages: Sequence[str],
    store: Store,
    project_dir: Path,
    old: SystemLock | None,
    neighbours: Sequence[SystemLock] = (),
    update: bool,
    progress: Progress,
) -> SystemLock:
    """Return the lock of a system: `old` itself where it still answers what is declared.

    Where words were added, the mirrors' state of `old`, or else of a neighbour's lock, answers
    them while its package lists are kept: so guests of a project share their base.
    Raises `MicroVMError` for an unknown release or package, a mirror that does not answer, a bad
    signature; the message holds apt's words.
    """
    asked = request(microvm, shared_packages, project_dir)
    if old is not None and old.request == asked and not update:
        _restore_local(old, _local(microvm.system.packages, shared_packages), project_dir, store)
        return old
    arch = architecture()
    found = sources(microvm.system, project_dir)
    text = "\n".join(source.paragraph() for source in found)
    lists = Lists(store.lists / item_name("lists", [text, arch]))
    known = [lock.mirrors for lock in (old, *neighbours) if lock is not None]

    def waiting() -> None:
        detail = f"for another build that fetches the lists of {microvm.system.release}"
        progress(Event(step="wait", detail=detail))

    with store.temporary("resolve") as directory, lists.held(waiting):
        kept = None if update else lists.find(known)
        apt = Apt.prepare(directory / "apt", kept or lists.current, found, arch)
        if kept is None:
            why = "; those of the lock are not kept any more" if old and not update else ""
            release = microvm.system.release
            progress(Event(step="package lists", detail=f"{name}: fetch those of {release}{why}"))
            apt.update()
            lists.keep(apt.states())
        progress(Event(step="resolve packages", detail=name))
        layers = _layers(microvm, apt, directory, shared_packages, project_dir, store)
        return SystemLock(
            request=asked,
            date=apt.date(),
            mirrors=apt.states(),
            sources=_guest_sources(found),
            kernel_release=_kernel_release(layers),
            layers=layers,
        )


def _layers(
    microvm: MicroVM,
    apt: Apt,
    directory: Path,
    shared_packages: Sequence[str],
    project_dir: Path,
    store: Store,
) -> tuple[LockedLayer, ...]:
    own = tuple(sorted({*microvm.system.packages, *runtime.packages_for(microvm)}))
    wanted = (
        ("base", ("?essential", *runtime.BASE_PACKAGES)),
        ("defaults", tuple(shared_packages)),
        ("packages", own),
    )
    layers = [LockedLayer(name="kernel", packages=_kernel(microvm, apt))]
    for layer, names in wanted:
        local = _keep_local(_local(names), project_dir, directory / "local", store)
        solved = apt.solve(
            [
                str(directory / "local" / f"{local[n].sha256}.deb") if n in local else n
                for n in names
            ]
        )
        packages = tuple(sorted((*solved, *local.values()), key=lambda package: package.name))
        apt.assume_installed(packages)
        layers.append(LockedLayer(name=layer, packages=packages))  # type: ignore[arg-type]
    return tuple(layers)


def _kernel(microvm: MicroVM, apt: Apt) -> tuple[LockedPackage, ...]:
    """Return the packages that are only extracted: kernel, its modules, the initrd's busybox."""
    names = ["busybox-static"]
    flavour = kernel_flavour(microvm)
    if flavour in ("cloud", "generic"):
        meta = _KERNELS[distribution(microvm.system.release), flavour].format(architecture())
        names += apt.closure(meta, _KERNEL_PART)
    return apt.locate(names)


def _kernel_release(layers: Sequence[LockedLayer]) -> str:
    for package in layers[0].packages:
        if match := re.fullmatch(r"linux-image-(?:unsigned-)?(\d\S*)", package.name):
            return match[1]
    return ""


def _local(*names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for group in names for name in group if name.endswith(".deb"))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise files.explain(error, "read the package") from error


def _keep_local(
    names: Sequence[str], project_dir: Path, directory: Path, store: Store
) -> dict[str, LockedPackage]:
    """Copy local `.deb` files to where packages are kept, and return them as locked."""
    found: dict[str, LockedPackage] = {}
    if not names:
        return found
    dpkg_deb = process.require_program("dpkg-deb", "dpkg")
    directory.mkdir(exist_ok=True)
    for name in names:
        path = project_dir / name
        digest = _digest(path)
        shutil.copyfile(path, directory / f"{digest}.deb")
        files.write_atomic(store.packages / f"{digest}.deb", path.read_bytes())
        fields = process.run(
            [dpkg_deb, "-f", path, "Package", "Version", "Architecture"],
            timeout_s=30,
            doing=f"read the package {path}",
        )
        values = dict(line.split(": ", 1) for line in fields.stdout.decode().splitlines())
        if values.keys() < {"Package", "Version", "Architecture"}:
            raise MicroVMError(f"{path} is no Debian package")
        found[name] = LockedPackage(
            name=values["Package"],
            version=values["Version"],
            architecture=values["Architecture"],
            sha256=digest,
            size=path.stat().st_size,
            url="",
        )
    return found


def _restore_local(old: SystemLock, names: Sequence[str], project_dir: Path, store: Store) -> None:
    """Copy the local packages of a lock again that the store no longer keeps."""
    locked = {p.sha256 for layer in old.layers for p in layer.packages if not p.url}
    missing = {digest for digest in locked if not (store.packages / f"{digest}.deb").exists()}
    for path in (project_dir / name for name in names if missing):
        if (digest := _digest(path)) in missing:
            files.write_atomic(store.packages / f"{digest}.deb", path.read_bytes())


def _guest_sources(found: Sequence[Source]) -> str:
    """Return the sources as the guest keeps them; the host's directories it can't reach."""
    paragraphs = []
    for source in found:
        if source.url.startswith("file:"):
            continue
        key = source.keyring
        if key and Path(key).parent != KEYRINGS:
            key = guest_key(key)
        paragraphs.append(Source(source.url, source.suites, source.components, key).paragraph())
    return "\n".join(paragraphs)
