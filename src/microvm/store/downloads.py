"""Packages and package lists that a store keeps: nothing refers to them, they save downloads.

A time of modification says when one was used last.
"""

import os
import re
import shutil
import time
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

if typing.TYPE_CHECKING:
    from microvm.store.store import Store

KEPT_DAYS = 30
"""A download that was used since is kept."""

PACKAGES = "packages"
"""File of an item: the SHA-256 of each package that it was made of, one a line."""

_LOCK = ".lock"
_LISTS = re.compile(r"[0-9a-f]{32}-lists(?:-state-[0-9a-f]{32})?")


@dataclass(frozen=True, slots=True)
class Downloads:
    """Some downloads of a store."""

    packages: tuple[Path, ...]
    lists: tuple[Path, ...]


def write_packages(directory: Path, digests: Iterable[str]) -> None:
    """Record which packages an item is made of, which keeps them as long as the item."""
    (directory / PACKAGES).write_text("".join(f"{digest}\n" for digest in digests))


def use(path: Path) -> bool:
    """Return whether a download is there, and note that it is used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:  # somebody else put it there; it is used all the same
        return path.exists()
    return True


def all_of(store: "Store") -> Downloads:
    """Return all downloads."""
    lists = (path for path in sorted(store.lists.iterdir()) if path.suffix != _LOCK)
    return Downloads(tuple(sorted(store.packages.iterdir())), tuple(lists))


def unneeded(store: "Store", reached: Iterable[str], *, everything: bool) -> Downloads:
    """Return what may go: not used for long, and no package of the items `reached`.

    `everything`: needed or not.
    """
    found = all_of(store)
    if everything:
        return found
    needed = {digest for name in reached for digest in _packages(store.path / name / PACKAGES)}
    return Downloads(
        tuple(p for p in found.packages if p.stem not in needed and _is_old(p)),
        # Anything else there was left by a process that was killed.
        tuple(p for p in found.lists if not _LISTS.fullmatch(p.name) or _is_old(p)),
    )


def _packages(listed: Path) -> list[str]:
    return listed.read_text().split() if listed.is_file() else []


def _is_old(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - KEPT_DAYS * 86400
    except FileNotFoundError:  # another process takes it away
        return False


def remove(store: "Store", doomed: Downloads) -> None:
    """Delete downloads while nobody builds; a kill leaves whole ones and what the next run clears.

    Raises `OSError`.
    """
    for path in doomed.packages:
        path.unlink()
    with store.temporary("lists") as directory:
        for path in doomed.lists:
            path.rename(directory / path.name)
            shutil.rmtree(directory / path.name)
    left = {path.name.partition("-state-")[0] for path in all_of(store).lists}
    for path in store.lists.glob(f"*{_LOCK}"):
        if path.stem not in left:
            path.unlink()
