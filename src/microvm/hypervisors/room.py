"""How many of something a hypervisor takes, as rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from microvm.errors import Problem
from microvm.hypervisors.features import use
from microvm.model.declaration import MicroVM
from microvm.model.facts import dotted


class Room(Enum):
    """Something of which a hypervisor may take only so many."""

    VCPUS = "virtual CPUs"
    DISKS = "disks"
    DEVICES = "devices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Most:
    """One row: how many a hypervisor takes, or took before some version."""

    room: Room
    most: int
    until: tuple[int, ...] | None = None
    """First version that takes more; unset: all versions are bound by it."""
    instead: str = ""
    """What else helps than fewer of them."""


def shown(rows: Sequence[Most], room: Room) -> str:
    """Return a cell of a table: the most that is taken, and what older versions take."""
    found = [row for row in rows if row.room is room]
    words = (f"{row.most}{f' before {dotted(row.until)}' if row.until else ''}" for row in found)
    return ", ".join(words)


def refusal(
    microvm: MicroVM, hypervisor: str, row: Most, *, used: int, own: int, others: Sequence[str]
) -> Problem:
    """Return what is said to more than a hypervisor takes; `others`: those that have the room."""
    ours = f", {own} of them our own" if own else ""
    message = f"{used} {row.room.value}{ours}; {hypervisor} takes {row.most}"
    if row.until:
        message += f"; {dotted(row.until)} takes more"
    where, fewer = _fewer(microvm, row.room)
    later = f"install a later {hypervisor}" if row.until else ""
    hint = "; or ".join(filter(None, (fewer, row.instead, later, use(others))))
    return Problem(where=where, message=message, hint=hint)


def _fewer(microvm: MicroVM, room: Room) -> tuple[str, str]:
    """Return the key of which there is most, and how to say less of it."""
    if room is Room.VCPUS:
        return "vcpu", "say less"
    kinds = ("volumes",) if room is Room.DISKS else ("volumes", "shares", "interfaces", "devices")
    where = max(kinds, key=lambda key: len(getattr(microvm, key)))
    return where, "use fewer, larger volumes" if where == "volumes" else f"use fewer {where}"
