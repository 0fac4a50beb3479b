"""Guest sources: a declared system and its lock become a built guest system."""

from collections.abc import Sequence
from pathlib import Path

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
    return builder.build()
