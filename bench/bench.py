"""One run of the benchmarks: its directory, its store, and our own program in them."""

import compileall
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import microvm

PROGRAM = str(Path(sys.executable).with_name("microvm"))
LAUNCHER = str(Path(sys.executable).with_name("microvm-launch"))
RELEASE = "trixie"


@dataclass(frozen=True)
class Bench:
    """Where a run keeps what it makes, and how often it measures."""

    directory: Path
    quick: bool

    @classmethod
    def start(cls, directory: Path, *, quick: bool) -> "Bench":
        """Return a run in a fresh directory; our program's bytecode is there, as pip leaves it."""
        directory.chmod(0o755)
        compileall.compile_dir(str(Path(microvm.__file__).parent), quiet=1)
        return cls(directory, quick)

    def rounds(self, usual: int) -> int:
        """Return how often to measure; once is enough to see that it works."""
        return 1 if self.quick else usual

    @property
    def store(self) -> Path:
        """The store, which starts empty."""
        return self.directory / "store"

    @property
    def env(self) -> dict[str, str]:
        """The environment of our program: everything that it keeps is in our directory."""
        own = {"XDG_STATE_HOME": str(self.directory / "state"), "MICROVM_STORE": str(self.store)}
        # Unset: an installed program finds its bytecode.
        return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": ""}

    def project(self, name: str, text: str) -> "Project":
        """Return a project with this declaration."""
        project = Project(self, self.directory / name)
        project.directory.mkdir(exist_ok=True)
        project.declare(text)
        return project

    def microvm(self, *words: str) -> str:
        """Run our program to its end and return what it printed; a failure ends the benchmarks."""
        done = subprocess.run([PROGRAM, *words], env=self.env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench: microvm {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def collect(self) -> None:
        """Delete what no out-link keeps."""
        self.microvm("store", "gc")

    def keep(self, item: str) -> None:
        """Keep one item, with what it refers to, from being collected."""
        microvm.Store.open(self.store).add_root(self.directory / f"kept-{item}", item)

    def items(self) -> set[str]:
        """Return the names of the store's items."""
        return set(microvm.Store.open(self.store).names())


@dataclass(frozen=True)
class Project:
    """A project of one run."""

    bench: Bench
    directory: Path

    def declare(self, text: str) -> None:
        """Write the declaration anew."""
        (self.directory / "microvm.toml").write_text(text)

    def build(self, name: str = "", *, out_link: Path | None = None) -> Path:
        """Build a runner, as a user would type it; return its path."""
        reference = f"{self.directory}#{name}" if name else str(self.directory)
        link = ("--out-link", str(out_link)) if out_link else ()
        return Path(self.bench.microvm("build", reference, *link))
