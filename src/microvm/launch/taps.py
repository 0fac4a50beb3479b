"""A machine's tap and macvtap interfaces: made before the start, taken away after the end."""

import json
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microvm.errors import MicroVMError, StateError
from microvm.host import files, holders, network
from microvm.model.codec import from_plain, to_plain
from microvm.model.plan import LaunchPlan, MacvtapPlan, TapPlan

Kind = Literal["tap", "macvtap"]
KINDS: tuple[Kind, ...] = ("tap", "macvtap")

RECORD = "taps.json"
"""Interfaces made for the machine, by name; no interface index is ever used twice."""


@dataclass(frozen=True, slots=True)
class Made:
    """An interface that was made for the machine."""

    index: int
    """Its number, which tells it from another one of the same name."""
    tap: TapPlan | None = None
    macvtap: MacvtapPlan | None = None
    """One of the two."""

    @property
    def kind(self) -> Kind:
        """Which of the two it is."""
        return "tap" if self.tap else "macvtap"

    @property
    def plan(self) -> TapPlan | MacvtapPlan | None:
        """What was asked for."""
        return self.tap or self.macvtap


def up(
    plan: LaunchPlan, state_dir: Path, *, kinds: Sequence[Kind] = KINDS, locked: bool = True
) -> set[str]:
    """Make the interfaces that are missing; those made for this machine before are used again.

    One that was made as another declaration had it is made anew, or goes when none has it any
    more. `locked`: the caller holds the machine's lock; else it may be running with what would
    go. Returns the names of the new ones. When it raises, none of them is left. Raises
    `StateError` for a foreign or busy one and for a damaged record, `HostError`.
    """
    made: set[str] = set()
    try:
        _up(plan, state_dir, kinds, made, locked=locked)
    except MicroVMError:
        down(state_dir, names=made)
        raise
    return made


def _up(
    plan: LaunchPlan, state_dir: Path, kinds: Sequence[Kind], made: set[str], *, locked: bool
) -> None:
    wanted = {one.name: one for one in _planned(plan) if _kind(one) in kinds}
    record = {name: one for name, one in _read(state_dir).items() if one.kind in kinds}
    there = {name for name, one in record.items() if network.index(name) == one.index}
    for name in there:
        if record[name].kind == "tap" and network.in_use(name):
            raise StateError(
                f"the tap {name} is in use by another program",
                hint="stop that one first; `ip -details link show` lists interfaces",
            )
    kept = {name for name in there if record[name].plan == wanted.get(name)}
    # Nothing tells whether a macvtap is in use.
    if there - kept and not locked and holders.is_flocked(state_dir / holders.MACHINE_LOCK):
        raise StateError(
            f"the machine {plan.name} runs, and may use {', '.join(sorted(there - kept))}, which"
            " is declared otherwise by now",
            hint="stop it first, then say this again",
        )
    down(state_dir, names=record.keys() - kept)
    for name, asked in wanted.items():
        if name not in kept:
            one = _make(asked)
            made.add(name)
            # At once: what is not written down is nobody's after a crash.
            _write(state_dir, {**_read(state_dir), name: one})


def _make(one: TapPlan | MacvtapPlan) -> Made:
    owner = os.geteuid()
    if isinstance(one, TapPlan):
        return Made(network.tap_up(one, owner), tap=one)
    return Made(network.macvtap_up(one, owner), macvtap=one)


def down(state_dir: Path, *, kind: Kind | None = None, names: Container[str] | None = None) -> None:
    """Take away what was made for this machine, of one kind or of these names; the rest stays.

    Its record is all that it takes: whatever became of the machine, none is left. Raises
    `StateError` for a damaged record, `HostError`.
    """
    record = _read(state_dir)
    for name, made in list(record.items()):
        if kind in (None, made.kind) and (names is None or name in names):
            if network.index(name) == made.index:
                (network.tap_down if made.kind == "tap" else network.macvtap_down)(name)
            del record[name]
    _write(state_dir, record)


def _kind(one: TapPlan | MacvtapPlan) -> Kind:
    return "tap" if isinstance(one, TapPlan) else "macvtap"


def _planned(plan: LaunchPlan) -> tuple[TapPlan | MacvtapPlan, ...]:
    return (*plan.taps, *plan.macvtaps)


@contextmanager
def opened(plan: LaunchPlan) -> Iterator[list[int]]:
    """Open the interfaces that the VMM inherits, under the numbers that its command line names.

    Raises `HostError`.
    """
    with ExitStack() as stack:
        numbers = []
        for one in plan.opened:
            open_one = network.open_tap if one.kind == "tap" else network.open_macvtap
            descriptor = open_one(one.name, one.queues)
            os.dup2(descriptor, one.number, inheritable=True)
            os.close(descriptor)
            stack.callback(os.close, one.number)
            numbers.append(one.number)
        yield numbers


@contextmanager
def held(plan: LaunchPlan, state_dir: Path) -> Iterator[None]:
    """Have the interfaces until the block is left; those that a killed run left go as well."""
    up(plan, state_dir)
    try:
        yield
    finally:
        down(state_dir)


def _read(state_dir: Path) -> dict[str, Made]:
    path = state_dir / RECORD
    try:
        record = json.loads(path.read_text())
        return {name: from_plain(Made, plain) for name, plain in record.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise files.explain(error, f"read {path}") from error
    except (ValueError, AttributeError) as error:
        raise StateError(
            f"{path}, which tells what interfaces were made, is damaged: {error}",
            hint="take them away (`ip link show`, `ip link delete NAME`), and then the file",
        ) from error


def _write(state_dir: Path, record: dict[str, Made]) -> None:
    if record:
        plain = {name: to_plain(made) for name, made in record.items()}
        files.write_atomic(state_dir / RECORD, json.dumps(plain), 0o600)
    else:
        (state_dir / RECORD).unlink(missing_ok=True)
