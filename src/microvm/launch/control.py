"""Talk to a running machine's VMM: shut the guest down, set its balloon."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from microvm.errors import (
    ApiError,
    DeadlineExceeded,
    HostError,
    MicroVMError,
    StateError,
    Unreachable,
    UnsupportedOperation,
)
from microvm.host import holders, process, stream
from microvm.host.owner import Owner, owner_of
from microvm.host.process import Deadline
from microvm.hypervisors import hypervisor
from microvm.hypervisors.control import Ballooning, Control
from microvm.launch import planning
from microvm.launch.shutdown import AGAIN_S
from microvm.model.constraints import LEAST_MIB
from microvm.model.runner import Runner

ANSWER_S = 10.0
"""Time that a VMM has for each answer."""
ENDING_S = 10.0
"""Time that a process has to be gone once its end was asked for."""
GOING_S = 1.0
"""Time that a VMM which broke its word has to turn out to be ending."""
LOOK_S = 0.05


def open_control(runner: Runner, state_dir: Path) -> Control:
    """Return a handle on the machine that runs in `state_dir`; close it when done.

    Raises `Unreachable` if none does, `ApiError`, `DeadlineExceeded`, `HostError` without the
    right to connect to it.
    """
    backend = hypervisor(runner.microvm.hypervisor)
    project = Path(os.environ.get(planning.PROJECT, state_dir))
    declared = process.placed(backend.declared_program(runner.microvm), project)
    program = process.find_program(declared or backend.program) or ""
    return backend.control(
        _socket(runner, state_dir),
        timeout_s=ANSWER_S,
        program=str(program),
        mem_mib=runner.microvm.mem,
    )


def _socket(runner: Runner, state_dir: Path) -> Path:
    microvm = runner.microvm
    return state_dir / (microvm.socket or hypervisor(microvm.hypervisor).control_socket)


def shutdown_machine(runner: Runner, state_dir: Path, *, timeout_s: float) -> str:
    """Shut a machine down: power button, Ctrl-Alt-Del, then the end of the VMM within the time.

    Returns which of them ended it; a VMM that answers nothing is killed then. Raises `HostError`
    where that is not possible, and for what is no VMM of this machine, or can't be seen from here;
    `ApiError` for a VMM that does not speak as it should.
    """
    whole, path = Deadline(timeout_s), _socket(runner, state_dir)
    lock = state_dir / holders.MACHINE_LOCK
    while not stream.listens(path):
        if not holders.is_flocked(lock):
            return "it is not running"
        if whole.expired:
            raise HostError(
                f"{runner.name} runs{holders.of(lock)}, but nobody listens on {path}",
                hint="end that process: there is nothing to ask it by",
            )
        time.sleep(LOOK_S)  # it starts, or ends
    with owner_of(path, lock) as owner, ExitStack() as stack:
        if owner is None:
            raise HostError(
                f"what listens on {path} can't be seen from here",
                hint="say it as the user, and in the container, of the machine",
            )
        if owner.holds() is False:
            raise HostError(
                f"process {owner.pid} listens on {path}, and is no VMM of {runner.name}: it does"
                f" not hold {lock}",
                hint="stop that process, or declare another `socket`",
            )
        try:
            control = stack.enter_context(closing(_opened(runner, state_dir, whole, owner)))
            return _shut_down(control, owner, timeout_s, whole)
        except Unreachable:
            # The socket goes first.
            return "the VMM ended" if owner.ends(Deadline(ENDING_S)) else _killed(owner)
        except (ApiError, DeadlineExceeded) as error:
            if owner.ends(Deadline(GOING_S)):
                return "the VMM ended"
            if isinstance(error, ApiError):
                raise
            return f"the VMM did not answer ({error.message}); {_killed(owner)}"


def _opened(runner: Runner, state_dir: Path, whole: Deadline, owner: Owner) -> Control:
    """Return a handle on a VMM that may be busy; raise its last excuse when time is over."""
    while True:
        try:
            return open_control(runner, state_dir)
        except DeadlineExceeded:
            if whole.expired or owner.ends(Deadline(0)):
                raise


def _shut_down(control: Control, owner: Owner, timeout_s: float, whole: Deadline) -> str:
    refusals = []
    for power_button, until, said in (
        (True, Deadline(min(timeout_s / 3, whole.left())), "the guest powered off"),
        (False, whole, "the guest powered off on Ctrl-Alt-Del"),
    ):
        ask = partial(control.shut_down, power_button=power_button)
        refusal = _refusal(ask)
        # One that boots does not listen yet.
        while isinstance(refusal, ApiError) and not until.expired:
            if owner.ends(Deadline(min(AGAIN_S, until.left()))):
                return "the VMM ended"
            refusal = _refusal(ask)
        if refusal:
            refusals.append(refusal.message)
        # Who can't be asked needs no time to answer.
        if owner.ends(Deadline(0) if isinstance(refusal, UnsupportedOperation) else until):
            return "the VMM ended" if refusal else said
    refusal = _refusal(control.quit)
    # Others end without an answer.
    stuck = isinstance(refusal, DeadlineExceeded | UnsupportedOperation)
    how = "the VMM was ended" if owner.ends(Deadline(0 if stuck else ENDING_S)) else _killed(owner)
    why = f" ({' and '.join(dict.fromkeys(refusals))})" if refusals else ""
    late = f"did not power off within {timeout_s:g} s"
    return f"the guest {late if whole.expired else 'can not be asked to power off'}{why}; {how}"


def _refusal(ask: Callable[[], None]) -> MicroVMError | None:
    """Ask a VMM for something; return why it can't, or that it takes too long."""
    try:
        ask()
    except MicroVMError as error:
        return error
    return None


def _killed(owner: Owner) -> str:
    owner.kill()
    gone = owner.ends(Deadline(ENDING_S))
    return "the VMM was killed" if gone else "the VMM was killed, and has not ended yet"


def set_balloon(runner: Runner, state_dir: Path, size_mib: int) -> None:
    """Give the guest `size_mib` MiB of memory.

    Raises `UnsupportedOperation`, `StateError` when it does not run, `ApiError`,
    `DeadlineExceeded`, `HostError` without the right to connect to it.
    """
    if not (runner.microvm.balloon or runner.microvm.hotplug_mem):
        raise UnsupportedOperation(
            f"{runner.name} has no balloon", hint="set `balloon = true` and start it again"
        )
    if size_mib < LEAST_MIB:
        raise UnsupportedOperation(
            f"{size_mib} MiB is too little memory for {runner.name}",
            hint=f"say at least {LEAST_MIB}; what runs in the guest needs more",
        )
    try:
        opened = open_control(runner, state_dir)
    except Unreachable as error:  # a VMM that was killed leaves its socket
        raise StateError(
            f"{runner.name} does not run in {state_dir}",
            hint="start it, then say it again, in the directory where it was started",
        ) from error
    with closing(opened) as control:
        if not isinstance(control, Ballooning):
            raise UnsupportedOperation(f"{runner.microvm.hypervisor} has no balloon")
        control.set_memory(size_mib)
