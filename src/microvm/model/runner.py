"""The runner: a resolved MicroVM and the store items it needs, as `runner.json` holds it."""

from dataclasses import dataclass

from microvm.model.declaration import MicroVM
from microvm.model.guest import GuestSystem

SCHEMA = 1
"""Number of the layout of `runner.json`; a reader refuses one it does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """All that starting a MicroVM takes, independent of any host."""

    schema: int
    name: str
    """Name of the MicroVM."""
    microvm: MicroVM
    system: GuestSystem
    disk: str | None = None
    """Store item with all layers as partitions of `image`, where the hypervisor wants one disk."""
    vmlinux: str | None = None
    """Store item with the uncompressed kernel as `vmlinux`, where the hypervisor boots that."""
