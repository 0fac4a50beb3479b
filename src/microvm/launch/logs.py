"""What a VMM and its helpers say: where it is written, and that it does not fill the disk."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from microvm.model.plan import Helper, LaunchPlan

VMM_LOG = "vmm.log"
LIMIT = 16 << 20
"""Bytes on disk of a log, after which it starts anew."""


def of_helper(helper: Helper, state_dir: Path) -> Path:
    """Return where a helper's output goes."""
    return state_dir / f"{helper.name}.log"


def of(plan: LaunchPlan, state_dir: Path) -> list[Path]:
    """Return every log of a machine: its VMM's output and own log, and those of its helpers."""
    found = [state_dir / name for name in (VMM_LOG, plan.log) if name]
    return found + [of_helper(helper, state_dir) for helper in plan.helpers]


def bound(paths: Sequence[Path]) -> None:
    """Let each log start anew before it fills the disk; its program writes on.

    One stat(2) each: it can be called whenever something happens.
    """
    for path in paths:
        # Not by its length: firecracker does not append but goes on at its own offset, so that
        # a hole takes the place of what has gone.
        with suppress(FileNotFoundError):
            if path.stat().st_blocks * 512 > LIMIT:
                os.truncate(path, 0)
