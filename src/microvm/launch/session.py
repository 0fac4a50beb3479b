"""One life of a VMM in the foreground, from its start to its end or the guest's reboot."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from microvm.errors import MicroVMError
from microvm.host import terminal
from microvm.host.process import Deadline, Process, ended
from microvm.host.terminal import Outlet
from microvm.hypervisors import hypervisor
from microvm.hypervisors.control import Control
from microvm.launch import helpers, keys, logs, starting
from microvm.launch.console import Console
from microvm.launch.job import LINE_WINDOW, STREAM_WINDOW, JobStream
from microvm.launch.meeting import Meet, Stream, meeting
from microvm.launch.shutdown import Shutdown
from microvm.model.plan import LaunchPlan

UP_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 90.0
"""As long as systemd gives a guest's service to stop."""
HELPER_GRACE_S = 2.0
"""A helper ends when its VMM does; one that the VMM outlives by this much has failed."""
PANIC_GRACE_S = 3.0
"""A guest that panics ends its VMM; one that the VMM outlives by this much stands still in it."""
ANSWER_S = 1.0
"""What a VMM has for an answer: while it is waited for, Ctrl-C waits too."""
OWN_FAILURE = 125
TIMED_OUT = 124
NOBODY_READS = 128 + signal.SIGPIPE
HUNG_UP = 128 + signal.SIGHUP


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a foreground run ended."""

    exit_code: int
    reason: str
    console: str = ""
    """The end of the console, where it explains the reason."""
    own: bool = False
    """The job's status: nothing is to be said about it."""
    hint: str = ""
    """What to do next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a session is for, and for how long."""

    job: tuple[str, ...] | None
    directory: str
    until_up: bool
    interactive: bool
    """Whether a person has the console at a terminal."""
    up_timeout_s: float
    stop_timeout_s: float
    whole: Deadline | None
    say: Callable[[str], None]


