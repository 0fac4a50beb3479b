"""Talk to a running machine's VMM: shut the guest down, set its balloon."""

import os
import time
from contextlib import closing
from pathlib import Path

from microvm.errors import ApiError, StateError, UnsupportedOperation
from microvm.host import process, stream
from microvm.host.process import Deadline
from microvm.hypervisors import hypervisor
from microvm.hypervisors.control import Ballooning, Control
from microvm.launch import planning
from microvm.model.constraints import LEAST_MIB
from microvm.model.runner import Runner

ANSWER_S = 10.0
"""Time that a VMM has for each answer."""
LOOK_S = 0.1


def open_control(runner: Runner, state_dir: Path) -> Control:
    """Return a handle on the machine that runs in `state_dir`; close it when done.

    Raises `ApiError` if none does.
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

    Returns which of them ended it. Raises `ApiError` when no VMM answers.
    """
    if not _runs(runner, state_dir):
        return "it is not running"
    whole, button = Deadline(timeout_s), Deadline(timeout_s / 3)
    with closing(open_control(runner, state_dir)) as control:
        try:
            refusal = _press(control, power_button=True)
            if _gone(control, button):
                return "the guest powered off"
            refusal = _press(control, power_button=False) or refusal
            if _gone(control, whole):
                return "the guest powered off on Ctrl-Alt-Del"
            control.quit()
        except ApiError:
            return "the VMM ended"
    why = f" ({refusal})" if refusal else ""
    return f"the guest did not power off within {timeout_s:g} s{why}; the VMM was ended"


def _runs(runner: Runner, state_dir: Path) -> bool:
    """Return whether somebody answers: a VMM that was killed leaves its socket."""
    return stream.listens(_socket(runner, state_dir))


def _press(control: Control, *, power_button: bool) -> str | None:
    """Ask for a shutdown; return the words of a VMM that can't."""
    try:
        control.shut_down(power_button=power_button)
    except ApiError as error:
        if control.alive():
            return error.message
        raise
    return None


def _gone(control: Control, deadline: Deadline) -> bool:
    while not deadline.expired:
        if not control.alive():
            return True
        time.sleep(LOOK_S)
    return False


def set_balloon(runner: Runner, state_dir: Path, size_mib: int) -> None:
    """Give the guest `size_mib` MiB of memory.

    Raises `UnsupportedOperation`, `StateError` when it does not run, `ApiError`.
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
    if not _runs(runner, state_dir):
        raise StateError(
            f"{runner.name} does not run in {state_dir}",
            hint="start it, then say it again, in the directory where it was started",
        )
    with closing(open_control(runner, state_dir)) as control:
        if not isinstance(control, Ballooning):
            raise UnsupportedOperation(f"{runner.microvm.hypervisor} has no balloon")
        control.set_memory(size_mib)
