"""A project with a store of its own, and what a build has left of itself."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

from command_line import CommandLine
from mirror import Mirror


class Place:
    """A project, the store that it is built in, and the command line that builds it."""

    def __init__(self, cli: CommandLine, directory: Path, mirror: str | None) -> None:
        self.cli = cli
        self.store = cli.store
        self.project = directory
        self.mirror = mirror
        directory.mkdir(parents=True)

    def declare(self, text: str, *more: str) -> None:
        """Write the declaration; `text` makes a configuration layer that is not there yet."""
        mirror = [f'mirror = "{self.mirror}"'] if self.mirror else []
        lines = ["[microvms.small.system]", *mirror, f"files.'/etc/marker'.text = '{text}'", *more]
        (self.project / "microvm.toml").write_text("\n".join(lines) + "\n")

    def build(self, *options: str, extra: dict[str, str] | None = None):
        return self.cli("build", str(self.project), *options, timeout=900, extra=extra)

    def start(self, **options: object):
        return self.cli.start("build", str(self.project), **options)

    def verify(self) -> None:
        verified = self.cli("store", "verify", timeout=300)
        assert verified.returncode == 0, verified.stdout + verified.stderr

    def left(self) -> list[str]:
        """Return what is there beside the results: on disk, as a mount or as a process."""
        ours = {"microvm.toml", "microvm.lock"}
        paths = [
            *(self.store / ".tmp").iterdir(),
            *(path for path in (self.store / ".locks").iterdir() if path.name != "collect"),
            *(self.store / ".roots").glob(".*"),
            *(path for path in self.project.iterdir() if path.name not in ours),
        ]
        mounts = [line for line in mounts_of("self") if str(self.store) in line]
        return [*map(str, paths), *mounts, *self.processes()]

    def processes(self, within_s: float = 20.0) -> list[str]:
        """Give the kernel time to end what a killed build had started; return what still runs."""
        deadline = time.monotonic() + within_s
        while (found := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _processes(self) -> list[str]:
        """Every process of a build inherits its environment or sees the store in a mount."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                about = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                seen = "/".join(self.store.parts[-2:]) in " ".join(mounts_of(entry.name))
            except OSError:
                continue
            if os.fsencode(self.store) in about or seen:
                found.append(f"{entry.name} {about[-200:]!r}")
        return found


def mounts_of(process: str) -> list[str]:
    return Path(f"/proc/{process}/mountinfo").read_text().splitlines()


@contextmanager
def served(known: Place) -> Iterator[Mirror]:
    lock = json.loads((known.project / "microvm.lock").read_text())
    packages = {unquote(urlparse(p["url"]).path): p["sha256"] for p in lock["packages"].values()}
    [states] = [each["mirrors"] for each in lock["microvms"].values()]
    with Mirror(known.store, states, packages).running() as running:
        yield running
