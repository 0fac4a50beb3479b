"""The verbs of a project: lock, build, plan, run."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from microvm import guests
from microvm.errors import SpecError
from microvm.guests import composite, vmlinux
from microvm.host import files
from microvm.hypervisors import hypervisor
from microvm.launch import planning
from microvm.launch.foreground import Options, Outcome, foreground
from microvm.model.guest import SystemLock
from microvm.model.plan import LaunchPlan
from microvm.model.progress import Event, Progress, silent
from microvm.projects import lockfile, runner, state
from microvm.projects.lockfile import Change
from microvm.projects.project import Project
from microvm.store import Store


@dataclass(frozen=True, slots=True)
class LockResult:
    """What locking a project did."""

    file: Path
    changes: tuple[Change, ...]


def check(project: Project) -> None:
    """Raise `SpecError` with every problem of a project, if there is any."""
    if project.problems:
        raise SpecError(project.problems)


def check_host(
    project: Project, name: str | None = None, *, store: Store, dry: bool = False
) -> None:
    """Raise `HostError` where this host lacks what running a MicroVM takes: a program, KVM, a user;
    `SpecError` with all that it, or a program of this version, can't do of what is declared.

    It needs no build. `dry`: only what showing the plan takes.
    """
    check(project)
    chosen = name or project.pick()
    found = planning.obstacles(
        project.get(chosen), store_dir=store.path, project_dir=project.directory, dry=dry
    )
    if found:
        raise SpecError(project.placed(chosen, found))


def lock(
    project: Project,
    names: Sequence[str] | None = None,
    *,
    update: bool = False,
    store: Store,
    progress: Progress = silent,
) -> LockResult:
    """Resolve what is not resolved yet (with `update`: everything) and write the lock.

    Raises `SpecError`, `MicroVMError` with apt's words.
    """
    check(project)
    file = lockfile.path(project)
    locks = lockfile.read(file)
    changes: list[Change] = []
    with store.building():
        for name in names if names is not None else project.names:
            fresh = _resolve(project, name, locks, update=update, store=store, progress=progress)
            changes += lockfile.changes(name, locks.get(name), fresh)
            locks[name] = fresh
    kept = {name: locks[name] for name in locks if name in project.names}
    if kept != lockfile.read(file):
        lockfile.write(file, kept)
    return LockResult(file, tuple(changes))


def _resolve(
    project: Project,
    name: str,
    locks: Mapping[str, SystemLock],
    *,
    update: bool,
    store: Store,
    progress: Progress,
) -> SystemLock:
    return guests.resolve(
        name,
        project.get(name),
        shared_packages=project.shared_packages,
        store=store,
        project_dir=project.directory,
        old=locks.get(name),
        neighbours=tuple(locks.values()),
        update=update,
        progress=progress,
    )


def build(
    project: Project,
    name: str | None = None,
    *,
    store: Store,
    out_link: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Return the directory of a MicroVM's runner, made where the store does not have it.

    Locks first what is not locked; fields changed for once leave an existing lock as it is.
    Raises `SpecError`, `MicroVMError`.
    """
    check(project)
    chosen = name or project.pick()
    with store.building(progress):
        file = lockfile.path(project)
        locks = lockfile.read(file)
        old = locks.get(chosen)
        locked = _resolve(project, chosen, locks, update=False, store=store, progress=progress)
        system = guests.build(
            chosen,
            project.get(chosen),
            locked,
            store=store,
            project_dir=project.directory,
            progress=progress,
        )
        backend = hypervisor(project.get(chosen).hypervisor)
        elf = vmlinux.add(system, store) if backend.boots_vmlinux else None
        disk = composite.add(system, store) if backend.one_disk else None
        item = runner.write(chosen, project.get(chosen), system, store, vmlinux=elf, disk=disk)
        if locked is not old and not (old and project.overridden):
            lockfile.update(file, chosen, locked)
            for change in lockfile.changes(chosen, old, locked) if old else ():
                progress(Event(step="lock", detail=str(change), note=True))
        if out_link is not None:
            store.add_root(out_link, item)
    return store.item(item)


def plan(
    project: Project,
    name: str | None = None,
    *,
    store: Store,
    job: bool = False,
    progress: Progress = silent,
) -> LaunchPlan:
    """Return what running a MicroVM would execute; it is built first, nothing is started."""
    chosen = name or project.pick()
    check_host(project, chosen, store=store, dry=True)
    directory = build(project, chosen, store=store, progress=progress)
    start = planning.Start(
        runner_dir=directory,
        state_dir=state.machine_dir(project, chosen),
        project_dir=project.directory,
        watched=True,
        job=job,
        dry=True,
    )
    return planning.plan(planning.load_runner(directory), start)


def run(
    project: Project,
    name: str | None = None,
    *,
    store: Store,
    options: Options | None = None,
    ephemeral: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Build a MicroVM and run it in the foreground until it ends. Raises `MicroVMError`.

    `ephemeral` makes its volumes anew, and throws them and all other state away at the end.
    """
    chosen = name or project.pick()
    microvm = project.get(chosen)
    check_host(project, chosen, store=store)
    with ExitStack() as stack:
        machine = state.machine_dir(project, chosen)
        if ephemeral:
            scratch = tempfile.TemporaryDirectory(prefix="microvm-", ignore_cleanup_errors=True)
            machine = Path(stack.enter_context(scratch))
        try:
            machine.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            doing = f"make the state directory {machine}"
            raise files.explain(error, doing, chosen_by=state.CHOSEN_BY) from error
        # The link keeps the runner from the collector for as long as this state exists.
        link = machine / "current"
        directory = build(project, chosen, store=store, out_link=link, progress=progress)
        return foreground(
            directory,
            state_dir=machine,
            project_dir=project.directory,
            options=replace(options or Options(), directory=microvm.system.workdir or ""),
        )
