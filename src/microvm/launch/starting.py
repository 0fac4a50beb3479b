"""What comes before a VMM: the machine's lock, its files, sockets and volumes; then the VMM."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from microvm.errors import HostError, StateError
from microvm.host import credentials, files, holders, ports, process, stream, volumes
from microvm.host.process import Deadline, Process
from microvm.launch import helpers, logs
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

LOCK = holders.MACHINE_LOCK
DYING_S = 10.0
"""How long a process that was killed may take to let go of what it has."""
LOOK_S = 0.05


@contextmanager
def machine_lock(state_dir: Path, name: str) -> Iterator[int]:
    """Hold a machine; its VMM inherits the lock. Raises `StateError` when it runs already."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, f"make the state directory {state_dir}") from error
    path = state_dir / LOCK
    with ExitStack() as stack:
        descriptor = stack.enter_context(_taken(path, name))
        os.set_inheritable(descriptor, True)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise files.explain(error, f"write {path}") from error
        yield descriptor


@contextmanager
def _taken(path: Path, name: str) -> Iterator[int]:
    """Hold a machine's lock; a killed launcher or VMM that still has it is waited for."""
    deadline = Deadline(DYING_S)
    while True:
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(files.lock(path, wait=False))
            except StateError as error:
                pid = path.read_text().strip()
                if holders.is_ending(pid) and not deadline.expired:
                    time.sleep(LOOK_S)
                    continue
                who = f" (process {pid})" if pid and not holders.is_ending(pid) else ""
                raise StateError(
                    f"the machine {name} is running already{who or holders.of(path)}",
                    hint=f"stop that one first; its state is in {path.parent}",
                ) from error
            yield descriptor
            return


def _await_end(path: Path) -> None:
    """Wait for a VMM that is dying to let go of its lock file. Raises `StateError`."""
    deadline = Deadline(DYING_S)
    while holders.is_locked(path):
        if deadline.expired:
            raise StateError(
                f"a VMM holds {path}{holders.of(path)}", hint="stop that process first"
            )
        time.sleep(LOOK_S)


def check_devices(runner: Runner) -> None:
    """Raise `HostError` when the host can't hand a device over that the guest is to get."""
    if runner.microvm.devices:
        from microvm.host import passthrough

        passthrough.check(runner.microvm.devices)


def prepare(
    plan: LaunchPlan,
    state_dir: Path,
    *,
    reset_root: bool,
    say: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """Write files, remove stale sockets, make and lock volumes; return descriptors to pass on."""
    for name in (*plan.sockets, *(helper.socket for helper in plan.helpers)):
        if not stream.fits(name):
            raise HostError(
                f"the socket path {name} is longer than {stream.LIMIT} bytes",
                hint="name a shorter one; relative paths start at the state directory",
            )
    ports.check_free(plan.ports)
    for name in plan.directories:
        try:
            (state_dir / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.explain(error, f"make the directory {state_dir / name}") from error
    empty = {plan.log: ""} if plan.log else {}
    for name, text in {**plan.files, **empty}.items():
        files.write_atomic(state_dir / name, text, 0o600)
    if plan.credentials:
        credentials.write(plan.credentials, state_dir)
    for name in plan.locks:
        _await_end(state_dir / name)
    for name in plan.sockets:
        stream.make_place(state_dir, name)
        stream.remove_stale(state_dir / name)
    return volumes.prepare(plan, state_dir, reset_root=reset_root, say=say)


@contextmanager
def vmm(
    plan: LaunchPlan, state_dir: Path, *, console: int, held: Sequence[int]
) -> Iterator[Process]:
    """Run the VMM with `console` as its standard input and output until the block is left."""
    log = state_dir / logs.VMM_LOG
    log.unlink(missing_ok=True)
    argv, name = plan.argv, plan.process_name
    if plan.trees:
        from microvm.launch import mapped

        argv, name = mapped.command("vmm", json.dumps(plan.trees), name or "", *argv), None
    with process.spawn(
        argv,
        log=log,
        stdin=console,
        stdout=console,
        pass_fds=held,
        env=plan.env,
        cwd=state_dir,
        name=name,
        own_terminal=plan.changes_user,  # which has the kernel forget whose child it is
    ) as running:
        yield running


def become_vmm(plan: LaunchPlan) -> NoReturn:
    """Replace this process by the VMM, with every lock that it holds. Raises `HostError`."""
    if plan.trees:
        from microvm.launch import mapped

        try:
            mapped.serve(plan.argv, plan.trees, name=plan.process_name, env=plan.env)
        except OSError as error:
            raise files.explain(error, "serve the guest's layers") from error
    process.become(plan.argv, env=plan.env, name=plan.process_name)


def last_words(plan: LaunchPlan, state_dir: Path) -> str:
    """Return the end of what the VMM and its helpers said."""
    text = ""
    for name in filter(None, (logs.VMM_LOG, plan.log)):
        log = state_dir / name
        if words := process.last_words(files.tail(log)):
            text += f"\n{name}:{words}"
    return text + helpers.last_words(plan.helpers, state_dir)
