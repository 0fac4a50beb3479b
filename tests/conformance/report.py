"""What was seen becomes docs/conformance.md: feature x hypervisor, with versions and the date."""

import datetime
import statistics
from pathlib import Path
from typing import Any

from microvm.hypervisors import hypervisor
from microvm.hypervisors.features import Feature
from microvm.model.declaration import HypervisorKind

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
BOOTS = "boots to its greeting, writes its volume, powers off when asked; the volume is clean"
RATIO = 1.15
"""Most that a boot may take of qemu's in the same bed."""
MACVTAPS = "macvtaps in modes bridge, private, vepa, passthru, source, each with an address by DHCP"
NINE = "owners that a guest gives over 9p (`security_model` passthrough, mapped, mapped-file)"
TRANSLATED = "owners translated over virtiofs (`uid_map`, `gid_map`)"
ACL = "POSIX ACLs over virtiofs (`posix_acl`)"
CACHE = "what a guest keeps of a virtiofs share (`cache` auto, always, metadata, never)"
FIRECRACKER = (
    "`firecracker.drive_io_engine`: Async and Sync",
    "`firecracker.cpu`: a CPU template",
    "`firecracker.extra_config`: threads of a core, a limit on a volume",
)
EXAMPLES = (
    "hello", "python-1", "python-2", "python-3", "build-box", "shares", "web",
    "imageless-virtiofs", "imageless-9p",
)  # fmt: skip
BEHAVIOURS = (
    BOOTS,
    "the console takes what is typed",
    "a reboot starts it again, a power-off ends it",
    "`bin/microvm-run` becomes the VMM, nothing of ours stays; `bin/microvm-shutdown` ends it",
    "a kernel that panics ends the run, and its words are told",
    "a job: exit status, 1 MiB of every byte both ways",
    "a volume: found, mounted, written",
    "a read-only volume",
    "a read-only virtiofs share",
    "a tap that joins a bridge: its MAC, an address by DHCP",
    "several queues of a tap",
    MACVTAPS,
    NINE,
    TRANSLATED,
    ACL,
    CACHE,
    *FIRECRACKER,
    "machine_id",
    "the UUID of the firmware (SMBIOS)",
    "OEM strings",
    "several virtual CPUs",
    "system calls of the VMM are filtered",
    *(f"`examples#{name}`" for name in EXAMPLES),
)
HEAD = """<!-- Written by `make test-nested`. -->

# Conformance

What the suite `tests/conformance` saw in real guests on the real programs, run by this project in a host
guest of its own with nested virtualisation (an emulated processor, so times are long and comparable only
to each other). `seen` was observed from inside the guest or on its host; `refused` is what the check
refuses ([with what to use instead](reference/hypervisors.md)); `runs` is an example whose job did what its page
says; `-` is not there to be seen, for the
reason below; an empty cell was not looked at. [How to choose a hypervisor](how-to/hypervisor.md).

    make test-nested     # MICROVM_TEST_REPEAT=20: boots of each; MICROVM_TEST_HYPERVISORS: programs
"""
WHY = """
## What was not looked at, and why

- PCI passthrough is tried with an emulated NVMe disk behind an emulated IOMMU, whose MSI-X table has a
  BAR of its own as kvmtool needs it, on crosvm with `pci=nomsi` ([why](how-to/hypervisor.md#devices-of-the-host-and-images-other-than-raw)); of vhd and
  vhdx images a vhd is.
- `-` for the UUID of the firmware: firecracker and kvmtool have no SMBIOS; `machine_id` reaches their
  guests by the kernel's command line. `-` for filtered system calls: kvmtool has no filter, and whether
  firecracker has one depends on how it was built. `-` for several queues: firecracker and kvmtool have
  one, on crosvm one is used. `-` for owners over 9p: kvmtool's are those of the host, the others have
  no 9p, as firecracker and kvmtool have no virtiofs, and firecracker no macvtap. `firecracker.*` is
  read by firecracker alone. A static CPU template of its own is for processors that the bed has not.
- Emulation by qemu: `tests/vm` sees it without a bed.

With QEMU 10.0.2 as the bed's, qemu's guest of two CPUs with everything that qemu alone has ended without a
word in 5 of 12 runs of its test, as after a triple fault; what is `seen` was seen in the others. With QEMU
11.1.3 it did in none of 12: take that one.
"""
NOT_THERE = {
    "the UUID of the firmware (SMBIOS)": ("firecracker", "kvmtool"),
    "system calls of the VMM are filtered": ("kvmtool", "firecracker"),
    "OEM strings": ("qemu", "firecracker", "crosvm", "kvmtool"),
    "several queues of a tap": ("firecracker", "crosvm", "kvmtool"),
    **dict.fromkeys(
        ("a read-only virtiofs share", TRANSLATED, ACL, CACHE), ("firecracker", "kvmtool")
    ),
    NINE: ("cloud-hypervisor", "firecracker", "crosvm", "kvmtool"),
    MACVTAPS: ("firecracker",),
    **dict.fromkeys(FIRECRACKER, ("qemu", "cloud-hypervisor", "crosvm", "kvmtool")),
}


