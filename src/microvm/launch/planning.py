"""A runner directory and the host become a launch plan. Touches nothing but kept facts."""

import json
import os
import stat
from pathlib import Path

from microvm.errors import HostError, SpecError, StateError
from microvm.host import facts as host_facts
from microvm.host import files, linux, places, process, volumes
from microvm.hypervisors import hypervisor, resources
from microvm.hypervisors.virtiofsd import PLACES
from microvm.model.codec import from_plain
from microvm.model.declaration import MicroVM
from microvm.model.facts import Accelerator, Facts, Program
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


def gather(
    runner: Runner,
    runner_dir: Path,
    *,
    state_dir: Path,
    project_dir: Path,
    watched: bool = False,
    job: bool = False,
    terminal: tuple[int, int, str] | None = None,
    dry: bool = False,
) -> Facts:
    """Return what planning needs to know about this host. Raises `HostError`.

    `dry`: write nothing and try nothing out; KVM counts as working where it was not tried out yet.
    """
    microvm = runner.microvm
    store_dir = runner_dir.resolve().parent
    programs = require(microvm, store_dir=store_dir, project_dir=project_dir, dry=dry)
    vmm = programs[hypervisor(microvm.hypervisor).program]
    kernel = store_dir / runner.system.kernel / "vmlinuz"
    planned = resources.volume_plans(runner)
    identity = (microvm.machine_id or "").replace("-", "") or machine_id(
        host_facts.host_id(state_dir, dry=dry), runner.name, str(state_dir)
    )
    return Facts(
        accelerator=_accelerator(runner, vmm, kernel, dry=dry),
        programs=programs,
        state_dir=str(state_dir),
        project_dir=str(project_dir),
        store_dir=str(store_dir),
        machine_id=identity,
        secret=os.urandom(16).hex(),
        vhost_vsock=os.access("/dev/vhost-vsock", os.R_OK | os.W_OK),
        positions=volumes.positions(planned, state_dir),
        outgrown=volumes.outgrown(planned, state_dir),
        vhost_net=os.access("/dev/vhost-net", os.R_OK | os.W_OK),
        root=os.geteuid() == 0,
        landlock=linux.landlock_abi(),
        hugepage_kib=host_facts.hugepage_kib() if microvm.hugepage_mem else 0,
        hugepages_free=host_facts.hugepages_free() if microvm.hugepage_mem else None,
        hugetlbfs=host_facts.hugetlbfs() if microvm.hugepage_mem else None,
        shmem_thp=host_facts.shmem_thp() if microvm.hugepage_mem else None,
        watched=watched,
        job=job,
        terminal=terminal,
    )


def require(
    microvm: MicroVM, *, store_dir: Path, project_dir: Path, dry: bool = False
) -> dict[str, Program]:
    """Return the programs that a start takes, by name. Raises `HostError` where something lacks.

    That needs no runner: nothing is built in vain. `dry`: remember nothing, and do without KVM.
    """
    backend = hypervisor(microvm.hypervisor)
    installed = places.installed(store_dir, backend.program)
    declared = process.placed(backend.declared_program(microvm), project_dir)
    kvm = None if dry else host_facts.kvm_lack(microvm.hypervisor, microvm.accel)
    try:
        programs = {
            backend.program: host_facts.program(backend.program, declared, installed, dry=dry)
        }
    except HostError as missing:
        if kvm is None:
            raise
        raise HostError(f"{missing.message}, and {kvm.message}", hint=kvm.hint) from missing
    if kvm is not None:
        raise kvm
    shared = [share for share in microvm.shares if share.proto == "virtiofs"]
    if shared or (not microvm.store_on_disk and microvm.store_proto == "virtiofs"):
        named = process.placed(microvm.virtiofsd.program, project_dir)
        found = host_facts.program("virtiofsd", named, PLACES, dry=dry)
        programs["virtiofsd"] = found
    for share in microvm.shares:
        if why := files.obstacle(project_dir / share.source, stat.S_ISDIR):
            raise HostError(
                f"can't serve the share {share.tag}: {why}",
                hint="make the directory, or correct `source`",
            )
    return programs


def _accelerator(runner: Runner, vmm: Program, kernel: Path, *, dry: bool) -> Accelerator:
    """Return how virtual CPUs are run: only qemu can do without KVM."""
    if runner.microvm.hypervisor == "qemu":
        return host_facts.accelerator(vmm, kernel, runner.microvm.accel, dry=dry)
    return host_facts.kvm_only(runner.microvm.hypervisor, dry=dry)


def plan(
    runner_dir: Path,
    *,
    state_dir: Path,
    project_dir: Path,
    watched: bool = False,
    job: bool = False,
    terminal: tuple[int, int, str] | None = None,
    dry: bool = False,
) -> LaunchPlan:
    """Return what starting the runner would do. Raises `SpecError`, `HostError`, `StateError`.

    `dry`: see `gather`; for those that only show the plan or need little of it.
    """
    runner = load_runner(runner_dir)
    facts = gather(
        runner,
        runner_dir,
        state_dir=state_dir,
        project_dir=project_dir,
        watched=watched,
        job=job,
        terminal=terminal,
        dry=dry,
    )
    backend = hypervisor(runner.microvm.hypervisor)
    if problems := backend.check(runner.microvm, facts):
        raise SpecError(problems)
    return backend.plan(runner, facts)


def terminal_of(descriptor: int) -> tuple[int, int, str] | None:
    """Return rows, columns and kind of a terminal, as the guest is told, or None."""
    from microvm.host import terminal

    found = terminal.size(descriptor)
    name = os.environ.get("TERM", "")
    if found is None or not name.replace("-", "").replace(".", "").isalnum():
        return None
    # The guest knows the common ones; an unknown name would break its programs.
    known = (
        name if name in ("xterm", "xterm-256color", "screen", "tmux", "linux", "vt220") else "vt220"
    )
    return (*found, "xterm-256color" if name.startswith(("xterm", "tmux", "screen")) else known)
