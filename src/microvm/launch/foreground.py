"""A machine in the foreground: its console on the terminal, or a job on our standard streams."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from microvm.errors import ApiError, HostError, MicroVMError
from microvm.host import stream, terminal
from microvm.host.process import Deadline, Process
from microvm.host.qmp import Qmp
from microvm.launch import planning, starting
from microvm.launch.console import Console
from microvm.launch.control import shut_down
from microvm.launch.job import JobStream
from microvm.model.plan import LaunchPlan

ESCAPE = 0x1D
"""Ctrl-]: then `q` ends the machine, `s` shuts the guest down, Ctrl-] again goes to the guest."""
ESCAPE_HELP = "Ctrl-] then q: end it; then s: shut it down; Ctrl-] twice: send Ctrl-]"

UP_TIMEOUT_S = 300.0
SHUTDOWN_TIMEOUT_S = 30.0
OWN_FAILURE = 125
TIMED_OUT = 124


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a foreground run ended."""

    exit_code: int
    reason: str
    console: str = ""
    """The end of the console, where it explains the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run in the foreground."""

    job: tuple[str, ...] | None = None
    """Command to run in the guest instead of a login."""
    directory: str = ""
    """Where the job starts; empty: the user's home."""
    ephemeral: bool = False
    """Keep no state: volumes are made anew and thrown away."""
    reset_root: bool = False
    """Make the root volume anew."""
    timeout_s: float | None = None
    """Time for all of it."""
    up_timeout_s: float = UP_TIMEOUT_S
    """Time until the guest is up."""
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
        if options.ephemeral:
            state_dir = Path(tempfile.mkdtemp(prefix="microvm-"))
            stack.callback(shutil.rmtree, state_dir, ignore_errors=True)
        name = planning.load_runner(runner_dir).name
        lock = stack.enter_context(starting.machine_lock(state_dir, name))
        interactive = options.job is None and os.isatty(0) and os.isatty(1)
        plan = planning.plan(
            runner_dir,
            state_dir=state_dir,
            project_dir=project_dir,
            job=options.job is not None,
            terminal=planning.terminal_of(0) if interactive else None,
        )
        for note in plan.notes:
            options.say(note)
        whole = Deadline(options.timeout_s) if options.timeout_s else None
        reset = options.reset_root
        while True:
            held = [lock, *starting.prepare(plan, state_dir, reset_root=reset)]
            reset = False
            try:
                outcome = _Session(plan, state_dir, options, interactive, whole).run(held)
            finally:
                for descriptor in held[1:]:
                    os.close(descriptor)
                for socket in plan.sockets:
                    (state_dir / socket).unlink(missing_ok=True)
            if outcome is not None:
                return outcome
            options.say("the guest reboots")


