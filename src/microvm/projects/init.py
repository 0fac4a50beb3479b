"""New projects from templates."""

import json
from importlib import resources
from pathlib import Path

from microvm.errors import Problem, SpecError, StateError
from microvm.host import files

TEMPLATES = ("default", "job", "python", "web")
SCHEMA_FILE = ".microvm.schema.json"


def init(directory: Path, template: str = "default") -> list[Path]:
    """Write a commented project into a directory and return its files.

    Raises `StateError` when there is one already, `SpecError` for an unknown template.
    """
    if template not in TEMPLATES:
        message = f"there is no template {template!r}: there are {', '.join(TEMPLATES)}"
        raise SpecError([Problem(where="--template", message=message)])
    try:
        for name in ("microvm.toml", "microvms.py"):
            if (directory / name).exists():
                raise StateError(f"{directory / name} exists already; it is left as it is")
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, f"make {directory}") from error
    source = resources.files("microvm.projects") / "templates"
    written = []
    if template == "python":
        target = directory / "microvms.py"
        files.write_atomic(target, (source / "python.py.txt").read_text())
    else:
        from microvm.projects.schema import schema

        target = directory / "microvm.toml"
        files.write_atomic(target, (source / f"{template}.toml").read_text())
        files.write_atomic(directory / SCHEMA_FILE, json.dumps(schema(), indent=1) + "\n")
        written.append(directory / SCHEMA_FILE)
    return [target, *written]
