"""A machine's tap and macvtap interfaces: made before the start, taken away after the end."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from microvm.errors import MicroVMError, StateError
from microvm.host import files, network
from microvm.model.plan import LaunchPlan, MacvtapPlan, TapPlan

Kind = Literal["tap", "macvtap"]

RECORD = "taps.json"
"""Interfaces made for the machine: name to interface index; no index is ever used twice."""


def up(plan: LaunchPlan, state_dir: Path) -> set[str]:
    """Make the interfaces that are missing; those made for this machine before are used again.

    Returns the names of the new ones. When it raises, none of them is left. Raises `StateError`
    for a foreign or busy one, `HostError`.
    """
    made: set[str] = set()
    try:
        _up(plan, state_dir, made)
    except MicroVMError:
        down(only(plan, made), state_dir)
        raise
    return made


def only(plan: LaunchPlan, names: set[str]) -> LaunchPlan:
    """Return the plan with no other interfaces than these."""
    return replace(
        plan,
        taps=tuple(one for one in plan.taps if one.name in names),
        macvtaps=tuple(one for one in plan.macvtaps if one.name in names),
    )


def _up(plan: LaunchPlan, state_dir: Path, made: set[str]) -> None:
    record = _read(state_dir)
    for one in _planned(plan):
        found = network.index(one.name)
        if found is not None and record.get(one.name) == found:
            if isinstance(one, TapPlan) and network.in_use(one.name):
                raise StateError(
                    f"the tap {one.name} is in use by another program",
                    hint="stop that one first; `ip -details link show` lists interfaces",
                )
            continue
        owner = os.geteuid()
        record[one.name] = (
            network.tap_up(one, owner)
            if isinstance(one, TapPlan)
            else network.macvtap_up(one, owner)
        )
        made.add(one.name)
        # At once: what is not written down is nobody's after a crash.
        files.write_atomic(state_dir / RECORD, json.dumps(record), 0o600)


def down(plan: LaunchPlan, state_dir: Path) -> None:
    """Take away the interfaces that were made for this machine; others stay."""
    remove({one.name: _kind(one) for one in _planned(plan)}, state_dir)


def remove(kinds: Mapping[str, Kind], state_dir: Path) -> None:
    """Take away the interfaces of these names that were made for this machine; others stay.

    Their kinds by name are all that it takes: whatever became of the machine, none is left.
    Raises `HostError`.
    """
    record = _read(state_dir)
    for name, kind in kinds.items():
        made = record.pop(name, None)
        if made is not None and network.index(name) == made:
            (network.tap_down if kind == "tap" else network.macvtap_down)(name)
    if record:  # of the other kind, whose script has not run yet
        files.write_atomic(state_dir / RECORD, json.dumps(record), 0o600)
    else:
        (state_dir / RECORD).unlink(missing_ok=True)


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
        down(plan, state_dir)


def _read(state_dir: Path) -> dict[str, int]:
    try:
        record: dict[str, int] = json.loads((state_dir / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record
