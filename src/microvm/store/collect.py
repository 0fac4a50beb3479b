"""What of a store is still needed, what is not, and whether it is whole."""

import hashlib
import os
import typing
from dataclasses import dataclass
from pathlib import Path

from microvm.host import namespace, usage
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
    lines = [f"{_digest(directory / name)}  {name}\n" for name in sorted(names)]
    (directory / CHECKSUMS).write_text("".join(lines))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collect(store: "Store", *, dry_run: bool, everything: bool) -> Collected:
    """See `Store.collect`."""
    needed = _reachable(store, dry_run=dry_run)
    names = store.names()
    garbage = [name for name in names if name not in needed]
    abandoned = store.abandoned()
    doomed = downloads.unneeded(store, needed, everything=everything)
    freed = sum(sizes(store, [*(store.path / name for name in garbage), *abandoned]))
    freed += usage.freed((*doomed.packages, *doomed.lists))
    if not dry_run:
        for name in garbage:
            _remove(store, name)
        for path in abandoned:
            namespace.remove_tree(path, store.ids)
        downloads.remove(store, doomed)
    return Collected(
        items=tuple(garbage),
        abandoned=tuple(path.name for path in abandoned),
        packages=len(doomed.packages),
        lists=len(doomed.lists),
        freed=freed,
        kept=len(names) - len(garbage),
    )


def _remove(store: "Store", name: str) -> None:
    """Take the item out of sight in one step, then delete it; a kill leaves it to the next run."""
    with store.temporary(name) as doomed:
        (store.path / name).rename(doomed / name)
        namespace.remove_tree(doomed / name, store.ids)


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
            digest, _, member = line.partition("  ")
            path = store.path / name / member
            if not path.is_file() or _digest(path) != digest:
                problems.append(f"{name}/{member} is not what was built")
    abandoned = tuple(path.name for path in store.abandoned())
    return Verified(len(names), tuple(problems), abandoned)
