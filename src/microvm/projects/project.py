"""A project: its MicroVMs, loaded, overridden, validated and checked."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.host.files import obstacle
from microvm.model.declaration import MicroVM
from microvm.projects import overrides as overriding
from microvm.projects import reference as references
from microvm.projects import rules, trust
from microvm.projects.reference import Reference

_TABLES = ("defaults", "microvms", "$schema")
_APPENDED = ("packages", "ssh_authorized_keys", "repositories", "run")
"""Lists of a system that a MicroVM adds to those of `[defaults]`; others take their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The MicroVMs of one directory."""

    directory: Path
    file: Path
    """The file that declares them."""
    microvms: Mapping[str, MicroVM]
    """Those that are valid, by name."""
    selected: str | None
    """The MicroVM that the reference names."""
    shared_packages: tuple[str, ...] = ()
    """Packages of `[defaults]`, which have a layer of their own."""
    problems: tuple[Problem, ...] = ()
    """Everything that is wrong; nothing is built from a project that has any."""
    foreign: bool = False
    """It came from elsewhere and is confined to itself."""
    names: tuple[str, ...] = field(default=())
    """All declared names, valid or not."""

    @property
    def name(self) -> str:
        """The project's own name: that of its directory."""
        return self.directory.name

    def pick(self) -> str:
        """Return the name of the MicroVM that is meant. Raises `SpecError` when it is not clear."""
        if self.selected is not None:
            return self.selected
        if len(self.names) == 1:
            return self.names[0]
        message = f"it has {len(self.names)} MicroVMs: {', '.join(self.names)}"
        hint = f"name one, such as {self.directory.name}#{self.names[0]}" if self.names else None
        raise SpecError([Problem(file=str(self.file), message=message, hint=hint)])

    def get(self, name: str) -> MicroVM:
        """Return a valid MicroVM. Raises `SpecError` with all problems when there are any."""
        if self.problems:
            raise SpecError(self.problems)
        return self.microvms[name]


def load(
    text: str,
    *,
    overrides: Sequence[str] = (),
    hypervisor: str | None = None,
    trusted: bool = False,
) -> Project:
    """Return the project that a reference names, with its problems in it.

    `overrides` and `hypervisor` change the MicroVM that the reference means. Raises `SpecError`
    when there is no such project or MicroVM, or its file can't be read at all.
    """
    reference = references.parse(text)
    foreign = reference.git_url is not None
    directory = _directory(reference)
    file = _file(text, directory)
    if foreign and directory.resolve() not in file.resolve().parents:
        message = "it leads outside the project"
        raise SpecError([Problem(file=str(file), message=message)])
    if file.name.endswith(".py") and foreign and not trusted:
        message = "a foreign project in Python is a program"
        raise SpecError([Problem(file=str(file), message=message, hint=trust.HINT)])
    tables = _read(file)
    names = tuple(tables.get("microvms") or {}) if isinstance(tables.get("microvms"), dict) else ()
    _known(reference, names, file)
    changed = [*overrides, *([f'hypervisor="{hypervisor}"'] if hypervisor else [])]
    draft = Project(
        directory=directory, file=file, microvms={}, selected=reference.name,
        foreign=foreign, names=names,
    )  # fmt: skip
    return _validated(draft, tables, changed, trusted=trusted)


def _directory(reference: Reference) -> Path:
    if reference.git_url is None:
        return reference.directory or references.here(reference.text)
    from microvm.projects.git import fetch

    return fetch(reference.git_url, reference.git_ref)


def _file(text: str, directory: Path) -> Path:
    obstacles = {directory / name: obstacle(directory / name) for name in references.FILES}
    found = [file for file, why in obstacles.items() if why is None]
    if len(found) == 1:
        return found[0]
    if found:
        message = "it has both microvm.toml and microvms.py; one of them must go"
        raise SpecError([Problem(where=str(directory), message=message)])
    for file, why in obstacles.items():
        if why != f"there is no {file}":
            raise SpecError([Problem(where=text, message=str(why))])
    message = f"there is no microvm.toml or microvms.py in {directory}"
    raise SpecError([Problem(where=text, message=message, hint="make one: microvm init")])


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".py":
        from microvm.projects import python

        return python.read(file)
    from microvm.projects import toml

    return toml.read(file)


