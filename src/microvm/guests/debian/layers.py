"""Which layers a Debian guest has, what each is named by, and who makes it."""

import platform
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from microvm.errors import CommandFailed, DeadlineExceeded, HostError, MicroVMError
from microvm.guests.debian import configuration, image, kernel_directory, runtime
from microvm.guests.debian.apt import Apt
from microvm.guests.debian.initrd import BOOT_MODULES, PLAIN_MODULES
from microvm.guests.debian.resolve import architecture, kernel_flavour, reasons_for_generic
from microvm.guests.debian.sources import describe
from microvm.host import files
from microvm.host.namespace import Bind, run_inside
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM
from microvm.model.guest import GuestSystem, Layer, LockedPackage, SystemLock
from microvm.model.identity import layer_uuid
from microvm.model.progress import Event, Progress, counted
from microvm.store import Store, collect, downloads, item_name

RECIPE = 2
"""Raised whenever this code makes other bytes of the same inputs."""

BUILD_TIMEOUT_S = 3600
_TASKS = "microvm.guests.debian.inside"


class Builder:
    """Builds the layers of one guest, from bottom to top."""

    def __init__(
        self,
        name: str,
        microvm: MicroVM,
        lock: SystemLock,
        *,
        store: Store,
        project_dir: Path,
        progress: Progress,
    ) -> None:
        self._name = name
        self._microvm = microvm
        self._lock = lock
        self._store = store
        self._project_dir = project_dir
        self._progress = progress
        self._layers: list[Layer] = []

    def build(self) -> GuestSystem:
        """Return the guest system, made or found in the store. Raises `MicroVMError`."""
        kernel = self._kernel()
        for locked in self._lock.layers[1:]:
            if locked.packages:
                self._packages(locked.name, locked.packages)
        release = self._release(kernel)
        about = f"{describe(self._microvm.system.release)}, kernel {release}"
        self._configuration(about)
        return self._system(kernel, release, about)

    def _release(self, kernel: str) -> str:
        return (self._store.item(kernel) / "release").read_text().strip()

    def _kernel(self) -> str:
        packages = self._lock.layers[0].packages
        flavour = kernel_flavour(self._microvm)
        inputs: dict[str, Any] = {
            "packages": [package.sha256 for package in packages],
            "script": runtime.initrd_script(),
            "modules": [list(BOOT_MODULES), list(PLAIN_MODULES)],
            "depmod": image.version("depmod", "kmod"),
        }
        if flavour in ("cloud", "generic"):
            if flavour == "generic" and self._microvm.system.kernel is None:
                why = f"the generic kernel: {'; '.join(reasons_for_generic(self._microvm))}"
                self._progress(Event(step="kernel", detail=why, note=True))
            return self._layer("kernel", "build_kernel", inputs, packages)
        directory = self._project_dir / flavour
        # Copied: a namespace could not read a file of mode 0600, as vmlinuz often is.
        with self._store.temporary("kernel") as staged:
            inputs["directory"] = kernel_directory.archive(directory, staged / "kernel.tar")
            binds = {"kernel": Bind(staged)}
            return self._layer("kernel", "build_kernel", inputs, packages, binds=binds)

    def _packages(self, name: str, packages: Sequence[LockedPackage]) -> None:
        task = "build_base" if name == "base" else "build_packages"
        inputs = {"packages": [package.sha256 for package in packages]}
        self._layer(name, task, inputs, packages)

    def _configuration(self, description: str) -> None:
        contents = configuration.collect(
            self._name, self._microvm, self._lock, description, self._project_dir
        )
        run = list(self._microvm.system.run)
        declared = enumerate(self._microvm.system.files.values())
        sources = {number: file.source for number, file in declared if file.source is not None}
        with ExitStack() as stack:
            binds = {}
            digests = {}
            if sources:  # a build with nothing to do writes nothing
                staged = stack.enter_context(self._store.temporary("sources"))
                binds["sources"] = Bind(staged)
                for number, source in sources.items():
                    digests[number] = self._archive(source, staged / f"{number}.tar")
            self._layer(
                "configuration",
                "build_configuration",
                {"contents": contents, "run": run, "sources": digests},
                (),
                binds=binds,
                network=self._microvm.system.network,
            )

    def _archive(self, source: str, target: Path) -> str:
        try:
            return configuration.archive(self._project_dir / source, target)
        except OSError as error:
            raise files.explain(error, f"copy {source} into the guest") from error

    def _layer(
        self,
        name: str,
        task: str,
        inputs: dict[str, Any],
        packages: Sequence[LockedPackage],
        *,
        binds: dict[str, Bind] | None = None,
        network: bool = False,
    ) -> str:
        """Add a layer on top of those so far; return the name of its tree's item."""
        lowers = [layer.tree for layer in self._layers if layer.name != "kernel"]
        key: dict[str, Any] = {
            "recipe": RECIPE,
            "lowers": lowers,
            "date": self._lock.date,
            "architecture": architecture(),
            **inputs,
        }
        tree = item_name(name, key)
        uuid = layer_uuid(tree)
        how: dict[str, Any] | None = None
        packed: str | None = None
        if self._microvm.store_on_disk:
            how = image.settings(self._microvm, uuid, self._lock.date)
            packed = item_name(f"{name}-image", [tree, how])
        arguments: dict[str, Any] = {
            "lowers": lowers,
            "packages": [package.sha256 for package in packages],
            "date": self._lock.date,
            "image": how,
            "step": f"{name} layer",
            **{part: inputs[part] for part in ("contents", "run", "script") if part in inputs},
        }
        making = _Making(self._store, self._progress, packages, dict(binds or {}), network)
        if packed and not self._store.has(packed):
            self._store.add(
                packed, lambda out: making.both(tree, task, arguments, out), progress=self._progress
            )
        elif not self._store.has(tree):
            making.tree(tree, task, {**arguments, "image": None}, None)
        self._layers.append(
            Layer(
                name=name,
                tree=tree,
                image=packed,
                kind=self._microvm.store_disk_type if packed else None,
                uuid=uuid,
            )
        )
        return tree

    def _system(self, kernel: str, release: str, about: str) -> GuestSystem:
        kernel_files = self._store.item(kernel)
        features = (kernel_files / "features").read_text().split()
        draft = GuestSystem(
            name="",
            source="debian",
            description=about,
            architecture=platform.machine(),
            kernel=kernel,
            kernel_release=release,
            initrd=kernel,
            features=tuple(features),
            layers=tuple(self._layers),
            kernel_params=runtime.KERNEL_PARAMS,
        )
        name = item_name("system", to_plain(draft))
        system = GuestSystem(**{**_shallow(draft), "name": name})

        def make(directory: Path) -> None:
            import json

            (directory / "system.json").write_text(json.dumps(to_plain(system), indent=1) + "\n")
            needed = {kernel, *(layer.tree for layer in self._layers)}
            needed |= {layer.image for layer in self._layers if layer.image}
            (directory / "references").write_text("".join(f"{item}\n" for item in sorted(needed)))

        self._store.add(name, make)
        return system


