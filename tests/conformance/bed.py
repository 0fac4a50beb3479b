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
HANGS_S = 60
"""How long a bed that works may not have shown that it does."""
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


class BedEndedError(Exception):
    """The bed ended, or hung, while it carried out a command."""


class Bed:
    """A running bed; it is started anew when it has ended, which emulated processors do at times."""

    def __init__(self, command: list[str], env: dict[str, str], place: Path, store: Path) -> None:
        self._command, self._env = command, env
        self._work, self._log, self._store = place / "work", place / "bed.log", store
        self._number = 0
        self._start()

    def _start(self) -> None:
        for left in self._work.glob("request-*.cmd"):
            left.unlink()
        began = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        with ExitStack() as stack:
            stack.callback(self.stop)
            deadline = time.monotonic() + UP_S
            while b"serving" not in self._log.read_bytes()[began:]:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.5)
            stack.pop_all()

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
        """Run a shell command and wait for its end; raises `BedEndedError`."""
        if self._process.poll() is not None:
            self._start()
        self._number += 1
        base = self._work / f"request-{self._number}"
        text = f"export PATH={PROGRAMS}:$PATH PYTHONPYCACHEPREFIX=/run/pyc\n{command}\n"
        base.with_suffix(".new").write_text(text)
        base.with_suffix(".new").rename(base.with_suffix(".cmd"))
        out, status = base.with_suffix(".out"), base.with_suffix(".status")
        deadline = time.monotonic() + timeout
        while not status.exists():
            said = out.read_text(errors="replace") if out.exists() else ""
            if self._process.poll() is not None:
                raise BedEndedError(f"{self._log}: {said}")
            if time.monotonic() > deadline:
                self._end_if_it_hangs(said)
                raise AssertionError(f"{command}: {said}")
            time.sleep(0.5)
        return Done(int(status.read_text()), out.read_text(errors="replace"))

    def _end_if_it_hangs(self, said: str) -> None:
        if time.time() - (self._work / "alive").stat().st_mtime > HANGS_S:
            self.stop()
            raise BedEndedError(f"the bed hangs: {said}")


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
    words = [
        word
        for setting in (f"shares=[{shares}]", f"qemu.program={qemu()}", *settings)
        for word in ("--set", setting)
    ]
    whole = [
        *command, "run", str(project), "--ephemeral", "--boot-timeout", str(UP_S), *words,
        "--", "python3", f"{WORK}/server.py", WORK,
    ]  # fmt: skip
    return Bed(whole, env, place, store)
