"""A runner directory and the host become a launch plan. Touches nothing but kept facts."""

import json
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from microvm.errors import HostError, Problem, SpecError, StateError
from microvm.host import credentials, files, kvm, linux, places, process, stream, volumes
from microvm.host import facts as host_facts
from microvm.hypervisors import Hypervisor, hypervisor, resources, virtiofsd
from microvm.hypervisors.features import Feature
from microvm.model.codec import from_plain
from microvm.model.declaration import MicroVM
from microvm.model.facts import Accelerator, Facts, HostFacts, Program
from microvm.model.identity import machine_id
from microvm.model.plan import LaunchPlan
from microvm.model.runner import SCHEMA, Runner

RUNNER_FILE = "share/microvm/runner.json"
PROJECT = "MICROVM_PROJECT"
"""Variable with the project's directory, for the scripts of a runner."""


def load_runner(runner_dir: Path) -> Runner:
    """Return the runner that a directory holds. Raises `StateError` when it holds none."""
    path = runner_dir / RUNNER_FILE
    try:
        plain = json.loads(path.read_text())
        schema = plain["schema"]
        if schema == SCHEMA:
            return from_plain(Runner, plain)
    except OSError as error:
        raise StateError(f"{runner_dir} holds no runner: {error}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StateError(f"{path} is damaged: {error}", hint="build it again") from error
    raise StateError(
        f"{path} has layout {schema}, this launcher knows {SCHEMA}",
        hint="install a launcher of the same or a later version as the one that built it",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where and how a machine is to be started."""

    runner_dir: Path
    """The runner itself, in the store that holds its items."""
    state_dir: Path
    """Absolute path."""
    project_dir: Path
    """Absolute path that relative sources of shares start at."""
    watched: bool = False
    """A launcher stays beside the VMM."""
    job: bool = False
    """Run a job instead of a login."""
    terminal: tuple[int, int, str] | None = None
    """Rows, columns and TERM of the terminal that the console is attached to."""
    helpers_only: bool = False
    """Nothing but its helpers is started: credentials, which the VMM reads, are not looked at."""
    dry: bool = False
    """Only show the plan, or use little of it: write nothing and try nothing out; KVM counts as
    working where it was not tried out yet."""


def gather(runner: Runner, start: Start) -> Facts:
    """Return what planning needs to know about this host. Raises `HostError`, `StateError`."""
    microvm = runner.microvm
    state_dir, dry = start.state_dir, start.dry
    store_dir = start.runner_dir.resolve().parent
    kernel = store_dir / runner.system.kernel / "vmlinuz"
    host = this_host(
        microvm, store_dir=store_dir, project_dir=start.project_dir, kernel=kernel, dry=dry
    )
    planned = resources.volume_plans(runner)
    return Facts(
        **{each.name: getattr(host, each.name) for each in fields(HostFacts)},
        state_dir=str(state_dir),
        machine_id=identity(runner, state_dir, dry=dry),
        secret=os.urandom(16).hex(),
        positions=volumes.positions(planned, state_dir),
        outgrown=volumes.outgrown(planned, state_dir),
        watched=start.watched,
        job=start.job,
        terminal=start.terminal,
    )


def identity(runner: Runner, state_dir: Path, *, dry: bool = False) -> str:
    """Return the guest's machine-id: the declared one, else of this machine on this host."""
    declared = (runner.microvm.machine_id or "").replace("-", "")
    if declared:
        return declared
    return machine_id(host_facts.host_id(state_dir, dry=dry), runner.name, str(state_dir))


def obstacles(
    microvm: MicroVM, *, store_dir: Path, project_dir: Path, dry: bool = False
) -> list[Problem]:
    """Return what this host, or these versions of programs, can't do of what is declared.

    That needs no runner: nothing is built in vain. `dry` and errors: as of `this_host`.
    """
    host = this_host(microvm, store_dir=store_dir, project_dir=project_dir, dry=dry)
    return hypervisor(microvm.hypervisor).check(microvm, host)


def this_host(
    microvm: MicroVM,
    *,
    store_dir: Path,
    project_dir: Path,
    kernel: Path | None = None,
    dry: bool = False,
) -> HostFacts:
    """Return what a declaration asks of this host. Raises `HostError` where something lacks.

    `kernel`: try KVM out with it. `dry`: remember nothing, and do without KVM.
    """
    programs = _programs(microvm, store_dir=store_dir, project_dir=project_dir, dry=dry)
    backend = hypervisor(microvm.hypervisor)
    huge = microvm.hugepage_mem
    return HostFacts(
        accelerator=_accelerator(backend, microvm, programs[backend.program], kernel, dry=dry),
        programs=programs,
        project_dir=str(project_dir),
        store_dir=str(store_dir),
        vhost_vsock=os.access("/dev/vhost-vsock", os.R_OK | os.W_OK),
        vhost_net=os.access("/dev/vhost-net", os.R_OK | os.W_OK),
        root=os.geteuid() == 0,
        has_user=microvm.user is None or _is_user(microvm.user),
        absent=dict(_absent(microvm, project_dir)),
        landlock=linux.landlock_abi(),
        hugepage_kib=host_facts.hugepage_kib() if huge else 0,
        hugepages_free=host_facts.hugepages_free() if huge else None,
        hugetlbfs=host_facts.hugetlbfs() if huge else None,
        shmem_thp=host_facts.shmem_thp() if huge else None,
    )


def _programs(
    microvm: MicroVM, *, store_dir: Path, project_dir: Path, dry: bool
) -> dict[str, Program]:
    """Return the programs that a start takes, by name, once KVM may be used where it has to."""
    backend = hypervisor(microvm.hypervisor)
    installed = places.installed(store_dir, backend.program)
    declared = process.placed(backend.declared_program(microvm), project_dir)
    emulates = backend.support(Feature.ACCEL_TCG).available
    lack = None if dry else kvm.lack(backend.name, emulates=emulates, declared=microvm.accel)
    try:
        vmm = host_facts.program(backend.program, declared, installed, dry=dry)
    except HostError as missing:
        if lack is None:
            raise
        raise HostError(f"{missing.message}, and {lack.message}", hint=lack.hint) from missing
    if lack is not None:
        raise lack
    programs = {backend.program: vmm}
    if microvm.uses("virtiofs"):
        named = process.placed(microvm.virtiofsd.program, project_dir)
        found = host_facts.program(virtiofsd.PROGRAM, named, virtiofsd.PLACES, dry=dry)
        programs[virtiofsd.PROGRAM] = found
    return programs


def _absent(microvm: MicroVM, project_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield the keys that name what is for others to make, and why it is not as it has to be."""
    directories = []
    sockets = [("socket", microvm.socket)]
    for index, share in enumerate(microvm.shares):
        directories.append((f"shares.{index}.source", share.source))
        sockets.append((f"shares.{index}.socket", share.socket))
    if microvm.hypervisor == "crosvm" and microvm.crosvm.pivot_root:
        directories.append(("crosvm.pivot_root", microvm.crosvm.pivot_root))
    for key, path in directories:
        if why := files.obstacle(project_dir / path, stat.S_ISDIR):
            yield key, why
    for key, place in sockets:
        if place and place.startswith("/") and (why := stream.obstacle(Path(place))):
            yield key, why


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _accelerator(
    backend: Hypervisor, microvm: MicroVM, vmm: Program, kernel: Path | None, *, dry: bool
) -> Accelerator:
    """Return how virtual CPUs are run."""
    if backend.support(Feature.ACCEL_TCG).available:
        return kvm.accelerator(vmm, kernel, microvm.accel, dry=dry)
    return kvm.only(backend.name)


def plan(runner: Runner, start: Start) -> LaunchPlan:
    """Return what starting a runner would do. Raises `SpecError`, `HostError`, `StateError`."""
    facts = gather(runner, start)
    backend = hypervisor(runner.microvm.hypervisor)
    given = {} if start.helpers_only else runner.microvm.credential_files
    paths = {name: start.project_dir / path for name, path in given.items()}
    # They may be others by now than those that were checked before the build.
    if problems := [*backend.check(runner.microvm, facts), *credentials.problems(paths)]:
        raise SpecError(problems)
    return backend.plan(runner, facts)


def interfaces(runner: Runner, state_dir: Path) -> LaunchPlan:
    """Return a plan of nothing but the interfaces, which are those that `plan` has.

    They can be made while nothing else of a start is there yet: no program, KVM or share is
    looked at. Raises `HostError` where the identity of the host can't be kept.
    """
    vm = runner.microvm
    return LaunchPlan(
        name=runner.name,
        hypervisor=vm.hypervisor,
        process_name=None,
        argv=(),
        taps=resources.taps(runner, queues=hypervisor(vm.hypervisor).queues(vm)),
        macvtaps=resources.macvtaps(runner, identity(runner, state_dir)),
    )


def terminal_of(descriptor: int) -> tuple[int, int, str] | None:
    """Return rows, columns and kind of a terminal, as the guest is told, or None."""
    from microvm.host import terminal

    found = terminal.size(descriptor)
    name = os.environ.get("TERM", "")
    if found is None or not name.replace("-", "").replace(".", "").isalnum():
        return None
    # The guest knows few of them; an unknown name would break its programs.
    if name.startswith(("xterm", "tmux", "screen")):
        return (*found, "xterm-256color")
    return (*found, "linux" if name == "linux" else "vt220")
