"""Asking a guest to shut down: at once, then again, until it does or its time is over."""

from microvm.errors import MicroVMError
from microvm.host.process import Deadline
from microvm.hypervisors.control import Control

AGAIN_S = 3.0
"""After this the power button, which a guest may not listen to, gives way to Ctrl-Alt-Del, then
is pressed again, until the guest says that it stops: one that boots listens to nothing yet."""


class Shutdown:
    """What a guest was asked, and how long it has for it."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.overdue = False
        """The guest's time was over before the guest was."""
        self.repeated = False
        """The time to ask it again has come: a reset may be its answer to Ctrl-Alt-Del."""
        self._until: Deadline | None = None
        self._next: Deadline | None = None
        self._cut_short = False

    @property
    def begun(self) -> bool:
        """Whether the guest is on its way to its end."""
        return self._until is not None

    def ask(self, control: Control | None) -> None:
        """Press the power button, unless the guest is on its way already."""
        if self._until is None:
            self.expect()
            _press(control, power_button=True)

    def expect(self) -> None:
        """Give the guest its time from now on; it ends by itself."""
        if self._until is None:
            self._until = Deadline(self.timeout_s)

    def cut_short(self) -> None:
        """Give it no more time."""
        self._until = Deadline(0)
        self._cut_short = True

    def step(self, control: Control | None, *, stops: bool) -> bool:
        """Ask again where it is time to, unless the guest `stops`; return whether time is over."""
        if self._until is None:
            return False
        self._ask_again(control, stops=stops)
        self.overdue = self._until.expired and not self._cut_short
        return self._until.expired

    def _ask_again(self, control: Control | None, *, stops: bool) -> None:
        if self._next is None:
            self._next = Deadline(AGAIN_S)
        elif self._next.expired:
            self._next = Deadline(AGAIN_S)
            power_button, self.repeated = self.repeated, True
            if not stops:
                _press(control, power_button=power_button)


def _press(control: Control | None, *, power_button: bool) -> None:
    if control:
        try:
            control.shut_down(power_button=power_button)
        except MicroVMError:
            return  # gone, or stuck: the time limit ends it
