"""The store: a directory of items named `HASH-KIND`, each complete or absent."""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from microvm.errors import MicroVMError, StateError
from microvm.host import files, namespace, places
from microvm.host.namespace import IdRange
from microvm.model.progress import Event, Progress, silent
from microvm.store import collect, contents
from microvm.store.collect import Collected, Verified
from microvm.store.contents import Contents

VARIABLE = "MICROVM_STORE"
CHOSEN_BY = "--store"
ITEM = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9.+_-]+")


def item_name(kind: str, inputs: Any) -> str:
    """Return the name of the item of this kind that follows from `inputs` (plain data)."""
    canonical = json.dumps([kind, inputs], sort_keys=True, separators=(",", ":"))
    return f"{hashlib.sha256(canonical.encode()).hexdigest()[:32]}-{kind}"


def default_path() -> Path:
    """Return where the store is unless a user says otherwise."""
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/microvm/store")
    return places.user_directory("XDG_DATA_HOME", ".local/share") / "microvm/store"


class Store:
    """Read-only build results below one directory. Safe for any number of processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packages = path / ".packages"
        self.lists = path / ".lists"
        self.roots = path / ".roots"
        self._temporary = path / ".tmp"
        self._locks = path / ".locks"
        self._use = f"use the store {path}"

    @classmethod
    def open(cls, path: Path | None = None) -> "Store":
        """Open a store, making its directories where they are missing. Raises `HostError`."""
        store = cls((path or default_path()).absolute())
        try:
            store.path.mkdir(parents=True, exist_ok=True)
            for directory in (store.packages, store.lists, store.roots, store._locks):
                if not directory.is_dir():
                    directory.mkdir(exist_ok=True)
                    directory.chmod(0o755)  # whatever the umask: builds read as other users
            # What is being built lies behind 0700, so that it may be open to sub-uids inside.
            store._temporary.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise files.explain(
                error, f"open the store {store.path}", chosen_by=CHOSEN_BY
            ) from error
        return store

    @cached_property
    def ids(self) -> IdRange:
        """The sub-uids that own the trees in this store. Raises `HostError` where there are
        none.
        """
        return namespace.id_range(self.path)

    def _ids(self) -> IdRange:
        return self.ids

    def has(self, name: str) -> bool:
        """Return whether the item is there."""
        return (self.path / name).is_dir()

    def item(self, name: str) -> Path:
        """Return the item's directory. Raises `StateError` when it is not there."""
        path = self.path / name
        if not path.is_dir():
            raise StateError(f"the store {self.path} has no {name}", hint="build it again")
        return path

    def add(self, name: str, make: Callable[[Path], None], *, progress: Progress = silent) -> Path:
        """Return the item, made by `make(directory)` if it isn't there yet.

        When another process is making it, wait and take its result. If `make` raises, nothing is
        left. Raises `HostError` when there is no space, and what `make` raises.
        """
        target = self.path / name
        if target.is_dir():
            return target
        waiting = _told(progress, f"another build of {name}")
        with files.lock(self._locks / name, passing=True, waiting=waiting, doing=self._use):
            if target.is_dir():
                return target
            with self.temporary(name) as directory:
                try:
                    make(directory)
                    files.sync_filesystem(directory)
                    directory.rename(target)
                    files.sync_directory(self.path)
                except OSError as error:
                    raise files.explain(error, f"add {name} to the store") from error
        return target

    @contextmanager
    def building(self, progress: Progress = silent) -> Iterator[None]:
        """Keep the collector out while items are added that no root reaches yet.

        Clears away first what killed builds have left.
        """
        waiting = _told(progress, "store gc, which another process runs")
        with files.lock(self._locks / "collect", shared=True, waiting=waiting, doing=self._use):
            self.clear()
            yield

    @contextmanager
    def temporary(self, label: str) -> Iterator[Path]:
        """Yield a fresh directory on the store's file system, gone afterwards unless renamed.

        A lock on it tells the collector that its owner lives.
        """
        try:
            directory, descriptor = self._fresh(label)
        except OSError as error:
            raise files.explain(
                error, "make a directory in the store", chosen_by=CHOSEN_BY
            ) from error
        try:
            yield directory
        finally:
            if directory.exists():
                # What went wrong before matters more; what stays goes with the next build.
                with suppress(OSError, MicroVMError):
                    namespace.remove_tree(directory, self._ids)
            os.close(descriptor)

    def _fresh(self, label: str) -> tuple[Path, int]:
        """Make a directory and lock it, faster than another build that clears the unlocked away."""
        while True:
            directory = self._temporary / f"{secrets.token_hex(8)}-{label}"
            directory.mkdir(mode=0o755)
            with suppress(FileNotFoundError):
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if directory.exists():
                    return directory, descriptor
                os.close(descriptor)

    def names(self) -> list[str]:
        """Return the names of all items, sorted."""
        return sorted(entry.name for entry in self.path.iterdir() if ITEM.fullmatch(entry.name))

    def references(self, name: str) -> tuple[str, ...]:
        """Return the items that an item names in its file `references`."""
        listed = self.path / name / "references"
        return tuple(listed.read_text().split()) if listed.is_file() else ()

    def add_root(self, link: Path, name: str) -> None:
        """Make `link` point to the item and keep the item as long as the link does so.

        Raises `StateError` when something else than a link is in the way, `HostError`.
        """
        link = link.absolute()
        try:
            if link.exists() and not link.is_symlink():
                raise StateError(f"{link} exists and is no link; it is left alone")
            files.replace_link(link, self.path / name)
            self.keep(link)
        except OSError as error:
            raise files.explain(error, f"make the link {link}") from error

    def keep(self, path: Path) -> None:
        """Keep every item that `path` is a link to, or that a link directly in it points to."""
        record = self.roots / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        if record.is_symlink():
            return
        files.replace_link(record, path.absolute())

    def collect(
        self, *, dry_run: bool = False, everything: bool = False, progress: Progress = silent
    ) -> Collected:
        """Delete the items that no root reaches, what killed builds left, and old downloads.

        Downloads go that were not used for `downloads.KEPT_DAYS` days and that no item which stays
        was made of; with `everything` all of them. Waits for builds, and builds wait for it.
        """
        if dry_run:
            return collect.collect(self, dry_run=True, everything=everything)
        waiting = _told(progress, "builds that use this store")
        with files.lock(self._locks / "collect", waiting=waiting, doing=self._use):
            return collect.collect(self, dry_run=False, everything=everything)

    def contents(self) -> Contents:
        """Return all that the store holds, with sizes. Raises `HostError`."""
        return contents.contents(self)

    def verify(self, *, progress: Progress = silent) -> Verified:
        """Check that every item has what it refers to and that recorded checksums hold."""
        waiting = _told(progress, "store gc, which another process runs")
        with files.lock(self._locks / "collect", shared=True, waiting=waiting, doing=self._use):
            return collect.verify(self)

    def abandoned(self) -> list[Path]:
        """Return what builds that no longer run have left."""
        try:
            return collect.unlocked(self._temporary)
        except OSError as error:
            raise files.explain(error, self._use) from error

    def clear(self) -> None:
        """Remove what builds that no longer run have left; what can't be stays for another time."""
        with suppress(OSError, MicroVMError):  # another user's store
            locks = (path for path in collect.unlocked(self._locks) if ITEM.fullmatch(path.name))
            for path in (*self.abandoned(), *locks, *self.roots.glob(".*")):
                with suppress(OSError, MicroVMError):
                    collect.take_away(path, self._ids)


def _told(progress: Progress, what: str) -> Callable[[], None]:
    return lambda: progress(Event(step="wait", detail=f"for {what}"))
