"""`microvm.lock`: what every system of a project meant when it was resolved."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microvm.errors import StateError
from microvm.host import files
from microvm.model.codec import from_plain, to_plain
from microvm.model.guest import SystemLock
from microvm.projects import state
from microvm.projects.project import Project
from microvm.projects.reference import examples_directory

SCHEMA = 1
NAME = "microvm.lock"
Locks = dict[str, SystemLock]


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
    """Return the locks by MicroVM; none where there is no file. Raises `StateError`."""
    try:
        plain = json.loads(file.read_text())
        if plain["schema"] != SCHEMA:
            raise StateError(
                f"{file} has layout {plain['schema']}, this program knows {SCHEMA}",
                hint="use the version of microvm that wrote it",
            )
        packages = plain["packages"]
        return {name: _unfold(each, packages) for name, each in plain["microvms"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(
            f"{file} is damaged: {error}", hint="take it from version control, or remove it"
        ) from error


def write(file: Path, locks: Mapping[str, SystemLock]) -> None:
    """Write the locks whole: one package a line, each package once, so that diffs read well."""
    packages: dict[str, Any] = {}
    microvms = {name: _fold(to_plain(lock), packages) for name, lock in sorted(locks.items())}
    lines = [f"  {json.dumps(key)}: {json.dumps(packages[key])}" for key in sorted(packages)]
    bodies = [f"  {json.dumps(name)}: {_indented(each)}" for name, each in microvms.items()]
    text = (
        f'{{\n"schema": {SCHEMA},\n"microvms": {{\n' + ",\n".join(bodies)
        + '\n},\n"packages": {\n' + ",\n".join(lines) + "\n}\n}\n"
    )  # fmt: skip
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, f"write {file}") from error
    files.write_atomic(file, text)


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


def _unfold(plain: dict[str, Any], packages: dict[str, Any]) -> SystemLock:
    layers = [
        {**layer, "packages": [packages[key] for key in layer["packages"]]}
        for layer in plain["layers"]
    ]
    return from_plain(SystemLock, {**plain, "layers": layers})


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
