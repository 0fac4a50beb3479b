"""The tasks that build layers, as `host.namespace` runs them: uid 0 of a fresh namespace.

Their paths: `store` (read-only, the whole store), `out` (the tree's item), `image` (the image's
item), `sourceN` (declared files). Each task ends with packed, finished layers or raises.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from microvm.errors import MicroVMError
from microvm.guests.debian import chroot, configuration, image, initrd, kernel_directory, tree
from microvm.host import process
from microvm.model.progress import Event, Progress, counted

_EXCLUDED = ("doc", "man", "info", "lintian", "locale", "groff", "linda", "bug")
DPKG_CONFIGURATION = "".join(
    [
        "# A MicroVM's guest has no use for these; licences stay.\n",
        *(f"path-exclude=/usr/share/{name}/*\n" for name in _EXCLUDED),
        "path-include=/usr/share/doc/*/copyright\n",
        "path-include=/usr/share/locale/locale.alias\n",
        "force-unsafe-io\n",
    ]
)
_FEATURES = (
    ("9p", "9pnet_virtio"), ("virtiofs", "virtiofs"), ("vsock", "vmw_vsock_virtio_transport"),
    ("virtio_mmio", "virtio_mmio"), ("pvpanic", "pvpanic"), ("pvpanic", "pvpanic_pci"),
)  # fmt: skip
"""What launching asks of a kernel, and the module that has it."""

_NAME = re.compile(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)")
"""A package's name in a relation field (deb-control(5))."""

_MERGED = ("bin", "sbin", "lib", "lib64")
_DPKG_DEB = ("dpkg-deb", "dpkg")
_DPKG = ["dpkg", "--force-depends", "--force-confdef", "--force-confold", "--force-unsafe-io"]


def build_base(arguments: dict[str, Any], paths: dict[str, Path], report: Progress) -> None:
    """Make the base layer: packages extracted, then unpacked and configured by their own dpkg."""
    root = _start(paths, [])
    with root as merged:
        _skeleton(merged)
        debs = _packages(arguments, paths)
        report(Event(step="base layer", detail=f"extract {counted(len(debs), 'package')}"))
        _extract(debs, merged)
        _install(merged, [debs], arguments, report)
    _finish(arguments, paths, [])


def build_packages(arguments: dict[str, Any], paths: dict[str, Path], report: Progress) -> None:
    """Make a layer of further packages over the layers below it."""
    lowers = _lowers(arguments, paths)
    with _start(paths, lowers) as merged:
        debs = _packages(arguments, paths)
        _install(merged, _waves(debs), arguments, report)
    _finish(arguments, paths, lowers)


def build_configuration(
    arguments: dict[str, Any], paths: dict[str, Path], report: Progress
) -> None:
    """Make the configuration layer: accounts, files, units, and the declared commands' results."""
    lowers = _lowers(arguments, paths)
    contents, date = arguments["contents"], arguments["date"]
    with _start(paths, lowers) as merged:
        configuration.write(merged, contents, paths)
        if contents["systemctl"] or arguments["run"] or contents["locale"]:
            with chroot.furnished(merged):
                for verb, unit in contents["systemctl"]:
                    doing = f"{verb} the unit {unit}"
                    chroot.run(merged, ["systemctl", verb, "--", unit], date=date, doing=doing)
                configuration.make_locale(merged, contents["locale"], date)
                _run_commands(merged, arguments, report)
    _finish(arguments, paths, lowers, keep=[*contents["declared"]])


def _run_commands(root: Path, arguments: dict[str, Any], report: Progress) -> None:
    commands = arguments["run"]
    with chroot.resolving(root) if arguments["contents"]["network"] else nullcontext():
        for number, command in enumerate(commands):
            report(Event(step="run commands", detail=command, done=number, total=len(commands)))
            chroot.run(
                root,
                ["sh", "-ec", command],
                date=arguments["date"],
                doing=f"build the guest: system.run.{number} (`{command}`) failed",
            )


