"""What every back end is: a pure translator, and the rows that say what it can do."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from microvm.errors import Problem
from microvm.hypervisors import limits
from microvm.hypervisors.control import Control
from microvm.hypervisors.features import INSTEAD, Feature, Support, use, wanted
from microvm.hypervisors.room import Most, Room, refusal
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
    host_vsock: ClassVar[bool] = True
    """Whether its vsock is that of the host's kernel; else it is Unix sockets."""
    supports: ClassVar[tuple[Support, ...]]
    takes: ClassVar[tuple[Most, ...]] = ()
    """How many of something it takes; nothing: as many as can be declared."""

    def support(self, feature: Feature) -> Support:
        """Return the row of a feature; one that no row names is not available."""
        for row in self.supports:
            if row.feature is feature:
                return row
        return Support(feature=feature, available=False)

    def instead(self, feature: Feature) -> str:
        """Return what to do without a feature that this one lacks: here, or on which others."""
        here = self.support(feature).instead or INSTEAD.get(feature)
        return "; or ".join(filter(None, (here, self.others(feature))))

    def others(self, feature: Feature) -> str:
        """Return the advice to use another one that has a feature; empty where none has it."""
        from microvm.hypervisors import able  # all back ends: for those who ask

        return use([name for name in able(feature) if name != self.name])

    def check(self, microvm: MicroVM, facts: HostFacts | None = None) -> list[Problem]:
        """Return every reason why it can't be run; with facts, by this version on this host."""
        problems = [
            self._refusal(where, feature)
            for feature, places in wanted(microvm).items()
            if not self.support(feature).available
            for where in places
        ]
        problems += self.further_problems(microvm)
        program = facts.programs.get(self.program) if facts else None
        problems += self.too_many(microvm, program)
        if facts is None:
            return problems
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

    def rooms(self, microvm: MicroVM) -> tuple[Most, ...]:
        """Return how many of something it takes for what is declared."""
        return self.takes

    def used(self, room: Room, microvm: MicroVM) -> tuple[int, int]:
        """Return how much of a room a declaration takes, and how much of that it doesn't name."""
        if room is Room.VCPUS:
            return microvm.vcpu, 0
        if room is Room.DISKS:
            own = (1 if self.one_disk else limits.LAYERS) + bool(microvm.credential_files)
            return own + len(microvm.volumes), own
        own = self.own_devices(microvm)
        declared = (microvm.volumes, microvm.shares, microvm.interfaces, microvm.devices)
        return own + sum(map(len, declared)), own

    def own_devices(self, microvm: MicroVM) -> int:
        """Return how many devices there are at most beyond the items that are declared."""
        return limits.own_devices(microvm)

    def exceeded(self, microvm: MicroVM, program: Program | None = None) -> list[Most]:
        """Return the row of each room that is too small; with a program, that of its version."""
        bound = [
            row
            for row in self.rooms(microvm)
            if (row.until is None or (program and not program.has(row.until)))
            and self.used(row.room, microvm)[0] > row.most
        ]
        return [
            min(rows, key=lambda row: row.most)
            for room in Room
            if (rows := [row for row in bound if row.room is room])
        ]

    def too_many(self, microvm: MicroVM, program: Program | None = None) -> list[Problem]:
        """Return what there is more of than it takes, with the others that take as many."""
        from microvm.hypervisors import those  # all back ends: for those who ask

        problems = []
        for row in self.exceeded(microvm, program):
            used, own = self.used(row.room, microvm)
            others = those(lambda other: not other.exceeded(microvm))
            problems.append(refusal(microvm, self.name, row, used=used, own=own, others=others))
        return problems

    def further_problems(self, microvm: MicroVM) -> list[Problem]:
        """Return what rows can't say, such as names that a command line has no way to say."""
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
        sockets don't tell. Every answer has `timeout_s` seconds. Raises `Unreachable` when
        nobody listens there, `ApiError`, `DeadlineExceeded`.
        """

    @abstractmethod
    def plan(self, runner: Runner, facts: Facts) -> LaunchPlan:
        """Return what to write and execute. Touches nothing. Raises `SpecError`."""
