"""Guest sources: a declared system and its lock become a built guest system."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from microvm.errors import CommandFailed, HostError
from microvm.model.declaration import MicroVM
from microvm.model.guest import GuestSystem, SystemLock
from microvm.model.progress import Progress
from microvm.store import Store


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
    """Return the lock of a MicroVM's system; `old` itself where it still fits and not `update`.

    `neighbours` are locks of other guests of the project: what they were resolved from is used
    again where it can be, so that guests share layers.
    """
    from microvm.guests.debian import resolve as debian

    with _lack_of_space_told(store):
        return debian.resolve(
            name,
            microvm,
            shared_packages=shared_packages,
            store=store,
            project_dir=project_dir,
            old=old,
            neighbours=neighbours,
            update=update,
            progress=progress,
        )


def build(
    name: str,
    microvm: MicroVM,
    lock: SystemLock,
    *,
    store: Store,
    project_dir: Path,
    progress: Progress,
) -> GuestSystem:
    """Return the built guest system of a MicroVM, made where the store does not have it."""
    from microvm.guests.debian.layers import Builder

    builder = Builder(name, microvm, lock, store=store, project_dir=project_dir, progress=progress)
    with _lack_of_space_told(store):
        return builder.build()


@contextmanager
def _lack_of_space_told(store: Store) -> Iterator[None]:
    """Tell a full disk from what programs make of it, each in its own words."""
    try:
        yield
    except (CommandFailed, HostError) as error:
        if os.strerror(errno.ENOSPC) not in error.message:
            raise
        raise HostError(
            f"there is no space left for the store {store.path}: {error.message}",
            hint="microvm store gc deletes what nothing refers to; --store names another place",
        ) from error
