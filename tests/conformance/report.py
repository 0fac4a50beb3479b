"""What was seen becomes docs/conformance.md: feature x hypervisor, with versions and the date."""

import datetime
from collections.abc import Mapping
from pathlib import Path

from microvm.hypervisors import hypervisor
from microvm.model.declaration import HypervisorKind

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
HEAD = """<!-- Written by `make test-nested`. -->

# Conformance

What the suite `tests/conformance` saw in real guests on the real programs, in a host guest of our own
with nested virtualisation. `seen`: observed from inside the guest or on its host; `refused`: the check refuses
it, with what to use instead ([Hypervisors](reference/hypervisors.md)); empty: not seen in this run.
"""


class Seen:
    """Collects findings; every one is an assertion that held."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}
        self.versions: dict[str, str] = {}
        self.kernel = "of the release"

    def add(self, kind: str, what: str, word: str = "seen") -> None:
        self.rows.setdefault(what, {})[kind] = word

    def page(self) -> str:
        """Return the page."""
        names = [hypervisor(kind).name for kind in HypervisorKind]
        names = [name for name in names if name in self.versions]
        today = datetime.datetime.now(datetime.UTC).date()
        heads = [f"{name} {self.versions[name]}" for name in names]
        text = f"{HEAD}\n{today}, guests of Debian 13 on Linux {self.kernel}.\n\n"
        text += f"| | {' | '.join(heads)} |\n|---|{'---|' * len(names)}\n"
        for what, cells in self.rows.items():
            text += f"| {what} | {' | '.join(_cell(cells, name) for name in names)} |\n"
        return text


def _cell(cells: Mapping[str, str], name: str) -> str:
    return cells.get(name, "")
