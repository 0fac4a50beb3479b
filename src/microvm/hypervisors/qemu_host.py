"""What of a declaration qemu could do, but not on this host."""

from microvm.errors import Problem, SpecError
from microvm.hypervisors import virtiofsd
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts


def refuse_on_this_host(microvm: MicroVM, facts: Facts) -> None:
    """Raise `SpecError` for what this host can't do of what is declared."""
    problems = []
    if microvm.qemu.machine == "microvm" and facts.accelerator.kind == "tcg":
        message = f"machine microvm does not boot here: {facts.accelerator.reason}"
        problems.append(Problem(where="qemu.machine", message=message, hint="leave it out"))
    if virtiofsd.PROGRAM in facts.programs:
        problems += virtiofsd.unmet(facts.programs[virtiofsd.PROGRAM], microvm)
    if problems:
        raise SpecError(problems)
