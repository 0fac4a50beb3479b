"""A running crosvm, by the program itself: its control socket speaks no documented protocol."""

from pathlib import Path

from microvm.errors import ApiError, CommandFailed, UnsupportedOperation
from microvm.host import process
from microvm.hypervisors.control import MIB, Ballooning, Pausable
from microvm.hypervisors.socket_control import SocketControl


class CrosvmControl(SocketControl, Ballooning, Pausable):
    """The control socket of one crosvm; every request is a run of `crosvm VERB`."""

    vmm = "crosvm"

    def __init__(self, path: Path, *, timeout_s: float, program: str, mem_mib: int) -> None:
        """Raise `Unreachable` when nobody listens there."""
        super().__init__(path, timeout_s=timeout_s)
        self._program = program
        self._mem_mib = mem_mib

    def shut_down(self, *, power_button: bool) -> None:
        """Press the power button; it has no keys to press."""
        self._ask("powerbtn")

    def quit(self) -> None:
        """End crosvm."""
        self._ask("stop")

    def set_memory(self, size_mib: int) -> None:
        """Set the balloon: crosvm's value is what the balloon takes, in bytes."""
        self._must_fit(size_mib, self._mem_mib)
        self._ask("balloon", str((self._mem_mib - size_mib) * MIB))

    def pause(self) -> None:
        """Suspend the virtual CPUs."""
        self._ask("suspend")

    def resume(self) -> None:
        """Resume them."""
        self._ask("resume")

    def _ask(self, verb: str, *arguments: str) -> None:
        if not self._program:
            raise UnsupportedOperation(
                "crosvm is asked by its own program, which is missing",
                hint="put crosvm on PATH, or set `crosvm.program`",
            )
        argv = [self._program, verb, *arguments, self._path.name]
        try:
            process.run(
                argv, timeout_s=self._timeout_s, cwd=self._path.parent, doing=f"ask crosvm: {verb}"
            )
        except CommandFailed as error:
            raise ApiError(error.message) from error
