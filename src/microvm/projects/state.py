"""Where foreground runs and foreign locks keep their state."""

import hashlib
import os
from pathlib import Path

from microvm.host import places
from microvm.projects.project import Project

CHOSEN_BY = "$XDG_STATE_HOME"


def home() -> Path:
    """Return `microvm` in the XDG state directory."""
    return places.user_directory("XDG_STATE_HOME", ".local/state") / "microvm"


def project_dir(project: Project) -> Path:
    """Return the state directory of one project: its name and a hash of its path."""
    digest = hashlib.sha256(os.fsencode(project.directory.resolve())).hexdigest()[:12]
    return home() / f"{project.name[:40]}-{digest}"  # a name has at most 255 bytes


def machine_dir(project: Project, name: str) -> Path:
    """Return the state directory of a foreground run."""
    return project_dir(project) / name
