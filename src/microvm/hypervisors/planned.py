"""Hypervisors that can be named but not used yet: everything is refused, nothing ignored."""

from pathlib import Path

from microvm.errors import Problem, SpecError
from microvm.hypervisors.base import Hypervisor
from microvm.hypervisors.control import Control
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner


class Planned(Hypervisor):
    """A back end that is not written yet."""

    supports = ()

    def __init__(self, name: str) -> None:
        self._name = name

    def check(self, microvm: MicroVM, facts: Facts | None = None) -> list[Problem]:
        """Refuse."""
        message = f"{self._name} is not available in this version"
        return [Problem(where="hypervisor", message=message, hint="use qemu")]

    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Refuse."""
        raise SpecError(self.check(MicroVM()))

    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Refuse."""
        raise SpecError(self.check(runner.microvm))
