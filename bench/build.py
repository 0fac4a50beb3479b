"""Builds: the whole root, after a change, and a second guest beside the first."""

import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.bench import RELEASE, Bench, Project
from bench.measure import Bound, Contender, PeerError, Row, Series, absent, interleaved
from bench.peers import Mkosi, Mmdebstrap, Packages

AGAIN = "mmdebstrap again"
SMALL = ("hello", "less", "bc", "tree", "pv")
TEN = ("bc", "file", "jq", "lsof", "rsync", "socat", "strace", "tcpdump", "tree", "zip")


def rows(bench: Bench) -> Iterator[Row]:
    """Measure; the peer of the whole root is also that of the rows about changes."""
    project = bench.project("one", _one())
    project.build(out_link=bench.directory / "one-result")
    lock = project.directory / "microvm.lock"
    packages = Packages.of(lock, "one", bench.store, bench.directory / "archives")
    cold = _cold(bench, project, packages)
    yield cold
    again = replace(cold.peers[0], name=AGAIN)
    yield _changed(bench, project, packages, again)
    yield _package(bench, project, again)
    yield _unchanged(bench, project)
    yield from _second(bench)


def _one(file: str = "a", unit: str = "a", user: str = "a", package: str = "") -> str:
    return f"""[microvms.one]
mem = 512
[microvms.one.system]
release = "{RELEASE}"
packages = [{f'"{package}"' if package else ""}]
files."/etc/x".text = "{file}"
units."x.service" = {{ text = "[Service]\\nExecStart=/bin/echo {unit}\\n", enable = true }}
users."user-{user}" = {{}}
"""


def _cold(bench: Bench, project: Project, packages: Packages) -> Row:
    """The root without the kernel's modules, as the peer makes it."""
    peer = Mmdebstrap(packages, bench.directory / "peer")
    for item in bench.items():
        if item.endswith(("-kernel", "-kernel-image")):
            bench.keep(item)
    link = bench.directory / "one-result"

    def forget() -> None:
        link.unlink(missing_ok=True)
        bench.collect()

    contenders = (
        Contender(name="ours", run=lambda: project.build(out_link=link), before=forget),
        Contender(name="mmdebstrap + mkfs.erofs", run=peer.build, before=peer.clear),
    )
    ours, theirs = interleaved(bench.rounds(3), contenders)
    peer.clear()
    return Row(
        what="cold build of a systemd guest's root",
        ours=ours,
        peers=(theirs,),
        bound=Bound(at_most=0.8, stretch=0.6, relative=True),
        how=f"{len(packages.names)} packages that are downloaded already, on disk. Ours: all layers "
        "but the kernel's, and the runner. The peer: a directory and an erofs image of it",
        why="maintainer scripts and dpkg's own work, which are the same on both sides, take most of it",
    )


def _changed(bench: Bench, project: Project, packages: Packages, again: Series) -> Row:
    """The slowest of a changed file, a changed unit and a changed user."""
    numbers = itertools.count()

    def change(kind: str) -> Callable[[], None]:
        return lambda: project.declare(_one(**{kind: f"changed-{next(numbers)}"}))

    kinds = ("file", "unit", "user")
    contenders = [Contender(name=kind, run=project.build, before=change(kind)) for kind in kinds]
    try:
        mkosi = Mkosi.prepare(packages, bench.directory / "mkosi")
    except PeerError as error:
        peer = absent("mkosi -i", str(error))
    else:
        contenders.append(
            Contender(
                name="mkosi -i",
                run=mkosi.build,
                before=lambda: mkosi.change(f"changed {next(numbers)}"),
            )
        )
        peer = absent("mkosi -i", "")
    found = interleaved(bench.rounds(5), contenders)
    ours = max(found[: len(kinds)], key=lambda series: series.median)
    return Row(
        what="one changed file, unit or user, then build",
        ours=ours,
        peers=(found[len(kinds)] if len(found) > len(kinds) else peer, again),
        bound=Bound(at_most=1, stretch=0.5),
        how="the slowest of the three kinds of change. mkosi: one changed file, packages and root "
        "cached, output a directory",
        why="most of it is starting the programs: ours, a worker in a namespace, mkfs.erofs",
    )


