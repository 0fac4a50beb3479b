"""Progress on standard error: live lines on a terminal, one plain line a step without one."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from microvm.cli import tell
from microvm.errors import printable
from microvm.model.progress import Event, Progress


class Steps:
    """Shows events and remembers how long each step took."""

    def __init__(self) -> None:
        self._step = ""
        self._began = 0.0
        self.times: dict[str, float] = {}

    def note(self, event: Event) -> bool:
        """Take the time of an event; return whether a new step begins."""
        now = time.monotonic()
        if event.step == self._step:
            return False
        self.finish(now)
        self._step, self._began = event.step, now
        return True

    def finish(self, now: float) -> None:
        """End the current step."""
        if self._step:
            self.times[self._step] = self.times.get(self._step, 0) + now - self._began
            self._step = ""


@contextmanager
def shown(steps: Steps) -> Iterator[Progress]:
    """Yield what takes the events of one piece of work."""
    if sys.stderr.isatty():
        with _live(steps) as progress:
            yield progress
        return

    def plain(event: Event) -> None:
        if event.note or steps.note(event):
            tell(_line(event))

    yield plain
    steps.finish(time.monotonic())


def _line(event: Event) -> str:
    """Return an event as one line; its detail may be a command of a project."""
    text = f"{event.step}: {event.detail}" if event.detail else event.step
    return printable(text.replace("\n", " "))


class _Screen(io.TextIOWrapper):
    """The terminal at standard error, whose end ends no work.

    Unbuffered, and beside `sys.stderr`: what nobody takes is kept nowhere until the end of Python.
    """

    def __init__(self) -> None:
        raw = io.FileIO(sys.stderr.fileno(), "w", closefd=False)
        super().__init__(raw, sys.stderr.encoding, "backslashreplace", write_through=True)
        self._gone = False

    def write(self, text: str) -> int:
        if not self._gone:
            try:
                return super().write(text)
            except OSError:
                self._gone = True
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


@contextmanager
def _live(steps: Steps) -> Iterator[Progress]:
    """Rich is loaded only when there is something to show: most builds have nothing to do."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        bar = None

        def live(event: Event) -> None:
            nonlocal bar
            if bar is None:
                from rich.console import Console
                from rich.progress import (
                    BarColumn,
                    Progress,
                    SpinnerColumn,
                    TextColumn,
                    TimeElapsedColumn,
                )

                columns = (
                    SpinnerColumn(),
                    TextColumn("{task.description}", markup=False),
                    BarColumn(20),
                    TimeElapsedColumn(),
                )
                bar = stack.enter_context(
                    Progress(*columns, console=Console(file=_Screen()), transient=True)
                )
                bar.add_task("", total=None)
            if event.note:
                bar.console.print(f"microvm: {_line(event)}", markup=False, highlight=False)
                return
            task = bar.task_ids[0]
            if steps.note(event):
                bar.reset(task)  # a step that was counted to its end would stand still
            bar.update(
                task,
                description=_line(event)[:100],
                completed=event.done or 0,
                total=event.total,
            )

        yield live
    steps.finish(time.monotonic())