class _Making:
    """Makes the items of one layer."""

    def __init__(
        self,
        store: Store,
        progress: Progress,
        packages: Sequence[LockedPackage],
        binds: dict[str, Bind],
        network: bool,
    ) -> None:
        self._store = store
        self._progress = progress
        self._packages = packages
        self._binds = binds
        self._network = network

    def both(self, tree: str, task: str, arguments: dict[str, Any], out: Path) -> None:
        """Make the image in `out`, and the tree's item if it is not there."""
        out.chmod(0o777)
        if self._store.has(tree):
            self._inside("pack", {"tree": tree, "image": arguments["image"]}, {"image": out})
        else:
            self.tree(tree, task, arguments, out)
        if not (out / "image").exists():  # another process made the tree meanwhile
            self._inside("pack", {"tree": tree, "image": arguments["image"]}, {"image": out})
        out.chmod(0o755)
        collect.write_checksums(out, "image")
        (out / "references").write_text(f"{tree}\n")

    def tree(self, tree: str, task: str, arguments: dict[str, Any], image_out: Path | None) -> None:
        """Make the tree's item; and with `image_out` its image in the same go."""
        fetch(self._packages, self._store, self._progress)

        def make(out: Path) -> None:
            out.chmod(0o777)
            binds = {"out": out}
            if image_out is not None:
                binds["image"] = image_out
            try:
                result = self._inside(task, arguments, binds)
            except CommandFailed as error:
                self._blame_packages(error)
                raise
            out.chmod(0o755)
            if self._packages:
                downloads.write_packages(out, [package.sha256 for package in self._packages])
            if isinstance(result, dict):
                for name, text in result.items():
                    (out / name).write_text(text)
                collect.write_checksums(out, "vmlinuz", "initrd")

        self._store.add(tree, make, progress=self._progress)

    def _blame_packages(self, error: CommandFailed) -> None:
        """Raise `HostError` when kept packages are damaged, and keep those no longer."""
        damaged = []
        for package in self._packages:
            kept = self._store.packages / f"{package.sha256}.deb"
            if collect.digest(kept) != package.sha256:
                damaged.append(package.name)
                kept.unlink()
        if damaged:
            raise HostError(
                f"the store's copies of these packages were damaged: {', '.join(damaged)}",
                hint="they are removed: run the same command again, which fetches them anew",
            ) from error

    def _inside(self, task: str, arguments: dict[str, Any], writable: dict[str, Path]) -> Any:
        binds = {name: Bind(path, read_only=False) for name, path in writable.items()}
        # Item by item: the store's own directory, or one above it, may be closed to others.
        binds["store/.packages"] = Bind(self._store.packages)
        for name in (*arguments.get("lowers", ()), *filter(None, [arguments.get("tree")])):
            binds[f"store/{name}"] = Bind(self._store.item(name))
        binds |= self._binds
        return run_inside(
            f"{_TASKS}:{task}",
            arguments,
            doing=f"make the {arguments.get('step', 'image')}",
            binds=binds,
            ids=self._store.ids,
            network=self._network,
            progress=self._progress,
            timeout_s=BUILD_TIMEOUT_S,
        )


