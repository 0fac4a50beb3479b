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
    if not facts.vhost_net:  # qemu would only warn, and move the packets itself
        for index, interface in enumerate(microvm.interfaces):
            if interface.tap.vhost:
                message = "there is no /dev/vhost-net that may be opened here"
                hint = "modprobe vhost_net, and run as a user who may open it; or leave vhost out"
                where = f"interfaces.{index}.tap.vhost"
                problems.append(Problem(where=where, message=message, hint=hint))
    if virtiofsd.PROGRAM in facts.programs:
        problems += virtiofsd.unmet(facts.programs[virtiofsd.PROGRAM], microvm)
    if problems:
        raise SpecError(problems)
