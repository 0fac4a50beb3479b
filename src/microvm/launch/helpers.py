"""The programs beside a VMM: each inherits a socket that listens already, so nobody waits."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from microvm.errors import HostError, StateError
from microvm.host import files, process, stream, terminal
from microvm.host.process import Process
from microvm.launch import logs
from microvm.model.plan import Helper, LaunchPlan

LOCK = "helpers.lock"
"""Held by whoever serves a machine's helper sockets."""
SOON_S = 2.0
"""A helper that lives shorter than this failed to start."""


@dataclass(frozen=True, slots=True)
class Running:
    """A helper that was started."""

    helper: Helper
    process: Process

    def fate(self) -> str | None:
        """Say how it ended, or None while it runs."""
        status = self.process.wait(0)
        return None if status is None else f"{self.helper.name} {process.ended(status)}"


@contextmanager
def running(plan: LaunchPlan, state_dir: Path) -> Iterator[list[Running]]:
    """Run the helpers until the block is left. Raises `HostError`, `StateError`."""
    with ExitStack() as stack:
        if plan.helpers:
            stack.enter_context(_lock(state_dir))
        for helper in plan.helpers:  # one that never gets to start has not said what an earlier did
            logs.of_helper(helper, state_dir).unlink(missing_ok=True)
        found = []
        for helper in plan.helpers:
            listener = stack.enter_context(_listening(helper, state_dir))
            child = stack.enter_context(_spawn(helper, state_dir, listener))
            found.append(Running(helper, child))
        yield found


def served_elsewhere(plan: LaunchPlan, state_dir: Path) -> bool:
    """Return whether `microvm-launch virtiofsd-run` serves this machine's sockets."""
    if not plan.helpers:
        return False
    try:
        with _lock(state_dir):
            return False
    except StateError:
        return True


def serve(plan: LaunchPlan, state_dir: Path) -> None:
    """Serve the sockets until SIGTERM or SIGINT; a helper that ended with its VMM starts again.

    Raises `HostError` with a helper's last words when it can't be started.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    with ExitStack() as stack:
        signals = stack.enter_context(terminal.caught_signals(*numbers))
        stack.enter_context(_lock(state_dir))
        listeners = {
            helper.name: stack.enter_context(_listening(helper, state_dir))
            for helper in plan.helpers
        }
        written = [logs.of_helper(helper, state_dir) for helper in plan.helpers]
        lives: dict[str, tuple[Running, ExitStack, float]] = {}
        while signals not in terminal.ready(
            [signals, *(life[0].process.pidfd for life in lives.values())],
            [],
            1.0 if lives else 0,
        ):
            logs.bound(written)
            for helper in plan.helpers:
                if helper.name in lives:
                    _bury(lives, helper, state_dir)
                if helper.name not in lives:
                    life = stack.enter_context(ExitStack())
                    child = _spawn(helper, state_dir, listeners[helper.name])
                    started = Running(helper, life.enter_context(child))
                    lives[helper.name] = (started, life, time.monotonic())


def _bury(
    lives: dict[str, tuple[Running, ExitStack, float]], helper: Helper, state_dir: Path
) -> None:
    """Forget a helper that has ended; one that never got going raises `HostError`."""
    running_one, life, began = lives[helper.name]
    fate = running_one.fate()
    if fate is None:
        return
    life.close()
    del lives[helper.name]
    if time.monotonic() - began < SOON_S:
        raise HostError(f"{fate}{last_words([helper], state_dir)}")


def last_words(helpers: Sequence[Helper], state_dir: Path) -> str:
    """Return the end of what these helpers said."""
    text = ""
    for log in (logs.of_helper(helper, state_dir) for helper in helpers):
        if words := process.last_words(files.tail(log)):
            text += f"\n{log.name}:{words}"
    return text


@contextmanager
def _lock(state_dir: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock(state_dir / LOCK, wait=False))
        except StateError as error:
            raise StateError(
                f"the helpers in {state_dir} are served by another process already",
                hint="stop that one first: it is microvm-launch virtiofsd-run",
            ) from error
        yield


@contextmanager
def _listening(helper: Helper, state_dir: Path) -> Iterator[int]:
    stream.make_place(state_dir, helper.socket)
    stream.remove_stale(state_dir / helper.socket)
    with stream.listening(state_dir / helper.socket, helper.socket_group) as listener:
        yield listener


@contextmanager
def _spawn(helper: Helper, state_dir: Path, listener: int) -> Iterator[Process]:
    log = logs.of_helper(helper, state_dir)
    log.unlink(missing_ok=True)
    argv = (*_argv(helper), f"--fd={listener}")
    with process.spawn(argv, log=log, cwd=state_dir, pass_fds=(listener,)) as child:
        yield child


def _argv(helper: Helper) -> tuple[str, ...]:
    """Return what to run; trees of guests are served from a namespace with the store's id map."""
    if not helper.ids:
        return helper.argv
    from microvm.launch import mapped

    return mapped.command("virtiofsd", helper.ids, helper.read_only or "", *helper.argv)
