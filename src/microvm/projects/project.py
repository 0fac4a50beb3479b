"""A project: its MicroVMs, loaded, overridden, validated and checked."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microvm.errors import Problem, SpecError
from microvm.host.files import obstacle
from microvm.model.declaration import MicroVM
from microvm.projects import inheritance, keypath, placing, rules, trust
from microvm.projects import reference as references
from microvm.projects.partial import Part
from microvm.projects.reference import Reference

_TABLES = ("defaults", "microvms", "$schema")


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
    reference: str = "."
    """As it was named when it was loaded."""
    tables: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the file says."""
    changed: tuple[tuple[str, str], ...] = ()
    """Overrides, each after the words that gave it."""

    @property
    def name(self) -> str:
        """The project's own name: that of its directory."""
        return self.directory.name

    @property
    def overridden(self) -> bool:
        """Whether fields of it were changed when it was loaded, for this once."""
        return bool(self.changed)

    def placed(self, name: str, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """Return problems of a MicroVM's keys with their places in the file."""
        prefix = keypath.join(("microvms", name))
        named = [replace(each, where=f"{prefix}.{each.where}") for each in problems]
        return placing.place(named, self.file, self.tables, self.changed)

    def pick(self) -> str:
        """Return the name of the MicroVM that is meant. Raises `SpecError` when it is not clear."""
        if self.selected is not None:
            return self.selected
        if len(self.names) == 1:
            return self.names[0]
        message = f"it has {len(self.names)} MicroVMs: {', '.join(self.names)}"
        # Before the mark: `examples#python` is a project.
        place = "" if self.reference == "." else f"{self.reference.partition('#')[0]}#"
        hint = f"name one, such as {place}{self.names[0]}" if self.names else None
        raise SpecError([Problem(file=str(self.file), message=message, hint=hint)])

    def get(self, name: str) -> MicroVM:
        """Return a valid MicroVM. Raises `SpecError` with all problems, or that there is none."""
        if self.problems:
            raise SpecError(self.problems)
        if name not in self.microvms:
            raise _unknown(name, name, self.names, self.file)
        return self.microvms[name]


def load(
    text: str,
    *,
    overrides: Sequence[str] = (),
    hypervisor: str | None = None,
    trusted: bool = False,
) -> Project:
    """Return the project that a reference names, with its problems in it.

    `overrides` and `hypervisor` change the MicroVM that the reference names, all if it names none.
    Raises `SpecError` when there is no such project or MicroVM, or its file can't be read at all.
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
    changed = [(f"--set {override}", override) for override in overrides]
    if hypervisor is not None:
        changed.append((f"--hypervisor {hypervisor}", f"hypervisor={json.dumps(hypervisor)}"))
    draft = Project(
        directory=directory, file=file, microvms={}, selected=reference.name,
        foreign=foreign, names=names, reference=text, tables=tables, changed=tuple(changed),
    )  # fmt: skip
    return _validated(draft, trusted=trusted)


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
    hint = "make one: microvm init"
    if text == references.EXAMPLES:
        hint = f"did you mean {text}#hello?"
    elif text != "." and "/" not in text and (directory / text).is_dir():
        hint = f"did you mean ./{text}?"  # a bare word is a name in this directory
    raise SpecError([Problem(where=text, message=message, hint=hint)])


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
        raise _unknown(reference.text, reference.name, names, file)


def _unknown(where: str, name: str, names: Sequence[str], file: Path) -> SpecError:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    message = f"there is no MicroVM {name!r} in {file}"
    return SpecError([Problem(where=where, message=message, hint=hint)])


def _validated(draft: Project, *, trusted: bool) -> Project:
    """Validate every MicroVM and return the project with objects and problems."""
    tables, changed = draft.tables, draft.changed
    problems = [
        Problem(where=key, message="there is no such table", hint="there are: defaults, microvms")
        for key in tables
        if key not in _TABLES
    ]
    defaults = tables.get("defaults") or {}
    if not isinstance(defaults, dict):
        problems.append(Problem(where="defaults", message="it is not a table"))
        defaults = {}
    changes = {name: changed for name in draft.names if changed and draft.selected in (None, name)}
    merged, found = inheritance.complete(defaults, tables["microvms"], changes)
    problems += found
    parts: dict[str, Part] = {}
    microvms: dict[str, MicroVM] = {}
    for name, table in merged.items():
        part, found = _one(name, table)
        problems += found
        if part is not None:
            parts[name] = part
            if not part.left_out:
                microvms[name] = part.microvm
    problems += _rules(parts, draft.directory)
    if draft.foreign and not trusted:
        for name, part in parts.items():
            problems += part.told(trust.requests(name, part.microvm, draft.directory))
    shared = defaults.get("system", {}) if isinstance(defaults, dict) else {}
    packages = shared.get("packages", ()) if isinstance(shared, dict) else ()
    return replace(
        draft,
        microvms=microvms,
        problems=placing.place(problems, draft.file, tables, changed),
        shared_packages=tuple(sorted(map(str, packages))) if isinstance(packages, list) else (),
    )


def _one(name: str, table: Any) -> tuple[Part | None, list[Problem]]:
    import re

    from microvm.model.constraints import NAME_REGEX
    from microvm.projects.validation import valid_part

    where = keypath.join(("microvms", name))
    problems = []
    if not re.fullmatch(NAME_REGEX, name):
        message = f"{name!r} is no name: 1 to 63 lower-case letters, digits and inner hyphens"
        better = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:63]
        hint = f"did you mean {better}?" if better else None
        problems.append(Problem(where=where, message=message, hint=hint))
    if not isinstance(table, dict):
        return None, [*problems, Problem(where=where, message="it is not a table")]
    part, found = valid_part(table, where)
    return part, [*problems, *found]


def _rules(parts: Mapping[str, Part], directory: Path) -> list[Problem]:
    """Return what is wrong between fields and MicroVMs, and what a hypervisor can't do."""
    from microvm.hypervisors import hypervisor

    problems = rules.check_all({name: p.microvm for name, p in parts.items()}, directory)
    told: list[Problem] = []
    for name, part in parts.items():
        prefix = f"{keypath.join(('microvms', name))}."
        found = [
            replace(problem, where=problem.where.removeprefix(prefix))
            for problem in problems
            if problem.where.startswith(prefix)
        ]
        if not part.lacks("hypervisor"):
            found += hypervisor(part.microvm.hypervisor).check(part.microvm)
        told += [replace(p, where=prefix + p.where) for p in part.told(found)]
    return told


def select(project: Project) -> tuple[str, MicroVM]:
    """Return name and object of the MicroVM that is meant. Raises `SpecError`."""
    name = project.pick()
    return name, project.get(name)