def _package(bench: Bench, project: Project, again: Series) -> Row:
    for package in SMALL:  # downloaded and thrown away
        project.declare(_one(package=package))
        project.build()
    bench.collect()
    packages = itertools.cycle(SMALL)
    contender = Contender(
        name="ours",
        run=project.build,
        before=lambda: project.declare(_one(package=next(packages))),
    )
    (ours,) = interleaved(bench.rounds(len(SMALL)), [contender])
    return Row(
        what="one small package more, then build",
        ours=ours,
        peers=(again,),
        bound=Bound(at_most=6, stretch=3),
        how=f"each of {', '.join(SMALL)}, downloaded already, resolved by apt and written into the lock",
        why="apt resolves in a universe of its own, and the guest's dpkg reads its whole database",
    )


def _unchanged(bench: Bench, project: Project) -> Row:
    project.declare(_one())
    project.build()
    (ours,) = interleaved(bench.rounds(9), [Contender(name="ours", run=project.build)])
    return Row(
        what="nothing changed: `microvm build`",
        ours=ours,
        bound=Bound(at_most=0.3, stretch=0.15),
        how="the whole process",
        why="starting Python and importing pydantic is most of it",
    )


def _second(bench: Bench) -> Iterator[Row]:
    """A second MicroVM with packages of its own on the same `[defaults]`."""
    ten = ", ".join(f'"{name}"' for name in TEN)
    project = bench.project(
        "two",
        f'[defaults]\nmem = 512\nsystem.release = "{RELEASE}"\nsystem.packages = ["less", "openssh-client"]\n'
        f"[microvms.first]\n[microvms.second]\nsystem.packages = [{ten}]\n",
    )
    project.build("first", out_link=bench.directory / "first-result")
    before = bench.items()
    project.build("second")
    added = bench.items() - before
    lock = project.directory / "microvm.lock"
    packages = Packages.of(lock, "second", bench.store, bench.directory / "archives-two")
    peer = Mmdebstrap(packages, bench.directory / "peer")
    contenders = (
        Contender(name="ours", run=lambda: project.build("second"), before=bench.collect),
        Contender(name=AGAIN, run=peer.build, before=peer.clear),
    )
    ours, again = interleaved(bench.rounds(3), contenders)
    yield Row(
        what="second MicroVM with ten packages of its own on the same `[defaults]`: time",
        ours=ours,
        peers=(again,),
        bound=Bound(at_most=0.4, stretch=0.25, relative=True),
        how=f"{', '.join(TEN)} and what they depend on, downloaded already; the peer makes the "
        f"whole root with its {len(packages.names)} packages",
        why="the guest's dpkg unpacks and configures them, as it does for the peer",
    )
    yield _disk(bench, added, peer, again)
    peer.clear()


def _disk(bench: Bench, added: set[str], peer: Mmdebstrap, again: Series) -> Row:
    what = "the same: disk beyond those packages"
    bound = Bound(at_most=5)
    if os.geteuid():
        return Row(what=what, ours=absent("ours", "only root can look into the trees"), bound=bound)
    if again.missing:
        return Row(what=what, ours=absent("ours", f"{AGAIN}: {again.missing}"), bound=bound)
    grown = sum(_used(bench.store / name) for name in added)
    layer = next(bench.store / name for name in added if name.endswith("-packages"))
    payload = _payload(layer / "tree", bench.directory / "payload")
    whole = _used(peer.root) + _used(Path(f"{peer.root}.erofs"))
    return Row(
        what=what,
        ours=Series("ours", ((grown - payload) * 100 / whole,)),
        unit="%",
        bound=bound,
        how=f"the store grew by {grown / 1e6:.1f} MB (trees and images), of which {payload / 1e6:.1f} MB "
        f"are the packages' files, once in the tree and once in the image; the peer's second root "
        f"takes {whole / 1e6:.1f} MB (tree and image)",
    )


def _payload(tree: Path, copy: Path) -> int:
    """Return the disk that the files of a layer's packages take, as files and in an image."""
    copy.mkdir()
    for listed in (tree / "var/lib/dpkg/info").glob("*.list"):
        for name in listed.read_text().splitlines():
            source, target = tree / name.lstrip("/"), copy / name.lstrip("/")
            # A whiteout is no file, and dpkg lists what was left out by configuration too.
            if source.is_symlink() or (source.exists() and stat.S_ISREG(source.lstat().st_mode)):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
    image = Path(f"{copy}.erofs")
    subprocess.run(["mkfs.erofs", "-zlz4", str(image), str(copy)], check=True, capture_output=True)
    total = _used(copy) + _used(image)
    shutil.rmtree(copy)
    image.unlink()
    return total


def _used(path: Path) -> int:
    """Return the bytes on disk of a file or of all that lies in a directory; links count once."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_blocks * 512
    seen = {}
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            info = (Path(directory) / name).lstat()
            seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())
