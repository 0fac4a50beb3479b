"""What can be asked of a running VMM; what only some can do is a class of its own."""

from abc import ABC, abstractmethod

from microvm.errors import ApiError, UnsupportedOperation

MIB = 1 << 20
"""Bytes: what most VMMs are told sizes in."""


class Control(ABC):
    """A running VMM at the other end of its control socket. Close it when done."""

    @abstractmethod
    def shut_down(self, *, power_button: bool) -> None:
        """Ask the guest to power off, and don't wait: by its power button, else by Ctrl-Alt-Del.

        A VMM that has only one of the two takes that one. Raises `ApiError`, `DeadlineExceeded`,
        `UnsupportedOperation` where the guest can't be asked, `HostError` without the right to
        connect.
        """

    @abstractmethod
    def quit(self) -> None:
        """End the VMM at once, whatever its guest does.

        Raises `ApiError`, `DeadlineExceeded`, `HostError` without the right to.
        """

    def was_reset(self) -> bool:
        """Return whether the VMM has told that the guest asked for a reboot."""
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing open between two requests
        """Let go of the VMM; it goes on running."""


class Ballooning(ABC):
    """Controls that can take memory from the guest and give it back. An ability a VMM may lack."""

    @abstractmethod
    def set_memory(self, size_mib: int) -> None:
        """Leave the guest `size_mib` MiB of its memory.

        Raises `ApiError`, `DeadlineExceeded`, `UnsupportedOperation` where it takes a balloon,
        `HostError` without the right to connect.
        """

    def _must_fit(self, size_mib: int, most_mib: int) -> None:
        if not 0 < size_mib <= most_mib:
            raise ApiError(
                f"the guest can have 1 to {most_mib} MiB, not {size_mib}",
                hint="for more, raise `mem` and start it again",
            )

    def _needs_balloon(self, base_mib: int, why: str = "") -> UnsupportedOperation:
        return UnsupportedOperation(
            f"without a balloon the guest keeps its {base_mib} MiB{why}",
            hint="set `balloon = true` and start it again",
        )


class Pausable(ABC):
    """Controls that can stop and continue the virtual CPUs. An ability a VMM may lack."""

    @abstractmethod
    def pause(self) -> None:
        """Stop all virtual CPUs. Pausing a paused VMM changes nothing."""

    @abstractmethod
    def resume(self) -> None:
        """Let the virtual CPUs go on. Resuming a running VMM changes nothing."""