class Session:
    """Moves bytes between the guest and our standard streams, and knows when to end."""

    def __init__(self, plan: LaunchPlan, state_dir: Path, goal: Goal) -> None:
        self._plan = plan
        self._state_dir = state_dir
        self._goal = goal
        self._logs = logs.of(plan, state_dir)
        self._boot = Deadline(goal.up_timeout_s)
        self._console = Console()
        self._keys = keys.Keys()
        self._control: Control | None = None
        self._reset = False
        self._signals = 0
        self._shutdown = Shutdown(goal.stop_timeout_s)
        self._helper_ended: Deadline | None = None
        self._panicked: Deadline | None = None
        self._fates = ""
        self._ended_by: Outcome | None = None
        self._raw: terminal.Raw | None = None
        self._status: int | None = None
        self._stream: Stream | None = None
        self._meet: Meet = lambda pid: None
        self._stdin_open = goal.interactive or goal.job is not None
        self._out = {1: Outlet(1), 2: Outlet(2)}
        serial = plan.job is not None and plan.job.kind == "terminal"
        window = LINE_WINDOW if serial else STREAM_WINDOW
        escape = plan.escape.encode() if serial else b""
        self._job = (
            JobStream(goal.job, goal.directory, write=self._emit, window=window, escape=escape)
            if goal.job is not None
            else None
        )

    def run(self, held: list[int]) -> Outcome | None:
        """Return how it ended; None when the guest asked for a reboot."""
        ours, theirs = terminal.open_console()
        with ExitStack() as stack:
            stack.callback(os.close, ours)
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            signals = stack.enter_context(terminal.caught_signals(*numbers))
            try:
                self._meet = stack.enter_context(meeting(self._plan.job, self._state_dir))
                running = stack.enter_context(helpers.running(self._plan, self._state_dir))
                vmm = stack.enter_context(
                    starting.vmm(self._plan, self._state_dir, console=theirs, held=held)
                )
            finally:
                os.close(theirs)
            if self._goal.interactive:
                self._raw = terminal.Raw(0)
                stack.callback(self._raw.restore)
                self._raw.listen()
                self._goal.say(f"{self._plan.name}: {keys.HELP}")
            self._loop(vmm, running, ours, signals)
            self._finish(signals)
        return self._told_overdue(self._verdict())

    def _loop(
        self, vmm: Process, running: list[helpers.Running], console: int, signals: int
    ) -> None:
        typed = Outlet(console)
        while not self._must_end():
            self._connect(vmm.pid)
            self._watch_helpers(running)
            logs.bound(self._logs)
            readers = [signals, vmm.pidfd, *self._sources(console, typed)]
            writers = [out.descriptor for out in (*self._out.values(), typed) if out.pending]
            if self._stream and self._job and self._job.outgoing:
                writers.append(self._stream.fileno())
            ready = terminal.ready(readers, writers, self._pause())
            if signals in ready:
                self._take_signals(signals)
            if console in ready:
                self._from_console(console)
            if 0 in ready:
                self._from_stdin(typed)
            self._exchange()
            self._flush(typed)
            if vmm.pidfd in ready:
                self._status = vmm.wait(1)
                self._last_bytes(console)
                break

    def _sources(self, console: int, typed: Outlet) -> list[int]:
        """Return what to read from: nothing whose bytes nobody takes now."""
        found = []
        if all(out.has_room for out in self._out.values()):
            found.append(console)
            if self._stream:
                found.append(self._stream.fileno())
        wanted = self._job.wants_input if self._job else typed.has_room
        if self._stdin_open and wanted:
            found.append(0)
        return found

    def _pause(self) -> float:
        """Look often while a socket is about to appear."""
        waiting = self._control is None or (self._job is not None and self._stream is None)
        return 0.02 if waiting else 0.25

    def _connect(self, pid: int) -> None:
        if self._control is None and self._plan.watch:
            path = self._state_dir / self._plan.watch
            if path.exists():
                backend = hypervisor(self._plan.hypervisor)
                try:
                    self._control = backend.control(
                        path, program=self._plan.argv[0], timeout_s=ANSWER_S
                    )
                except MicroVMError:
                    self._control = None  # not listening yet: the loop comes back
        if self._job and self._stream is None:
            self._stream = self._meet(pid)

    def _watch_helpers(self, running: list[helpers.Running]) -> None:
        if self._helper_ended is None:
            self._fates = ", ".join(filter(None, (one.fate() for one in running)))
            if self._fates:
                self._helper_ended = Deadline(HELPER_GRACE_S)

    def _from_console(self, console: int) -> None:
        data = terminal.read_some(console)
        if not data:
            return
        was_up = self._console.up
        shown = self._console.feed(data)
        if self._job is None:
            self._out[1].put(shown)
        if self._console.up and not was_up:
            self._guest_is_up()
        if self._console.panic is None:
            self._panicked = None
        elif self._panicked is None:
            self._panicked = Deadline(PANIC_GRACE_S)

    def _guest_is_up(self) -> None:
        if self._raw:
            self._raw.enter()
        if self._goal.until_up:
            self._stop_for(Outcome(0, "the guest was up and was shut down"))

    def _from_stdin(self, typed: Outlet) -> None:
        data = terminal.read_some(0)
        if data is None:
            return
        self._stdin_open = bool(data)
        if self._job:
            self._job.input(data)
            return
        if not data:  # a terminal ends only when it goes; not everyone gets a SIGHUP of that
            self._stop_for(Outcome(HUNG_UP, "the terminal has gone"))
        passed, commands = self._keys.feed(data)
        typed.put(keys.doubled(passed, self._plan.escape.encode()))
        for command in commands:
            if command == "s" and not self._shutdown.begun:
                self._shutdown.ask(self._control)
            else:
                self._end(Outcome(0, "ended by the escape key"))

    def _emit(self, descriptor: int, data: bytes) -> None:
        self._out[descriptor].put(data)

    def _take_signals(self, descriptor: int) -> None:
        for number in terminal.read_some(descriptor) or b"":
            name = signal.Signals(number).name
            outcome = Outcome(128 + number, f"ended by {name}")
            passed_on = number == signal.SIGINT and self._job and self._job.started
            if self._signals or (number == signal.SIGINT and self._plan.console and not passed_on):
                self._end(outcome)
            elif passed_on and self._job:
                self._job.signal(number)
            else:
                self._stop_for(outcome)
            self._signals += 1

    def _exchange(self) -> None:
        """Move bytes between the job and its stream."""
        job = self._job
        if job is None or self._stream is None:
            return
        descriptor = self._stream.fileno()
        while all(out.has_room for out in self._out.values()):
            data = terminal.read_some(descriptor)
            if not data:
                break
            job.receive(data)
        while job.outgoing:
            try:
                count = os.write(descriptor, job.outgoing[:65536])
            except OSError:
                break
            del job.outgoing[:count]
        if job.ended:
            self._shutdown.expect()

    def _flush(self, typed: Outlet) -> None:
        for out in (*self._out.values(), typed):
            out.flush()
        if self._out[1].broken:
            self._stop_for(Outcome(NOBODY_READS, "nobody reads standard output", own=True))

    def _last_bytes(self, console: int) -> None:
        """Take what the guest and the VMM said before they went."""
        while (data := terminal.read_some(console)) and len(self._out[1].pending) < 16 << 20:
            shown = self._console.feed(data)
            if self._job is None:
                self._out[1].put(shown)
        if self._job and self._stream:
            while data := terminal.read_some(self._stream.fileno()):
                self._job.receive(data)
        self._reset = self._console.ending == "reboot" or bool(
            self._control and self._control.was_reset()
        )

    def _finish(self, signals: int) -> None:
        """Let go of the VMM's sockets, and wait until our readers have everything."""
        if self._goal.interactive and self._console.in_line:
            self._out[1].put(b"\r\n")
        if self._stream:
            self._stream.close()
        if self._control:
            self._control.close()
        while any(out.pending and not out.broken for out in self._out.values()):
            writers = [out.descriptor for out in self._out.values() if out.pending]
            late = self._goal.whole is not None and self._goal.whole.expired
            if late or signals in terminal.ready([signals], writers, 0.25):
                return
            for out in self._out.values():
                out.flush()

    def _stop_for(self, outcome: Outcome) -> None:
        """Ask the guest to shut down for a reason; the first one counts."""
        self._ended_by = self._ended_by or outcome
        self._shutdown.ask(self._control)

    def _end(self, outcome: Outcome) -> None:
        self._ended_by = outcome
        self._shutdown.cut_short()

    def _must_end(self) -> bool:
        if self._goal.whole and self._goal.whole.expired:
            self._ended_by = Outcome(TIMED_OUT, "the time limit is over")
            return True
        if self._helper_ended and self._helper_ended.expired:
            return True
        if self._panicked and self._panicked.expired and self._console.ending is None:
            self._ended_by = self._failure(self._panic())
            return True
        started = self._job.started if self._job else self._console.up or not self._plan.console
        if not started and self._boot.expired:
            seconds = f"{self._goal.up_timeout_s:g}"
            hint = "give it more time, by --boot-timeout (up_timeout_s)"
            self._ended_by = self._failure(f"the guest was not up within {seconds} s", hint)
            return True
        stops = self._console.stopping or bool(self._job and self._job.ended)
        return self._shutdown.step(self._control, stops=stops)

    def _panic(self) -> str:
        return f"the guest's kernel panicked: {self._console.panic}"

    def _failure(self, reason: str, hint: str = "") -> Outcome:
        code = OWN_FAILURE if self._job else 1
        words = starting.last_words(self._plan, self._state_dir)
        seen = self._goal.interactive  # the console is on the person's screen already
        return Outcome(code, reason, f"{'' if seen else self._console.tail()}{words}", hint=hint)

    def _verdict(self) -> Outcome | None:
        if self._job and self._job.ended and not self._out[1].broken:
            if self._job.failure is not None:
                return Outcome(OWN_FAILURE, f"the job can't be started: {self._job.failure}")
            return Outcome(self._job.status or 0, "the job has ended", own=True)
        if self._ended_by:
            return self._ended_by
        if self._helper_ended and self._status is None:
            return self._failure(f"{self._fates} while the machine ran")
        if self._console.failed is not None:
            return self._failure(f"the guest can't go on: {self._console.failed}")
        return self._guests_verdict()

    def _told_overdue(self, outcome: Outcome | None) -> Outcome | None:
        """Add that the guest was asked to shut down and did not, within its time."""
        if not self._shutdown.overdue:
            return outcome
        seconds = f"{self._shutdown.timeout_s:g}"
        late = f"the guest did not shut down within {seconds} s and was killed"
        if outcome is None or (outcome.exit_code == 0 and not outcome.own):
            return self._failure(late)
        return replace(outcome, reason=f"{outcome.reason}; {late}", own=False)

    def _guests_verdict(self) -> Outcome | None:
        """Say how the guest ended, when nobody else ended it."""
        up = self._console.up or not self._plan.console
        said = self._plan.statuses.get(self._status or 0)
        self._reset = self._reset or said == "reboot"
        if self._status and said != "reboot":
            return self._failure(said or f"the VMM {ended(self._status)}")
        if self._console.panic is not None and self._console.ending is None:
            return self._failure(self._panic())
        if self._job:
            return self._failure("the guest ended before the job did")
        if self._reset and not self._shutdown.repeated:
            return None if up else self._failure("the guest was reset while it booted")
        if not up:
            return self._failure("the guest ended before it was up")
        return Outcome(0, "the guest powered off")
