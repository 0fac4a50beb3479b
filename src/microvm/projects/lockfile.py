"""`microvm.lock`: what every system of a project meant when it was resolved."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microvm.errors import StateError
from microvm.host import files
from microvm.model.codec import from_plain, to_plain
from microvm.model.guest import LockedLayer, LockedPackage, SystemLock
from microvm.projects import state
from microvm.projects.project import Project
from microvm.projects.reference import examples_directory

SCHEMA = 1
NAME = "microvm.lock"
_SHA256 = re.compile(r"[0-9a-f]{64}")
Locks = dict[str, SystemLock]
LAYERS = ("kernel", "base", "defaults", "packages")
_FIELDS = {
    "name": r"[a-z0-9][a-z0-9+.-]*", "version": r"[A-Za-z0-9.+:~-]+", "sha256": r"[0-9a-f]{64}",
    "architecture": r"[a-z0-9-]+", "url": r"|(?:https?|file|copy):[^\s\x00-\x1f\x7f]+",
}  # fmt: skip
"""What is handed to apt and names files in the store; who wrote the file is not known."""


@dataclass(frozen=True, slots=True)
class Change:
    """One package whose version differs between two locks."""

    microvm: str
    package: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.microvm}: + {self.package} {self.after}"
        if self.after is None:
            return f"{self.microvm}: - {self.package} {self.before}"
        return f"{self.microvm}: {self.package} {self.before} -> {self.after}"


def path(project: Project) -> Path:
    """Return where a project's lock is: beside it, or in the state directory if that can't be."""
    beside = project.directory / NAME
    ours = examples_directory() in project.directory.parents
    if project.foreign or ours or not os.access(project.directory, os.W_OK):
        return state.project_dir(project) / NAME
    return beside


def read(file: Path) -> Locks:
    """Return the locks by MicroVM; none where there is no file.

    Who wrote it is not known: all of it is checked. Raises `StateError`, `HostError`.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        schema = plain["schema"]
        if schema == SCHEMA:
            packages = {key: _package(key, each) for key, each in plain["packages"].items()}
            return {name: _unfold(each, packages) for name, each in plain["microvms"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise files.explain(error, f"read {file}") from error
    except (ValueError, KeyError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise _damaged(file, said) from error
    except (TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, "it is not made of the tables and lists of a lock") from error
    raise StateError(
        f"{file} has layout {schema}, this program knows {SCHEMA}",
        hint="use the version of microvm that wrote it",
    )


def _damaged(file: Path, said: str) -> StateError:
    hint = "take it from version control, or remove it"
    return StateError(f"{file} is damaged: {said}", hint=hint)


def _package(key: str, plain: Any) -> LockedPackage:
    """Return a package that may be handed to apt. Raises `ValueError`."""
    package = from_plain(LockedPackage, plain)
    for field, allowed in _FIELDS.items():
        if not re.fullmatch(allowed, getattr(package, field)):
            raise ValueError(f"the {field} of the package {key} is {getattr(package, field)!r}")
    if not 0 <= package.size < 1 << 40:
        raise ValueError(f"the size of the package {key} is {package.size}")
    return package


def _unfold(plain: dict[str, Any], packages: Mapping[str, LockedPackage]) -> SystemLock:
    given = [layer["packages"] for layer in plain["layers"]]
    bare = [{**layer, "packages": []} for layer in plain["layers"]]
    lock = from_plain(SystemLock, {**plain, "layers": bare})
    if tuple(layer.name for layer in lock.layers) != LAYERS:
        raise ValueError(f"the layers of a system are {', '.join(LAYERS)}")
    if not 0 <= lock.date < 1 << 33:
        raise ValueError(f"{lock.date} is no date of a mirror")
    layers = (
        LockedLayer(name=layer.name, packages=tuple(packages[key] for key in keys))
        for layer, keys in zip(lock.layers, given, strict=True)
    )
    return replace(lock, layers=tuple(layers))


def write(file: Path, locks: Mapping[str, SystemLock]) -> None:
    """Write the locks of a project. Raises `HostError`."""
    _write(file, lambda: locks)


def update(file: Path, name: str, lock: SystemLock) -> None:
    """Change one lock and leave the others, also those that are written meanwhile."""
    _write(file, lambda: {**read(file), name: lock})


def _write(file: Path, locks: Callable[[], Mapping[str, SystemLock]]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # A project's own directory is there; this is the one for projects that can't be written.
        raise files.explain(error, f"write {file}", chosen_by=state.CHOSEN_BY) from error
    files.write_atomic(file, lambda: _text(locks()))


def _text(locks: Mapping[str, SystemLock]) -> str:
    """Return the locks as text: one package a line, each package once, so that diffs read well."""
    packages: dict[str, Any] = {}
    microvms = {name: _fold(to_plain(lock), packages) for name, lock in sorted(locks.items())}
    lines = [f"  {json.dumps(key)}: {json.dumps(packages[key])}" for key in sorted(packages)]
    bodies = [f"  {json.dumps(name)}: {_indented(each)}" for name, each in microvms.items()]
    return (
        f'{{\n"schema": {SCHEMA},\n"microvms": {{\n' + ",\n".join(bodies)
        + '\n},\n"packages": {\n' + ",\n".join(lines) + "\n}\n}\n"
    )  # fmt: skip


def _indented(value: Any) -> str:
    return json.dumps(value, indent=1).replace("\n", "\n  ")


def _fold(plain: dict[str, Any], packages: dict[str, Any]) -> dict[str, Any]:
    for layer in plain["layers"]:
        names = []
        for package in layer["packages"]:
            key = f"{package['name']}_{package['version']}_{package['architecture']}"
            if packages.get(key, package) != package:
                key += f"_{package['sha256'][:12]}"  # the same version with other contents
            packages[key] = package
            names.append(key)
        layer["packages"] = names
    return plain


def changes(name: str, before: SystemLock | None, after: SystemLock) -> list[Change]:
    """Return what differs between two locks of a MicroVM."""
    old, new = _versions(before), _versions(after)
    return [
        Change(name, package, old.get(package), new.get(package))
        for package in sorted(old.keys() | new.keys())
        if old.get(package) != new.get(package)
    ]


def _versions(lock: SystemLock | None) -> dict[str, str]:
    if lock is None:
        return {}
    return {package.name: package.version for layer in lock.layers for package in layer.packages}