def _known(reference: Reference, names: Sequence[str], file: Path) -> None:
    if not names:
        hint = "declare one: a table [microvms.NAME]"
        raise SpecError([Problem(file=str(file), message="it declares no MicroVM", hint=hint)])
    if reference.name is not None and reference.name not in names:
        near = difflib.get_close_matches(reference.name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
        message = f"there is no MicroVM {reference.name!r} in {file}"
        raise SpecError([Problem(where=reference.text, message=message, hint=hint)])


def _validated(
    draft: Project, tables: dict[str, Any], changed: Sequence[str], *, trusted: bool
) -> Project:
    """Validate every MicroVM and return the project with objects and problems."""
    problems = [
        Problem(where=key, message="there is no such table", hint="there are: defaults, microvms")
        for key in tables
        if key not in _TABLES
    ]
    defaults = tables.get("defaults") or {}
    if not isinstance(defaults, dict):
        problems.append(Problem(where="defaults", message="it is not a table"))
        defaults = {}
    microvms: dict[str, MicroVM] = {}
    target = draft.pick() if changed else None
    for name, own in tables["microvms"].items():
        try:
            table = merge(defaults, own) if isinstance(own, dict) else own
            if name == target:
                table = overriding.apply(table, changed)
        except (SpecError, TypeError) as error:
            problems += (
                error.problems
                if isinstance(error, SpecError)
                else [Problem(where=f"microvms.{name}", message="it is not a table")]
            )
            continue
        microvm, found = _one(name, table)
        problems += found
        if microvm is not None:
            microvms[name] = microvm
    problems += rules.check_all(microvms, draft.directory)
    problems += _capabilities(microvms)
    if draft.foreign and not trusted:
        for name, microvm in microvms.items():
            problems += trust.requests(name, microvm, draft.directory)
    shared = defaults.get("system", {}) if isinstance(defaults, dict) else {}
    packages = shared.get("packages", ()) if isinstance(shared, dict) else ()
    return replace(
        draft,
        microvms=microvms,
        problems=tuple(_placed(problems, draft.file)),
        shared_packages=tuple(sorted(map(str, packages))) if isinstance(packages, list) else (),
    )


def _one(name: str, table: Any) -> tuple[MicroVM | None, list[Problem]]:
    import re

    from microvm.model.constraints import NAME_REGEX
    from microvm.projects.validation import validate

    where = f"microvms.{name}"
    problems = []
    if not re.fullmatch(NAME_REGEX, name):
        message = f"{name!r} is no name: 1 to 63 lower-case letters, digits and inner hyphens"
        problems.append(Problem(where=where, message=message))
    if not isinstance(table, dict):
        return None, [*problems, Problem(where=where, message="it is not a table")]
    microvm, found = validate(table, where)
    return microvm, [*problems, *found]


def merge(defaults: Any, own: Any) -> Any:
    """Return a MicroVM's table over the defaults: tables key by key; some lists add up."""
    merged = dict(defaults)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        elif key in _APPENDED and isinstance(value, list) and isinstance(merged.get(key), list):
            merged[key] = [*merged[key], *(item for item in value if item not in merged[key])]
        else:
            merged[key] = value
    return merged


def _capabilities(microvms: Mapping[str, MicroVM]) -> list[Problem]:
    from microvm.hypervisors import hypervisor

    return [
        replace(problem, where=f"microvms.{name}.{problem.where}")
        for name, microvm in microvms.items()
        for problem in hypervisor(microvm.hypervisor).check(microvm)
    ]


def _placed(problems: Sequence[Problem], file: Path) -> list[Problem]:
    """Add file and line to problems; lines are looked for only when there are problems."""
    if not problems:
        return []
    from microvm.projects import toml

    found = toml.lines(file.read_text(encoding="utf-8")) if file.suffix == ".toml" else {}
    placed = []
    for problem in problems:
        path = tuple(problem.where.replace("'", "").split("."))
        line = toml.line_of(found, path)
        placed.append(replace(problem, file=problem.file or str(file), line=problem.line or line))
    return placed


def select(project: Project) -> tuple[str, MicroVM]:
    """Return name and object of the MicroVM that is meant. Raises `SpecError`."""
    name = project.pick()
    return name, project.get(name)
