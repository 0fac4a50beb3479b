"""What every back end is: a pure translator, and the rows that say what it can do."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from microvm.errors import Problem
from microvm.hypervisors import limits
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import INSTEAD, Feature, Support, wanted
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts, HostFacts, Program, dotted
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner


class Hypervisor(ABC):
    """Translates a runner into a plan. Holds no state and has no side effects."""

    name: ClassVar[str]
    program: ClassVar[str]
    """Name of the program on PATH; `{arch}` stands for the machine name."""
    control_socket: ClassVar[str]
    """Where the VMM listens unless `socket` is declared; relative to the state directory."""
    boots_vmlinux: ClassVar[bool] = False
    """Whether it wants the uncompressed kernel instead of the distribution's image (on x86)."""
    most_queues: ClassVar[int] = 1
    """Most queue pairs of a tap or macvtap; it has one for each virtual CPU."""
    one_disk: ClassVar[bool] = False
    """Whether it takes so few disks that the root's layers have to be one."""
    oldest: ClassVar[tuple[int, ...]] = ()
    """First version whose command line is the one that we know."""
    newest: ClassVar[tuple[int, ...]] = ()
    """Last version that was seen to work; later ones are used like it."""
    supports: ClassVar[tuple[Support, ...]]

    def support(self, feature: Feature) -> Support:
        """Return the row of a feature; one that no row names is not available."""
        for row in self.supports:
            if row.feature is feature:
                return row
        return Support(feature=feature, available=False)

    def instead(self, feature: Feature) -> str:
        """Return what to do without a feature that this one lacks: here, or on which others."""
        from microvm.hypervisors import able  # all back ends: for those who ask

        here = self.support(feature).instead or INSTEAD.get(feature)
        *most, last = able(feature) or [""]
        others = f"use {', '.join(most)}{' or ' if most else ''}{last}" if last else None
        return "; or ".join(filter(None, (here, others)))

    def check(self, microvm: MicroVM, facts: HostFacts | None = None) -> list[Problem]:
        """Return every reason why it can't be run; with facts, by this version on this host."""
        problems = [
            self._refusal(where, feature)
            for feature, places in wanted(microvm).items()
            if not self.support(feature).available
            for where in places
        ]
        problems += self.further_problems(microvm)
        if facts is None:
            return problems
        program = facts.programs.get(self.program)
        problems += limits.absent(microvm, facts)
        problems += self.too_old(microvm, program) if program else []
        if program and not program.has(self.oldest):
            return problems
        return [*problems, *self.problems_here(microvm, facts)]

    def too_old(self, microvm: MicroVM, program: Program) -> list[Problem]:
        """Return what takes a later version of the program than this one."""
        if not program.has(self.oldest):
            message = self._needs(self.oldest, program)
            hint = f"install a later {self.name}, or name another `program`"
            return [Problem(where="hypervisor", message=message, hint=hint)]
        problems = []
        for feature, places in wanted(microvm).items():
            row = self.support(feature)
            if row.available and row.since and not program.has(row.since):
                message = f"{feature.value}: {self._needs(row.since, program)}"
                otherwise = row.instead or INSTEAD.get(feature)
                hint = "; or ".join(filter(None, (f"install a later {self.name}", otherwise)))
                problems += [Problem(where=w, message=message, hint=hint) for w in places]
        return problems

    def _needs(self, need: tuple[int, ...], program: Program) -> str:
        return f"it needs {self.name} {dotted(need)}, this is {dotted(program.version)}"

    def _refusal(self, where: str, feature: Feature) -> Problem:
        message = f"{self.name} does not support {feature.value} here"
        return Problem(where=where, message=message, hint=self.instead(feature))

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Return what rows can't say, such as too many disks."""
        return []

    def problems_here(self, microvm: MicroVM, facts: HostFacts) -> list[Problem]:
        """Return what this host or this version of the program can't do of what is declared."""
        return []

    def declared_program(self, microvm: MicroVM) -> str | None:
        """Return the path that a declaration names for this hypervisor's program."""
        options = getattr(microvm, self.name.replace("-", "_"))
        program: str | None = options.program
        return program

    def queues(self, microvm: MicroVM) -> int:
        """Return the queue pairs of an interface that the launcher makes."""
        return min(microvm.vcpu, self.most_queues)

    @abstractmethod
    def control(
        self, path: Path, *, timeout_s: float, program: str = "", mem_mib: int = 0
    ) -> Control:
        """Return a handle on the VMM whose control socket (`LaunchPlan.control`) this is.

        `program` and `mem_mib`: the VMM's own program and its guest's memory, for those whose
        sockets don't tell. Every answer has `timeout_s` seconds. Raises `ApiError` when nobody
        listens there, `DeadlineExceeded`.
        """

    @abstractmethod
    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return what to write and execute. Touches nothing. Raises `SpecError`."""
