"""Large projects."""

from collections.abc import Iterator

from bench.bench import Bench
from bench.measure import Bound, Contender, Row, interleaved

COUNT = 1000


def rows(bench: Bench) -> Iterator[Row]:
    """Load and check a project of a thousand MicroVMs, as a process of the command line."""
    text = "".join(
        f'[microvms.vm-{number}]\nmem = 256\nvolumes = [{{image = "data.img", size = 9}}]\n'
        f'[[microvms.vm-{number}.interfaces]]\nid = "eth{number}"\ntype = "user"\n'
        for number in range(COUNT)
    )
    project = bench.project("many", text)
    check = Contender(name="ours", run=lambda: bench.microvm("check", str(project.directory)))
    (ours,) = interleaved(bench.rounds(5), [check])
    yield Row(
        what=f"load and validate {COUNT:,} MicroVMs",
        ours=ours,
        bound=Bound(at_most=2, stretch=1),
        how="`microvm check`, the whole process; each has a volume and an interface",
        why="pydantic reads every table, then the rules look at each MicroVM and at all of them",
    )
