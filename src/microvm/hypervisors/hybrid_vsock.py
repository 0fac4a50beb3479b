"""vsock as cloud-hypervisor and firecracker have it: Unix sockets at the host's end.

A host's program connects to `vsock.sock` and says `CONNECT PORT`; a guest's connection to the host
(CID 2) at PORT arrives at `vsock.sock_PORT`. Both VMMs document it so (docs/vsock.md).
"""

from microvm.hypervisors import resources
from microvm.model import identity
from microvm.model.facts import Facts
from microvm.model.plan import JobEnd
from microvm.model.runner import Runner

SOCKET = "vsock.sock"
JOB_PORT = 6977
JOB = f"vsock:{JOB_PORT}"
"""The job stream as the guest names it."""
JOB_SOCKET = f"{SOCKET}_{JOB_PORT}"
"""Where it arrives at the host."""


def cid(runner: Runner, facts: Facts) -> int | None:
    """Return the guest's context id: the declared one, else for a job one of its own, or None."""
    declared = runner.microvm.vsock.cid
    if declared is not None or not facts.job:
        return declared
    return identity.cid(facts.machine_id)


def sockets(runner: Runner, facts: Facts) -> tuple[str, ...]:
    """Return the sockets that there will be."""
    if cid(runner, facts) is None:
        return ()
    return (SOCKET, JOB_SOCKET) if facts.job else (SOCKET,)


def job_end(facts: Facts) -> JobEnd | None:
    """Return the host's end of the job stream, if there is a job."""
    return JobEnd(kind="listen", socket=JOB_SOCKET) if facts.job else None


def modules(runner: Runner, facts: Facts) -> tuple[str, ...]:
    """Return the guest's modules for it."""
    return () if cid(runner, facts) is None else (resources.VSOCK,)