def build_kernel(
    arguments: dict[str, Any], paths: dict[str, Path], report: Progress
) -> dict[str, str]:
    """Make the kernel's layer of modules, and beside its tree `vmlinuz` and `initrd`.

    Returns the texts of the item's files `release` and `features`.
    """
    report(Event(step="kernel"))
    out = paths["out"]
    chroot.require_attributes(out)  # as for the other layers, whose overlay needs them
    extracted = out / "work"
    extracted.mkdir()
    if "kernel" in paths:
        kernel_directory.extract(paths["kernel"] / "kernel.tar", extracted)
    _extract(_packages(arguments, paths), extracted)
    modules = next(
        (
            found
            for found in (extracted / "usr/lib/modules", extracted / "lib/modules")
            if found.is_dir()
        ),
        None,
    )
    releases = sorted(entry.name for entry in modules.iterdir()) if modules else []
    if modules is None or len(releases) != 1:
        raise MicroVMError(f"the kernel has modules of {releases or 'no release'}, not of one")
    target = out / "tree/usr/lib/modules"
    target.mkdir(parents=True)
    (modules / releases[0]).rename(target / releases[0])
    for name in ("build", "source"):
        (target / releases[0] / name).unlink(missing_ok=True)
    link = out / "tree/lib"
    link.symlink_to("usr/lib")
    initrd.unpack_modules(target)
    depmod = process.require_program("depmod", "kmod")
    process.run([depmod, "-b", out / "tree", releases[0]], timeout_s=120, doing="index the modules")
    _take_vmlinuz([*extracted.glob("boot/vmlinuz-*"), target / releases[0] / "vmlinuz"], out)
    busybox = next(
        path for path in (extracted / "usr/bin/busybox", extracted / "bin/busybox") if path.exists()
    )
    initrd.write_initrd(
        out / "initrd",
        modules_tree=out / "tree",
        kernel_release=releases[0],
        busybox=busybox,
        script=arguments["script"].encode(),
    )
    known = {*initrd.built_in(out / "tree", releases[0])}
    listed = (target / releases[0] / "modules.dep").read_text()
    known |= {initrd.module_name(line.partition(":")[0]) for line in listed.splitlines()}
    features = sorted({name for name, module in _FEATURES if module in known})
    link.unlink()
    shutil.rmtree(extracted)
    _finish(arguments, paths, [])
    return {"release": f"{releases[0]}\n", "features": "".join(f"{name}\n" for name in features)}


def _take_vmlinuz(places: Sequence[Path], out: Path) -> None:
    """Move the kernel out of where packages have it: /boot, in Debian 14 beside its modules."""
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise MicroVMError("the kernel's packages hold no vmlinuz")
    found.rename(out / "vmlinuz")
    (out / "vmlinuz").chmod(0o644)


def pack(arguments: dict[str, Any], paths: dict[str, Path], report: Progress) -> None:
    """Make the image of a tree that is in the store already."""
    source = paths["store"] / arguments["tree"] / "tree"
    report(Event(step="image", detail=arguments["tree"]))
    image.pack(source, paths["image"] / "image", arguments["image"])


def _start(paths: dict[str, Path], lowers: list[Path]) -> Any:
    empty = paths["scratch"] / "empty"
    empty.mkdir(exist_ok=True)
    out = paths["out"]
    return chroot.overlay(lowers or [empty], out / "tree", out / "work", paths["scratch"] / "root")


def _lowers(arguments: dict[str, Any], paths: dict[str, Path]) -> list[Path]:
    return [paths["store"] / name / "tree" for name in arguments["lowers"]]


def _packages(arguments: dict[str, Any], paths: dict[str, Path]) -> list[Path]:
    return [paths["store"] / ".packages" / f"{digest}.deb" for digest in arguments["packages"]]


