"""What can be found out again, kept from one command to the next."""

import json
import os
from pathlib import Path
from typing import Any

from microvm.errors import HostError, MicroVMError
from microvm.host import files, places


def directory() -> Path:
    """Return the directory for what can be found out again."""
    if os.geteuid() == 0:
        return Path("/var/cache/microvm")
    try:
        return places.user_directory("XDG_CACHE_HOME", ".cache") / "microvm"
    except HostError:
        return Path("/var/cache/microvm")  # can't be written: a user without a home caches nothing


def read(path: Path) -> dict[str, Any]:
    """Return what `remember` wrote there; nothing of what can't be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path: Path, value: object) -> None:
    """Write a table; a host that doesn't let us goes without one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps(value))
    except (OSError, MicroVMError):
        return
