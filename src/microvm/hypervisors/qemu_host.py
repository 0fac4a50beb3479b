"""What of a declaration qemu could do, but not on this host."""

from microvm.errors import Problem, SpecError
from microvm.model.declaration import MicroVM
from microvm.model.facts import Facts


def refuse_on_this_host(microvm: MicroVM, facts: Facts) -> None:
    """Raise `SpecError` for what this host can't do of what is declared."""
    problems = []
    if microvm.qemu.machine == "microvm" and facts.accelerator.kind == "tcg":
        message = f"machine microvm does not boot here: {facts.accelerator.reason}"
        problems.append(Problem(where="qemu.machine", message=message, hint="leave it out"))
    if "virtiofsd" in facts.programs and facts.programs["virtiofsd"].flavour == "c":
        problems += [
            Problem(
                where=f"shares.{index}",
                message="uid_map and gid_map need virtiofsd 1.x; this is the one of QEMU 7.2",
                hint="install virtiofsd 1.x, or leave them out",
            )
            for index, share in enumerate(microvm.shares)
            if share.uid_map or share.gid_map
        ]
    if problems:
        raise SpecError(problems)