def _finish(
    arguments: dict[str, Any],
    paths: dict[str, Path],
    lowers: list[Path],
    keep: Sequence[str] = (),
) -> None:
    built = paths["out"] / "tree"
    tree.finish(built, lowers, arguments["date"], keep)
    if arguments["image"]:
        image.pack(built, paths["image"] / "image", arguments["image"])
    built.chmod(0o700)


def _skeleton(root: Path) -> None:
    """What packages expect before the first of them is there: /usr merged, dpkg's database."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("etc/dpkg/dpkg.cfg.d", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/dpkg/dpkg.cfg.d/microvm").write_text(DPKG_CONFIGURATION)
    for name in ("status", "available"):
        (root / "var/lib/dpkg" / name).touch()


def _extract(debs: Sequence[Path], root: Path) -> None:
    """Extract packages side by side; the same paths of several packages are directories."""
    excludes = [f"--exclude=./usr/share/{name}" for name in _EXCLUDED]
    dpkg_deb = str(process.require_program(*_DPKG_DEB))
    tar = str(process.require_program("tar", "tar"))
    extract = [tar, "-x", "--keep-directory-symlink", "-C", str(root), *excludes, "-f", "-"]

    def one(deb: Path) -> None:
        show = [dpkg_deb, "--fsys-tarfile", str(deb)]
        process.pipe(show, extract, timeout_s=600, doing=f"extract {deb.name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, debs))


def _install(
    root: Path, waves: Sequence[Sequence[Path]], arguments: dict[str, Any], report: Progress
) -> None:
    """Let the guest's dpkg unpack and configure packages, wave by wave; services don't start."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    date, step = arguments["date"], arguments["step"]
    with chroot.furnished(root):
        archives = root / "tmp/archives"
        archives.mkdir()
        for debs in filter(None, waves):
            names = _hand_over(debs, archives)
            report(Event(step=step, detail=f"unpack {counted(len(debs), 'package')}"))
            chroot.run(root, [*_DPKG, "--unpack", *names], date=date, doing="unpack packages")
            report(Event(step=step, detail="configure packages"))
            chroot.run(root, [*_DPKG, "--configure", "-a"], date=date, doing="configure packages")
    policy.unlink()


def _waves(debs: Sequence[Path]) -> list[list[Path]]:
    """Split packages into those that others' preinst scripts rely on, and the rest."""
    dpkg_deb = str(process.require_program(*_DPKG_DEB))

    def control(deb: Path) -> dict[str, str]:
        argv = [dpkg_deb, "-f", str(deb), "Package", "Pre-Depends", "Depends"]
        shown = process.run(argv, timeout_s=60, doing=f"read {deb.name}").stdout.decode()
        return dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)

    with ThreadPoolExecutor(4) as pool:
        controls = dict(zip(debs, pool.map(control, debs), strict=True))
    first = needed_first({fields["Package"]: fields for fields in controls.values()})
    early = [deb for deb in debs if controls[deb]["Package"] in first]
    return [early, [deb for deb in debs if deb not in early]]


def needed_first(packages: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Return the packages that others of a set pre-depend on, with all they depend on in it."""

    def named(*relations: str) -> set[str]:
        return {name for text in relations for name in _NAME.findall(text)} & packages.keys()

    found: set[str] = set()
    queue = [name for fields in packages.values() for name in named(fields.get("Pre-Depends", ""))]
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            fields = packages[name]
            queue += named(fields.get("Pre-Depends", ""), fields.get("Depends", ""))
    return found


def _hand_over(debs: Sequence[Path], archives: Path) -> list[str]:
    """Make the packages visible in the chroot: a read-only bind of the directory that has them."""
    from microvm.host import linux

    if not any(archives.iterdir()):
        linux.mount(debs[0].parent, archives, None, linux.MS_BIND)
    return [f"/tmp/archives/{deb.name}" for deb in debs]  # noqa: S108