class _Session:
    """One life of a VMM, from start to end."""

    def __init__(
        self,
        plan: LaunchPlan,
        state_dir: Path,
        options: Options,
        interactive: bool,
        whole: Deadline | None,
    ) -> None:
        self._plan = plan
        self._state_dir = state_dir
        self._options = options
        self._interactive = interactive
        self._whole = whole
        self._boot = Deadline(options.up_timeout_s)
        self._console = Console()
        self._qmp: Qmp | None = None
        self._events: list[str] = []
        self._signals = 0
        self._stopping: Deadline | None = None
        self._ended_by: Outcome | None = None
        self._escaped = False
        self._raw: terminal.Raw | None = None
        self._status: int | None = None
        self._stream: stream.Connection | None = None
        self._stdin_open = interactive or options.job is not None
        self._job = (
            JobStream(options.job, directory=options.directory, write=_emit)
            if options.job is not None
            else None
        )

    def run(self, held: list[int]) -> Outcome | None:
        """Return how it ended; None when the guest asked for a reboot."""
        ours, theirs = terminal.open_console()
        with ExitStack() as stack:
            stack.callback(os.close, ours)
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            signals = stack.enter_context(terminal.caught_signals(*numbers))
            stack.enter_context(starting.helpers(self._plan, self._state_dir))
            try:
                running = stack.enter_context(
                    starting.vmm(self._plan, self._state_dir, console=theirs, held=held)
                )
            finally:
                os.close(theirs)
            if self._interactive:
                self._raw = terminal.Raw(0)
                stack.callback(self._raw.restore)
                self._options.say(f"{self._plan.name}: {ESCAPE_HELP}")
            self._loop(running, ours, signals)
            if self._qmp:
                self._take_events()
                self._qmp.close()
        return self._verdict()

    def _loop(self, running: Process, console: int, signals: int) -> None:
        try:
            while not self._must_end():
                self._connect()
                ready = terminal.readable(self._watched(running, console, signals), self._pause())
                if console in ready:
                    self._from_console(console)
                if signals in ready:
                    self._take_signals(signals)
                if 0 in ready:
                    self._stdin_open = self._from_stdin(console)
                self._exchange()
                if running.pidfd in ready:
                    self._status = running.wait(1)
                    self._from_console(console)
                    break
        finally:
            if self._stream:
                self._stream.close()

    def _watched(self, running: Process, console: int, signals: int) -> list[int]:
        watched = [console, signals, running.pidfd]
        if self._stdin_open and (self._job is None or self._job.wants_input):
            watched.append(0)
        if self._stream:
            watched.append(self._stream.fileno())
        return watched

    def _pause(self) -> float:
        """Look often while something is about to appear or wants to be written."""
        waiting = self._qmp is None or (self._job is not None and self._stream is None)
        return 0.02 if waiting or (self._job and self._job.outgoing) else 0.25

    def _connect(self) -> None:
        path = self._state_dir / (self._plan.control or "")
        if self._qmp is None and self._plan.control and path.exists():
            try:
                self._qmp = Qmp(path)
            except MicroVMError:
                self._qmp = None
        if self._job and self._stream is None and self._plan.job_socket:
            self._stream = stream.connect(self._state_dir / self._plan.job_socket)

    def _from_console(self, console: int) -> None:
        while data := terminal.read_some(console):
            was_up = self._console.up
            shown = self._console.feed(data)
            if self._job is None:
                terminal.write_all(1, shown)
            if self._console.up and not was_up:
                self._guest_is_up()

    def _guest_is_up(self) -> None:
        if self._raw:
            self._raw.enter()
        if self._options.until_up:
            self._ended_by = Outcome(0, "the guest was up and was shut down")
            self._stop()

    def _from_stdin(self, console: int) -> bool:
        data = terminal.read_some(0)
        if self._job:
            self._job.input(data or b"")
            return bool(data)
        if not data:
            return data is None
        if self._console.up:
            terminal.write_all(console, self._escape(data))
        return True

    def _escape(self, data: bytes) -> bytes:
        """Return what goes to the guest; carry out what follows the escape key."""
        passed = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in b"qQ":
                    self._end(Outcome(0, "ended by the escape key"))
                elif byte in b"sS":
                    self._stop()
                else:
                    passed.append(byte)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                passed.append(byte)
        return bytes(passed)

    def _take_signals(self, descriptor: int) -> None:
        for number in terminal.read_some(descriptor) or b"":
            name = signal.Signals(number).name
            outcome = Outcome(128 + number, f"ended by {name}")
            if number == signal.SIGINT and self._job and self._job.started:
                self._job.signal(number)
                self._signals += 1
                if self._signals > 1:
                    self._end(outcome)
            elif number == signal.SIGINT or self._signals:
                self._end(outcome)
            else:
                self._signals += 1
                self._ended_by = outcome
                self._stop()

    def _exchange(self) -> None:
        """Move bytes between the job and its stream."""
        job = self._job
        if job is None or self._stream is None:
            return
        descriptor = self._stream.fileno()
        while data := terminal.read_some(descriptor):
            job.receive(data)
        while job.outgoing:
            try:
                count = os.write(descriptor, job.outgoing[:65536])
            except OSError:
                break
            del job.outgoing[:count]
        if job.ended and self._stopping is None:
            self._stopping = Deadline(SHUTDOWN_TIMEOUT_S)

    def _stop(self) -> None:
        """Ask the guest to shut down; the loop goes on until it has, or its time is over."""
        if self._stopping is None:
            self._stopping = Deadline(SHUTDOWN_TIMEOUT_S)
            if self._qmp:
                try:
                    shut_down(self._qmp, power_button=True)
                except ApiError:
                    return

    def _end(self, outcome: Outcome) -> None:
        self._ended_by = outcome
        self._stopping = Deadline(0)

    def _must_end(self) -> bool:
        up = self._console.up or (self._job is not None and self._job.started)
        if self._whole and self._whole.expired:
            self._ended_by = Outcome(TIMED_OUT, "the time limit is over")
            return True
        if not up and self._boot.expired:
            seconds = f"{self._options.up_timeout_s:g}"
            self._ended_by = self._failure(f"the guest was not up within {seconds} s")
            return True
        if self._stopping is None:
            return False
        self._press_again()
        return self._stopping.expired

    def _press_again(self) -> None:
        """Ctrl-Alt-Del after three seconds: a guest may not listen to its power button."""
        if self._stopping and self._qmp and self._stopping.left() < SHUTDOWN_TIMEOUT_S - 3:
            if self._job and self._job.ended:
                return
            try:
                if "pressed" not in self._events:
                    self._events.append("pressed")
                    shut_down(self._qmp, power_button=False)
            except ApiError:
                return

    def _take_events(self) -> None:
        for event in self._qmp.drain() if self._qmp else ():
            if event["event"] == "SHUTDOWN":
                self._events.append(event["data"].get("reason", ""))

    def _failure(self, reason: str) -> Outcome:
        code = OWN_FAILURE if self._job else 1
        words = starting.last_words(self._state_dir)
        return Outcome(code, reason, f"{self._console.tail()}{words}")

    def _verdict(self) -> Outcome | None:
        if self._job and self._job.ended:
            if self._job.failure is not None:
                return Outcome(OWN_FAILURE, f"the job can't be started: {self._job.failure}")
            return Outcome(self._job.status or 0, "the job has ended")
        if self._ended_by:
            return self._ended_by
        if self._console.failed is not None:
            return self._failure(f"the guest can't go on: {self._console.failed}")
        if self._console.panicked:
            return self._failure("the guest's kernel panicked")
        status = self._status
        if status:
            return self._failure(f"the VMM ended with status {status}")
        if self._job:
            return self._failure("the guest ended before the job did")
        if "guest-reset" in self._events and "pressed" not in self._events:
            return (
                None if self._console.up else self._failure("the guest was reset while it booted")
            )
        if not self._console.up:
            return self._failure("the guest ended before it was up")
        return Outcome(0, "the guest powered off")


def _emit(descriptor: int, data: bytes) -> None:
    if not terminal.write_all(descriptor, data, timeout_s=3600):
        raise HostError(f"nobody reads standard {'output' if descriptor == 1 else 'error'}")


def say_on_stderr(text: str) -> None:
    """Show a line for people."""
    sys.stderr.write(f"microvm: {text}\r\n" if os.isatty(2) else f"microvm: {text}\n")
    sys.stderr.flush()
