"""Boots by guest instructions, with a debvm image of the same release beside ours."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import peers
from bench.bench import RELEASE, Bench
from bench.measure import Bound, PeerError, Row, Series, absent

MEMORY_MIB = 1024
DEADLINE_S = 1800
"""Counting takes three times as long as the boot, on a busy machine far longer."""

COUNTED = ("-icount", "shift=0,sleep=off")
BUSY = "idle=poll"
"""For the guest's kernel: a virtual CPU that halts makes the virtual clock jump to the next timer,
which may be seconds away, as often as a disk is slower than the CPU. One that polls counts on."""

GREETING = re.compile(
    rb"booted in ([0-9.]+) s: kernel ([0-9.]+) s, initrd ([0-9.]+) s, system ([0-9.]+) s"
)
MARKS = re.compile(rb"bench: ([0-9]+) ([0-9]+)\r")
_PROFILE = (
    'echo "bench: $(systemctl show -P UserspaceTimestampMonotonic)'
    ' $(systemctl show -P ActiveEnterTimestampMonotonic multi-user.target)"'
)
_HOOK = f"""#!/bin/sh
# What root's shell says after the automatic login, when all is over; and no terminal is asked for
# its size, since there is none.
set -e
rm -f "$1/etc/profile.d/resize_serial_term.sh"
echo '{_PROFILE}' >>"$1/root/.profile"
"""


@dataclass(frozen=True)
class Boot:
    """Where a boot was after how many instructions, in 10^9."""

    root: float
    """The root's init is started."""
    up: float
    """A user could log in."""


def rows(bench: Bench) -> Iterator[Row]:
    """Boot ours and the peer in turns; each boot gives both rows."""
    bench.microvm("build", "examples#hello")
    boots: dict[str, list[Boot]] = {"ours": [], "debvm": []}
    missing = ""
    try:
        image = _image(bench)
    except PeerError as error:
        missing = str(error)
    for _ in range(bench.rounds(2)):  # they repeat to a hundredth
        boots["ours"].append(_ours(bench))
        if not missing:
            try:
                boots["debvm"].append(_debvm(bench, image))
            except PeerError as error:
                missing = str(error)
    yield from _rows(boots["ours"], boots["debvm"], missing)


def _rows(ours: Sequence[Boot], debvm: Sequence[Boot], missing: str) -> Iterator[Row]:
    def series(name: str, numbers: Sequence[float]) -> Series:
        return absent(name, missing) if missing else Series(name, tuple(numbers))

    yield Row(
        what="boot of `hello` to its greeting, guest instructions",
        ours=Series("ours", tuple(boot.up for boot in ours)),
        unit="G",
        peers=(series("debvm", [boot.up for boot in debvm]),),
        bound=Bound(at_most=0.38, stretch=0.27, relative=True),
        how=f"10^9 instructions; q35, {MEMORY_MIB} MiB, one CPU, no network on either side. The peer: "
        "`debvm-create` and `debvm-run` as they come, to its multi-user.target, which its login waits for",
        why="the kernel's own start is half of it, and the same on both sides",
    )
    yield Row(
        what="kernel to our switch_root, guest instructions",
        ours=Series("ours", tuple(boot.root for boot in ours)),
        unit="G",
        peers=(series("Debian's stock initrd and line", [boot.root for boot in debvm]),),
        bound=Bound(at_most=0.25, stretch=0.2, relative=True),
        how="the same boots; the peer to the start of the root's systemd",
        why="two thirds of it is the kernel before the initrd's first process, which is Debian's",
    )


def _ours(bench: Bench) -> Boot:
    words = ("--set", "accel=tcg", "--set", f"mem={MEMORY_MIB}", "examples#hello")
    plan = json.loads(bench.microvm("plan", "--json", *words))
    argv = list(plan["argv"])
    argv[argv.index("-accel") + 1] = "tcg,thread=single"
    argv[argv.index("-append") + 1] += f" {BUSY}"
    state = bench.directory / "hello"
    state.mkdir(exist_ok=True)
    found, said = watch([*argv, *COUNTED], GREETING, state)
    if found is None:
        sys.exit(f"bench: hello did not boot: {said}")
    up, kernel, initrd, _ = map(float, found.groups())
    return Boot(root=kernel + initrd, up=up)


def _image(bench: Bench) -> Path:
    """Make the peer's image. Raises `PeerError`."""
    for program in ("debvm-create", "debvm-run"):
        peers.require(program)
    hook = bench.directory / "debvm-hook"
    hook.write_text(_HOOK)
    hook.chmod(0o755)
    image = bench.directory / "debvm.ext4"
    words = ("-r", RELEASE, "-o", str(image), "--", f"--customize-hook={hook}")
    peers.run(["debvm-create", *words])
    return image


def _debvm(bench: Bench, image: Path) -> Boot:
    argv = [
        "debvm-run", "--skip=network", "-i", str(image), f"--append={BUSY}", "--",
        "-machine", "accel=tcg", *COUNTED, "-smp", "1", "-cpu", "qemu64", "-m", f"{MEMORY_MIB}M",
        "-snapshot",
    ]  # fmt: skip
    found, said = watch(argv, MARKS, bench.directory)
    if found is None:
        raise PeerError(f"debvm-run did not boot: {said}")
    root, up = (int(number) / 1e6 for number in found.groups())
    return Boot(root=root, up=up)


def watch(
    argv: Sequence[str], until: re.Pattern[bytes], cwd: Path
) -> tuple[re.Match[bytes] | None, str]:
    """Run a VMM until its console shows a text; return what matched, and the console's end."""
    deadline = time.monotonic() + DEADLINE_S
    seen = b""
    with (
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
        ) as vmm,
        selectors.DefaultSelector() as ready,
    ):
        assert vmm.stdout
        ready.register(vmm.stdout, selectors.EVENT_READ)
        found = None
        try:
            while found is None and time.monotonic() < deadline:
                if ready.select(timeout=1):
                    chunk = os.read(vmm.stdout.fileno(), 65536)
                    if not chunk:
                        break
                    seen += chunk
                    found = until.search(seen)
        finally:
            os.killpg(vmm.pid, signal.SIGKILL)
    return found, seen.decode(errors="replace").strip()[-300:]
