"""A machine in the foreground: its console on the terminal, or a job on our standard streams."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from microvm.errors import Problem, SpecError
from microvm.host import stream
from microvm.host.process import Deadline
from microvm.launch import planning, session, starting, taps
from microvm.launch.session import Outcome, Session
from microvm.model.plan import LaunchPlan

__all__ = ["Options", "Outcome", "foreground"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run in the foreground."""

    job: tuple[str, ...] | None = None
    """Command to run in the guest instead of a login."""
    directory: str = ""
    """Where the job starts; empty: the user's home."""
    reset_root: bool = False
    """Make the root volume anew."""
    timeout_s: float | None = None
    """Time for all of it."""
    up_timeout_s: float = session.UP_TIMEOUT_S
    """Time until the guest is up."""
    stop_timeout_s: float = session.STOP_TIMEOUT_S
    """Time for a clean shutdown, before the guest is killed."""
    until_up: bool = False
    """Shut the guest down cleanly once it is up."""
    say: Callable[[str], None] = lambda text: None
    """Takes lines for people."""


def foreground(
    runner_dir: Path, *, state_dir: Path, project_dir: Path, options: Options
) -> Outcome:
    """Run a machine until it ends; the terminal is put back whatever happens.

    Raises `MicroVMError` when it can't be started.
    """
    with ExitStack() as stack:
        runner = planning.load_runner(runner_dir)
        lock = stack.enter_context(starting.machine_lock(state_dir, runner.name))
        starting.check_devices(runner)
        start = planning.Start(
            runner_dir=runner_dir,
            state_dir=state_dir,
            project_dir=project_dir,
            watched=True,
            job=options.job is not None,
            terminal=planning.terminal_of(0) if _at_terminal(options) else None,
        )
        plan = planning.plan(runner, start)
        return carry_out(plan, lock, state_dir=state_dir, options=options)


def _at_terminal(options: Options) -> bool:
    return options.job is None and os.isatty(0) and os.isatty(1)


def carry_out(plan: LaunchPlan, lock: int, *, state_dir: Path, options: Options) -> Outcome:
    """Start what is planned until it ends; `lock` is the machine's, which the VMM inherits.

    Raises as `foreground` does.
    """
    with ExitStack() as stack:
        if options.until_up and not plan.console:
            message = "nothing tells when the guest is up: its console is off"
            raise SpecError([Problem(where="qemu.serial_console", message=message)])
        for note in plan.notes:
            options.say(note)
        stack.enter_context(taps.held(plan, state_dir))
        goal = session.Goal(
            job=options.job,
            directory=options.directory,
            until_up=options.until_up,
            interactive=_at_terminal(options) and plan.console,
            up_timeout_s=options.up_timeout_s,
            stop_timeout_s=options.stop_timeout_s,
            whole=Deadline(options.timeout_s) if options.timeout_s else None,
            say=options.say,
        )
        reset = options.reset_root
        while True:
            with ExitStack() as life:
                held = starting.prepare(plan, state_dir, reset_root=reset, say=options.say)
                for descriptor in held:
                    life.callback(os.close, descriptor)
                for socket in plan.sockets:
                    life.callback(stream.remove, state_dir / socket)
                opened = life.enter_context(taps.opened(plan))
                outcome = Session(plan, state_dir, goal).run([lock, *held, *opened])
            reset = False
            if outcome is not None:
                return outcome
            options.say("the guest reboots")