class Seen:
    """Collects findings; every one is an assertion that held. Keeps those of earlier runs."""

    def __init__(self, earlier: dict[str, Any]) -> None:
        self.kinds: dict[str, Any] = earlier
        """Of each hypervisor: version, date, kernel, boot times, cells."""
        self._test = ""
        self._timed: dict[str, bool] = {}
        self._began: set[tuple[str, str]] = set()

    def begin(self, kind: str, version: str, test: str) -> None:
        """Forget what this test found before, and everything of another version."""
        known = self.kinds.get(kind, {})
        if known.get("version") != version:
            known = {"version": version, "cells": {}, "times": []}
        known["cells"] = {w: cell for w, cell in known["cells"].items() if cell[0] != test}
        known["date"] = str(datetime.datetime.now(datetime.UTC).date())
        self.kinds[kind] = known
        self._test = test
        self._began.add((kind, test))

    def add(self, kind: str, what: Feature | str, word: str = "seen") -> None:
        """Note a finding of the test that began last."""
        name = what.value if isinstance(what, Feature) else what
        assert isinstance(what, Feature) or what in BEHAVIOURS
        self.kinds[kind]["cells"][name] = [self._test, word]

    def timed(self, kind: str, kernel: str, times: list[float], ended: int = 0) -> None:
        """Note the seconds of boots to the greeting, but for the first of a bed, and its ends."""
        self._timed[kind] = True
        self.kinds[kind] |= {"kernel": kernel, "times": times, "ended": ended}

    def merge(self, now: dict[str, Any]) -> None:
        """Take what another run found meanwhile, but for the tests that began in this one."""
        for kind, known in now.items():
            ours = self.kinds.setdefault(kind, known)
            if ours["version"] != known["version"]:
                continue
            theirs = {
                what: cell
                for what, cell in known["cells"].items()
                if (kind, cell[0]) not in self._began
            }
            began = {test for name, test in self._began if name == kind}
            kept = {what: cell for what, cell in ours["cells"].items() if cell[0] in began}
            ours["cells"] = {**theirs, **kept}
            if not self._timed.get(kind):
                ours |= {key: known[key] for key in ("times", "kernel", "ended") if key in known}

    @property
    def whole(self) -> bool:
        """Whether every hypervisor was looked at and timed: a part would empty the page."""
        return all("kernel" in self.kinds.get(kind.value, {}) for kind in HypervisorKind)

    def page(self) -> str:
        """Return the page."""
        names = [kind.value for kind in HypervisorKind if kind.value in self.kinds]
        heads = [self._head(name) for name in names]
        table = f"| | {' | '.join(heads)} |\n|---|{'---|' * len(names)}\n"
        text = f"{HEAD}\n{self._when(names)}\n\n## What a guest does\n\n{table}"
        for what in BEHAVIOURS:
            text += f"| {what} | {' | '.join(self._cell(name, what) for name in names)} |\n"
        text += f"\n## What can be declared\n\n{table}"
        for feature in Feature:
            cells = [self._feature(name, feature) for name in names]
            text += f"| {feature.value} | {' | '.join(cells)} |\n"
        return text + self._boots(names) + WHY

    def _head(self, kind: str) -> str:
        version = self.kinds[kind]["version"]
        return kind if version == "unknown" else f"{kind} {version}"

    def _when(self, names: list[str]) -> str:
        dates = sorted({self.kinds[name]["date"] for name in names})
        kernel = next((self.kinds[n]["kernel"] for n in names if "kernel" in self.kinds[n]), "?")
        return f"{' and '.join(dates)}, guests of Debian 13 on Linux {kernel}."

    def _cell(self, kind: str, what: str) -> str:
        found = self.kinds[kind]["cells"].get(what)
        return found[1] if found else "-" if kind in NOT_THERE.get(what, ()) else ""

    def _feature(self, kind: str, feature: Feature) -> str:
        if not hypervisor(kind).support(feature).available:
            return "refused"
        return self._cell(kind, feature.value)

    def _boots(self, names: list[str]) -> str:
        times = {name: self.kinds[name]["times"] for name in names}
        times = {name: found for name, found in times.items() if found}
        if not times:
            return ""
        base = statistics.median(times["qemu"]) if "qemu" in times else None
        text = (
            "\n## Boot to the greeting\n\nFrom the start of the launcher, in turns on the same bed, "
            "without the first boot of each on a bed (in which qemu tries KVM out and files are read for\n"
            f"the first time); the aim is at most {RATIO} of qemu's.\n\n"
            "| | median | fastest | slowest | boots | of qemu's |\n|---|---|---|---|---|---|\n"
        )
        for name, found in times.items():
            middle = statistics.median(found)
            ratio = f"{middle / base:.2f}" if base else ""
            text += f"| {name} | {middle:.1f} s | {min(found):.1f} s | {max(found):.1f} s "
            text += f"| {len(found)} | {ratio} |\n"
        if ended := max(self.kinds[name].get("ended", 0) for name in times):
            text += f"\nThe bed itself ended in {ended} of these boots; they were tried again.\n"
        return text
