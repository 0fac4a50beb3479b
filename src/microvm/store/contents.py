"""What a store holds and how much of the disk that takes."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microvm.host import usage
from microvm.store import downloads

if typing.TYPE_CHECKING:
    from microvm.store.store import Store


@dataclass(frozen=True, slots=True)
class Amount:
    """How many of a kind, and their bytes on disk."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a store holds."""

    items: dict[str, int]
    """Bytes on disk by name."""
    packages: Amount
    lists: Amount
    abandoned: Amount
    """Left by builds that were killed."""


def contents(store: "Store") -> Contents:
    """See `Store.contents`."""
    names = store.names()
    found = downloads.all_of(store)
    abandoned = store.abandoned()
    return Contents(
        dict(zip(names, sizes(store, [store.path / name for name in names]), strict=True)),
        Amount(len(found.packages), usage.freed(found.packages)),
        Amount(len(found.lists), usage.freed(found.lists)),
        Amount(len(abandoned), sum(sizes(store, abandoned))),
    )


def sizes(store: "Store", directories: Sequence[Path]) -> list[int]:
    """Return the bytes on disk of each of these directories in the store."""
    return usage.each(directories, lambda: store.ids)
