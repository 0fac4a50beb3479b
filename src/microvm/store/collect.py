"""What of a store is still needed, what is not, and whether it is whole."""

import fcntl
import hashlib
import os
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from microvm.host import namespace, usage
from microvm.host.namespace import IdRange
from microvm.store import downloads
from microvm.store.contents import sizes

if typing.TYPE_CHECKING:
    from microvm.store.store import Store

CHECKSUMS = "checksums"
"""File of an item: lines `SHA256  NAME`, as sha256sum(1) writes them."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, or would remove."""

    items: tuple[str, ...]
    abandoned: tuple[str, ...]
    packages: int
    """Number of downloaded packages."""
    lists: int
    """Number of package lists."""
    freed: int
    """Bytes on disk of all these."""
    kept: int
    """Number of items that stay."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether a store is whole."""

    items: int
    problems: tuple[str, ...]
    abandoned: tuple[str, ...]
    """Left by builds that were killed; harmless, and removed by a collection."""


def write_checksums(directory: Path, *names: str) -> None:
    """Record the checksums of an item's files, for `verify`."""
    lines = [f"{digest(directory / name)}  {name}\n" for name in sorted(names)]
    (directory / CHECKSUMS).write_text("".join(lines))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collect(store: "Store", *, dry_run: bool, everything: bool) -> Collected:
    """See `Store.collect`."""
    needed = _reachable(store, dry_run=dry_run)
    names = store.names()
    garbage = _referrers_first(store, {name for name in names if name not in needed})
    abandoned = store.abandoned()
    doomed = downloads.unneeded(store, needed, everything=everything)
    freed = sum(sizes(store, [*(store.path / name for name in garbage), *abandoned]))
    freed += usage.freed((*doomed.packages, *doomed.lists))
    if not dry_run:
        for name in garbage:
            _remove(store, name)
        store.clear()
        downloads.remove(store, doomed)
    return Collected(
        items=tuple(garbage),
        abandoned=tuple(path.name for path in abandoned),
        packages=len(doomed.packages),
        lists=len(doomed.lists),
        freed=freed,
        kept=len(names) - len(garbage),
    )


def _referrers_first(store: "Store", names: set[str]) -> list[str]:
    """Order items so that, wherever a removal breaks off, what is left refers to nothing gone."""
    graph = {name: [other for other in store.references(name) if other in names] for name in names}
    return [*TopologicalSorter(graph).static_order()][::-1]


def _remove(store: "Store", name: str) -> None:
    """Take the item out of sight in one step, then delete it; a kill leaves it to the next run."""
    with store.temporary(name) as doomed:
        (store.path / name).rename(doomed / name)
        namespace.remove_tree(doomed / name, lambda: store.ids)


def unlocked(directory: Path) -> list[Path]:
    """Return the entries of a directory that no process has locked."""
    return [path for path in sorted(directory.iterdir()) if not _is_held(path)]


def _is_held(path: Path) -> bool:
    with _claimed(path) as ours:
        return not ours


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Lock what is at a path, if nobody else has; yield whether that is so."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = True
    except BlockingIOError:
        ours = False
    try:
        yield ours
    finally:
        os.close(descriptor)


def take_away(path: Path, ids: Callable[[], IdRange]) -> None:
    """Remove a file, link or tree that no process has locked. Raises `OSError`, `MicroVMError`."""
    if path.is_symlink():
        path.unlink()
        return
    with _claimed(path) as ours:
        if ours and path.is_dir():
            namespace.remove_tree(path, ids)
        elif ours:
            path.unlink()


def _reachable(store: "Store", *, dry_run: bool) -> set[str]:
    """Return the items that roots point to, with all that they refer to."""
    queue: list[str] = []
    for record in store.roots.iterdir():
        if record.name.startswith("."):
            continue
        found = _targets(record.readlink(), store.path)
        if found is not None:
            queue += found
        elif not dry_run:
            record.unlink()
    reached: set[str] = set()
    while queue:
        name = queue.pop()
        if name not in reached and store.has(name):
            reached.add(name)
            queue += store.references(name)
    return reached


def _targets(path: Path, store: Path) -> list[str] | None:
    """Return the items that a root leads to, or None when it is gone."""
    if path.is_symlink():
        links = [path]
    elif path.is_dir():
        links = [entry for entry in path.iterdir() if entry.is_symlink()]
    else:
        return None
    names = []
    for link in links:
        target = Path(os.path.normpath(link.parent / link.readlink()))
        if target.parent == store:
            names.append(target.name)
    return names or None


def verify(store: "Store") -> Verified:
    """See `Store.verify`."""
    problems = []
    names = store.names()
    for name in names:
        problems += [
            f"{name} refers to {other}, which is missing"
            for other in store.references(name)
            if not store.has(other)
        ]
        listed = store.path / name / CHECKSUMS
        for line in listed.read_text().splitlines() if listed.is_file() else ():
            recorded, _, member = line.partition("  ")
            path = store.path / name / member
            if not path.is_file() or digest(path) != recorded:
                problems.append(f"{name}/{member} is not what was built")
    problems += [
        f"{path} is not what was downloaded: remove it"
        for path in sorted(store.packages.glob("*.deb"))
        if digest(path) != path.stem
    ]
    abandoned = tuple(path.name for path in store.abandoned())
    return Verified(len(names), tuple(problems), abandoned)
