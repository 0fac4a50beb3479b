"""The bed: a host guest of our own, with hardware virtualisation of its own, that runs commands."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
STORE = "/var/lib/microvm/store"
WORK = "/work"
PROGRAMS = "/opt/hypervisors"
UP_S = 900
SECONDS = int(os.environ.get("MICROVM_TEST_NESTED_SECONDS", "400"))
"""What a guest has to be up: nested emulation on a busy machine is slow."""
REPEAT = int(os.environ.get("MICROVM_TEST_REPEAT", "1"))
long_form = pytest.mark.skipif(
    not os.environ.get("MICROVM_TEST_CONFORMANCE"), reason="the long form: make test-nested"
)
QEMU = (10, 0)
"""With older ones the inner kernels crash: their emulation of SVM is wrong."""


GIVING = (
    'system.kernel="generic"',
    'kernel_params=["mitigations=off","intel_iommu=on"]',
    """qemu.extra_args=[
        "-device", "intel-iommu,intremap=on",
        "-blockdev", "driver=null-co,node-name=gift,size=20971520,read-zeroes=on",
        "-device", "nvme,drive=gift,addr=0x1e,serial=gift,msix-exclusive-bar=on",
        "-device", "qemu-xhci,id=hub,addr=0x1d", "-device", "usb-tablet,bus=hub.0,serial=pen",
    ]""",
)
"""Settings of a bed that has something to give away: an IOMMU, a disk behind it (its MSI-X table has
a BAR of its own: kvmtool), a USB device. It is another bed: under its emulated IOMMU guests of several
virtual CPUs took the whole bed down."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command of the bed that has ended."""

    status: int
    output: str

    def lines(self, word: str) -> list[str]:
        """Return what follows a word in the lines that it starts."""
        lines = self.output.splitlines()
        return [line[len(word) + 1 :] for line in lines if line.split(" ", 1)[0] == word]


class Bed:
    """A running bed."""

    def __init__(self, process: "subprocess.Popen[bytes]", work: Path, store: Path) -> None:
        self._process = process
        self._work = work
        self._store = store
        self._number = 0

    def wait_until_serving(self, log: Path) -> None:
        deadline = time.monotonic() + UP_S
        while "serving" not in log.read_text():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)

    def stop(self) -> None:
        """End it; what runs in it ends with it."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def inner(self, runner: Path) -> str:
        """Return where a runner of the store is in the bed."""
        return f"{STORE}/{runner.relative_to(self._store)}"

    def give(self, directory: Path) -> str:
        """Copy a directory to the bed; returns where it is there."""
        shutil.copytree(directory, self._work / "given" / directory.name, dirs_exist_ok=True)
        return f"{WORK}/given/{directory.name}"

    def __call__(self, command: str, *, timeout: float) -> Done:
        """Run a shell command and wait for its end."""
        self._number += 1
        base = self._work / f"request-{self._number}"
        text = f"export PATH={PROGRAMS}:$PATH PYTHONPYCACHEPREFIX=/run/pyc\n{command}\n"
        base.with_suffix(".new").write_text(text)
        base.with_suffix(".new").rename(base.with_suffix(".cmd"))
        out, status = base.with_suffix(".out"), base.with_suffix(".status")
        deadline = time.monotonic() + timeout
        while not status.exists():
            said = out.read_text(errors="replace") if out.exists() else ""
            assert self._process.poll() is None, "the bed has ended"
            assert time.monotonic() < deadline, f"{command}: {said}"
            time.sleep(0.5)
        return Done(int(status.read_text()), out.read_text(errors="replace"))


def qemu() -> str | None:
    """Return a QEMU that emulates SVM well enough."""
    found = os.environ.get("MICROVM_TEST_QEMU") or shutil.which("qemu-system-x86_64")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    version = said.partition("version ")[2].split(" ")[0].split(".")
    return found if tuple(map(int, version[:2])) >= QEMU else None


def start(
    command: list[str],
    env: dict[str, str],
    place: Path,
    programs: Iterable[str],
    store: Path,
    settings: Iterable[str] = (),
) -> Bed:
    """Start a bed in a directory, with these programs, and wait until it takes commands."""
    project, work, taken = (place / name for name in ("bed", "work", "programs"))
    for directory in (work, taken):
        directory.mkdir()
    for program in programs:
        shutil.copy(program, taken)
    shutil.copytree(HERE / "bed", project)
    shutil.copytree(HERE / "in_bed", work, dirs_exist_ok=True)
    package = HERE.parents[1] / "src" / "microvm"
    places = {
        "package": (package, "/usr/lib/python3/dist-packages/microvm", True),
        "store": (store, STORE, True),
        "programs": (taken, PROGRAMS, True),
        "work": (work, WORK, False),
    }
    shares = ",".join(
        f'{{tag="{tag}",source="{source}",mount_point="{at}",read_only={str(fixed).lower()}}}'
        for tag, (source, at, fixed) in places.items()
    )
    log = place / "bed.log"
    words = [
        word
        for setting in (f"shares=[{shares}]", f"qemu.program={qemu()}", *settings)
        for word in ("--set", setting)
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *command, "run", str(project), "--ephemeral", "--boot-timeout", str(UP_S), *words,
                "--", "python3", f"{WORK}/server.py", WORK,
            ],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    bed = Bed(process, work, store)
    with ExitStack() as stack:
        stack.callback(bed.stop)
        bed.wait_until_serving(log)
        stack.pop_all()
    return bed
