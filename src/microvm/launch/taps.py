"""A machine's tap interfaces: made before the start, taken away after the end."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from microvm.errors import StateError
from microvm.host import files, network
from microvm.model.plan import LaunchPlan

RECORD = "taps.json"
"""Interfaces made for the machine: name to interface index; no index is ever used twice."""


def up(plan: LaunchPlan, state_dir: Path) -> None:
    """Make the taps that are missing; those made for this machine before are used again.

    Raises `StateError` for a foreign or busy one, `HostError`.
    """
    record = _read(state_dir)
    for tap in plan.taps:
        found = network.index(tap.name)
        if found is not None and record.get(tap.name) == found:
            if network.in_use(tap.name):
                raise StateError(
                    f"the tap {tap.name} is in use by another program",
                    hint="stop that one first; `ip -details link show` lists interfaces",
                )
            continue
        record[tap.name] = network.tap_up(tap, os.geteuid())
        # At once: what is not written down is nobody's after a crash.
        files.write_atomic(state_dir / RECORD, json.dumps(record), 0o600)


def down(plan: LaunchPlan, state_dir: Path) -> None:
    """Take away the taps that were made for this machine; others stay."""
    record = _read(state_dir)
    for tap in plan.taps:
        if tap.name in record and network.index(tap.name) == record[tap.name]:
            network.tap_down(tap)
    (state_dir / RECORD).unlink(missing_ok=True)


@contextmanager
def opened(plan: LaunchPlan) -> Iterator[list[int]]:
    """Open the interfaces that the VMM inherits, under the numbers that its command line names.

    Raises `HostError`.
    """
    with ExitStack() as stack:
        numbers = []
        for one in plan.opened:
            descriptor = network.open_tap(one.name, one.queues)
            os.dup2(descriptor, one.number, inheritable=True)
            os.close(descriptor)
            stack.callback(os.close, one.number)
            numbers.append(one.number)
        yield numbers


@contextmanager
def held(plan: LaunchPlan, state_dir: Path) -> Iterator[None]:
    """Have the taps until the block is left."""
    try:
        up(plan, state_dir)
        yield
    finally:
        down(plan, state_dir)


def _read(state_dir: Path) -> dict[str, int]:
    try:
        record: dict[str, int] = json.loads((state_dir / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record