def fetch(packages: Sequence[LockedPackage], store: Store, progress: Progress) -> None:
    """Download the packages that are not kept yet, verified by their locked hashes.

    Raises `MicroVMError` when a mirror no longer has one.
    """
    missing = [package for package in packages if not _is_kept(package, store)]
    if not missing:
        return
    if gone := [package.name for package in missing if not package.url]:
        raise MicroVMError(
            f"the local package {gone[0]} is not the one that was locked",
            hint="run microvm lock --update",
        )
    total = sum(package.size for package in missing)
    count = counted(len(missing), "package")
    progress(Event(step="download", detail=count, done=0, total=total))
    done = 0
    try:
        with store.temporary("download") as directory:
            apt = Apt.prepare(directory / "apt", directory / "lists", (), architecture())
            for start in range(0, len(missing), 20):
                batch = missing[start : start + 20]
                _download(batch, apt, directory, store)
                done += sum(package.size for package in batch)
                progress(Event(step="download", detail=batch[-1].name, done=done, total=total))
        files.sync_directory(store.packages)
    except OSError as error:
        raise files.explain(error, f"keep {count} in the store") from error
    progress(Event(step="download", detail=count, done=total, total=total, finished=True))


def _is_kept(package: LockedPackage, store: Store) -> bool:
    path = store.packages / f"{package.sha256}.deb"
    try:
        whole = path.stat().st_size == package.size
    except FileNotFoundError:
        return False
    return whole and downloads.use(path)


def _download(batch: Sequence[LockedPackage], apt: Apt, directory: Path, store: Store) -> None:
    try:
        apt.download(batch, directory)
    except (CommandFailed, DeadlineExceeded) as error:
        error.hint = (
            "if the mirror no longer has a locked version: microvm lock --update; "
            "otherwise check the network and run the same command again"
        )
        raise
    for package in batch:
        _settle(directory / f"{package.sha256}.deb")
    # What is there under its name is taken for whole, also after a power cut.
    files.sync_filesystem(directory)
    for package in batch:
        name = f"{package.sha256}.deb"
        (directory / name).replace(store.packages / name)


def _settle(downloaded: Path) -> None:
    """Make a download a file of its own that all may read."""
    if downloaded.is_symlink():  # from a repository on this machine
        data = downloaded.read_bytes()
        downloaded.unlink()
        downloaded.write_bytes(data)
    downloaded.chmod(0o644)
    downloads.use(downloaded)  # apt gives it the mirror's time


def _shallow(system: GuestSystem) -> dict[str, Any]:
    from dataclasses import fields

    return {f.name: getattr(system, f.name) for f in fields(system)}
