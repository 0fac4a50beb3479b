"""Carry out a launch plan: locks, files, volumes, taps, helpers; then the VMM."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from microvm.errors import HostError, StateError
from microvm.host import files, network, process, stream, volumes
from microvm.host.process import Process
from microvm.model.plan import Helper, LaunchPlan

LOCK = "lock"
VMM_LOG = "vmm.log"


@contextmanager
def machine_lock(state_dir: Path, name: str) -> Iterator[int]:
    """Hold a machine; its VMM inherits the lock. Raises `StateError` when it runs already."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, f"make the state directory {state_dir}") from error
    path = state_dir / LOCK
    try:
        with files.lock(path, wait=False) as descriptor:
            os.set_inheritable(descriptor, True)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
    except StateError as error:
        holder = path.read_text().strip()
        raise StateError(
            f"the machine {name} is running already (process {holder})",
            hint=f"stop that one first; its state is in {state_dir}",
        ) from error


def prepare(plan: LaunchPlan, state_dir: Path, *, reset_root: bool) -> list[int]:
    """Write files, remove stale sockets, make and lock volumes; return descriptors to pass on."""
    for name, text in plan.files.items():
        files.write_atomic(state_dir / name, text, 0o600)
    for name in (*plan.sockets, *(helper.socket for helper in plan.helpers)):
        if not stream.relative_length_ok(name):
            raise HostError(
                f"the socket path {name} is longer than {stream.LIMIT} bytes",
                hint="name a shorter one; relative paths start at the state directory",
            )
        stream.remove_stale(state_dir / name)
    return volumes.prepare(plan, state_dir, reset_root=reset_root)


@contextmanager
def helpers(plan: LaunchPlan, state_dir: Path) -> Iterator[None]:
    """Make taps and start helpers; end and remove them afterwards."""
    with ExitStack() as stack:
        for tap in plan.taps:
            network.tap_up(tap, os.geteuid())
            stack.callback(network.tap_down, tap)
        for helper in plan.helpers:
            log = state_dir / f"{helper.name}.log"
            log.unlink(missing_ok=True)
            socket = state_dir / helper.socket
            listener = stack.enter_context(stream.listening(socket, helper.socket_group))
            argv = (*_argv(helper), f"--fd={listener}")
            stack.enter_context(process.spawn(argv, log=log, cwd=state_dir, pass_fds=(listener,)))
        yield


def _argv(helper: Helper) -> tuple[str, ...]:
    """Return what to run; trees of guests are served from a namespace with the store's id map."""
    if not helper.ids:
        return helper.argv
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); "
        "from microvm.launch.mapped import main; main(sys.argv[1:])"
    )
    import json

    return (
        sys.executable,
        "-I",
        "-c",
        code,
        json.dumps(sys.path),
        helper.ids,
        helper.read_only or "",
        *helper.argv,
    )


@contextmanager
def vmm(plan: LaunchPlan, state_dir: Path, *, console: int, held: list[int]) -> Iterator[Process]:
    """Run the VMM with `console` as its standard input and output until the block is left."""
    log = state_dir / VMM_LOG
    log.unlink(missing_ok=True)
    with process.spawn(
        plan.argv,
        log=log,
        stdin=console,
        stdout=console,
        pass_fds=held,
        env=plan.env,
        cwd=state_dir,
        name=plan.process_name,
    ) as running:
        yield running


def last_words(state_dir: Path) -> str:
    """Return the end of what the VMM and its helpers said."""
    text = ""
    for log in (state_dir / VMM_LOG, *sorted(state_dir.glob("virtiofsd-*.log"))):
        if log.exists() and (words := process.last_words(log.read_bytes())):
            text += f"\n{log.name}:{words}"
    return text
