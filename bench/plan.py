"""Planning: from a runner to the command line of each hypervisor's VMM."""

import timeit
from collections.abc import Iterator

from bench.bench import Bench
from bench.measure import Bound, Contender, Row, Series, interleaved
from microvm.guests import vmlinux
from microvm.hypervisors import hypervisor
from microvm.launch.planning import load_runner
from microvm.model.declaration import HypervisorKind
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.runner import Runner

_DECLARED = """[microvms.planned]
hypervisor = "{kind}"
mem = 512
volumes = [{{ image = "data.img", size = 64, mount_point = "/srv" }}]
interfaces = [{{ type = "tap", id = "planned0" }}]
"""
CALLS = 50


def rows(bench: Bench) -> Iterator[Row]:
    """Measure what each back end does with a runner, and how the kernel for most is made."""
    runners = {
        kind: bench.project(f"planned-{kind}", _DECLARED.format(kind=kind)).build()
        for kind in HypervisorKind
    }
    for kind, directory in runners.items():
        yield Row(
            what=f"a runner becomes the plan of {kind}",
            ours=_planning(load_runner(directory), bench),
            unit="ms",
            bound=Bound(at_most=1),
            how=f"the call alone, mean of {CALLS}; a volume and a tap",
        )
    yield _kernel(load_runner(runners[HypervisorKind.FIRECRACKER]), bench)


def _planning(runner: Runner, bench: Bench) -> Series:
    backend = hypervisor(runner.microvm.hypervisor)
    program = Program(path=f"/usr/bin/{backend.program}", version=())
    facts = Facts(
        accelerator=Accelerator(kind="kvm", reason="benchmark"),
        programs={backend.program: program}, state_dir="/state", project_dir="/project",
        store_dir=str(bench.store), machine_id="1" * 32,
    )  # fmt: skip
    taken = timeit.repeat(lambda: backend.plan(runner, facts), number=CALLS, repeat=bench.rounds(9))
    return Series("ours", tuple(seconds * 1000 / CALLS for seconds in taken))


def _kernel(runner: Runner, bench: Bench) -> Row:
    image = (bench.store / runner.system.kernel / "vmlinuz").read_bytes()
    release = runner.system.kernel_release
    take = Contender(name="ours", run=lambda: vmlinux.extract(image, release))
    (ours,) = interleaved(bench.rounds(9), [take])
    return Row(
        what="vmlinux taken out of the distribution's kernel",
        ours=ours,
        bound=Bound(at_most=1),
        how=f"{release}, {len(image) >> 20} MiB; once for each kernel of a store",
    )
