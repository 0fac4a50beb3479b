"""Starting: from the runner's script to the exec of the VMM."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.bench import LAUNCHER, Bench
from bench.measure import Bound, Contender, Row, interleaved

_DECLARED = """[microvms.launched]
mem = 512
[microvms.launched.qemu]
program = "/bin/true"
"""


def rows(bench: Bench) -> Iterator[Row]:
    """Measure with a VMM that ends at once, against the bare start of the same interpreter."""
    runner = bench.project("launched", _DECLARED).build()
    state = bench.directory / "machine"
    state.mkdir()
    env = {**bench.env, "MICROVM_LAUNCHER": LAUNCHER}
    bare = [str(Path(sys.executable).resolve()), "-I", "-c", "pass"]

    def launch() -> None:
        argv = [str(runner / "bin/microvm-run")]
        subprocess.run(argv, cwd=state, env=env, check=True, capture_output=True)

    def start_python() -> None:
        subprocess.run(bare, check=True, capture_output=True)

    for _ in range(2):  # versions are asked once and then known
        launch()
    contenders = (
        Contender(name="ours", run=launch),
        Contender(name="python3 -I -c pass", run=start_python),
    )
    ours, theirs = interleaved(bench.rounds(25), contenders)
    yield Row(
        what="`bin/microvm-run` to the exec of the VMM",
        ours=ours,
        peers=(theirs,),
        bound=Bound(at_most=10, stretch=7, relative=True),
        how="the whole process, with a VMM that ends at once; versions of programs known",
        why="importing the model and reading the runner into it",
    )
