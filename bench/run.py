"""Benchmarks against peers on the same machine in the same run: medians and ratios, as a table.

`make bench` prints the table and writes it into docs/performance.md. `--quick` leaves out the
boots that count guest instructions.
"""

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MICROVM = str(Path(sys.executable).with_name("microvm"))
LAUNCH = str(Path(sys.executable).with_name("microvm-launch"))
PAGE = Path(__file__).parent.parent / "docs/performance.md"
DECLARED = '[microvms.bench]\nmem = 512\nsystem.packages = [{packages}]\nsystem.files."/etc/x".text = "{text}"\n'


class Bench:
    """A store, a project, and what was measured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project = directory / "project"
        self.project.mkdir()
        self.env = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}
        self.use(directory / "store")
        self.rows: list[tuple[str, str, str]] = []

    def use(self, store: Path) -> None:
        self.store = store
        self.env["MICROVM_STORE"] = str(store)

    def declare(self, text: str = "a", packages: str = "") -> None:
        (self.project / "microvm.toml").write_text(DECLARED.format(text=text, packages=packages))

    def microvm(self, *words: str) -> str:
        done = subprocess.run(
            [MICROVM, *words], env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"microvm {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def build(self) -> Path:
        return Path(self.microvm("build", str(self.project)))

    def row(self, what: str, ours: float, peer: float | None, name: str, limit: str) -> None:
        shown = f"{ours / peer:.2f} x" if peer else f"{ours:.2f} s"
        against = f"{name}" if peer else "-"
        self.rows.append((what, f"{shown} ({against})", limit))
        print(f"{what}: {shown} of {against}; at most {limit}", flush=True)


def timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def median(action: Callable[[int], object], times: int = 3) -> float:
    return statistics.median(timed(lambda n=n: action(n)) for n in range(times))


def cold_root(bench: Bench) -> None:
    """Base layer from cached packages, against mmdebstrap and mkfs.erofs with the same packages."""
    bench.declare()
    bench.build()
    lock = json.loads((bench.project / "microvm.lock").read_text())
    keys = next(
        layer["packages"]
        for layer in lock["microvms"]["bench"]["layers"]
        if layer["name"] == "base"
    )
    packages = [lock["packages"][key] for key in keys]
    archives = bench.directory / "archives"
    archives.mkdir()
    for package in packages:
        version = package["version"].replace(":", "%3a")
        name = f"{package['name']}_{version}_{package['architecture']}.deb"
        shutil.copyfile(bench.store / ".packages" / f"{package['sha256']}.deb", archives / name)
    include = ",".join(package["name"] for package in packages)

    def ours(number: int) -> None:
        for path in bench.store.glob("*-base"):
            bench.microvm("store", "gc")
            if path.exists():
                sys.exit("the base layer is still there")
        bench.build()

    def peer(number: int) -> None:
        root = bench.directory / "peer"
        argv = [
            "mmdebstrap", "--variant=essential", f"--include={include}", "--skip=essential/unlink",
            "--skip=download/empty", f"--setup-hook=mkdir -p $1/var/cache/apt/archives; cp {archives}/*.deb $1/var/cache/apt/archives",
            "trixie", str(root),
        ]  # fmt: skip
        subprocess.run(argv, check=True, capture_output=True)
        subprocess.run(
            ["mkfs.erofs", str(root) + ".erofs", str(root)], check=True, capture_output=True
        )
        shutil.rmtree(root)

    times = [(timed(lambda: peer(0)), timed(lambda: ours(0))) for _ in range(3)]
    mine, theirs = statistics.median(t[1] for t in times), statistics.median(t[0] for t in times)
    bench.row(
        "cold build of a systemd guest, kernel too",
        mine,
        theirs,
        "mmdebstrap + mkfs.erofs, root only",
        "0.8 x",
    )


def rebuilds(bench: Bench) -> None:
    """What a change of the declaration costs, by the clock: whole `microvm build` processes."""

    def changed(number: int) -> None:
        bench.declare(f"changed {number}")
        bench.build()

    small = ("hello", "less", "file", "bc", "tree")

    def package(number: int) -> None:
        bench.declare("a", f'"{small[number]}"')
        bench.build()

    bench.row("one changed file, then build", median(changed, 5), None, "", "1 s")
    bench.row("one small package more", median(package, 5), None, "", "6 s")
    bench.row("nothing changed", median(lambda n: bench.build(), 9), None, "", "0.3 s")


def launching(bench: Bench) -> None:
    """`bin/microvm-run` to the exec of the VMM, which is a program that ends at once."""
    declared = (bench.project / "microvm.toml").read_text()
    (bench.project / "microvm.toml").write_text(
        declared + '[microvms.bench.qemu]\nprogram = "/bin/true"\n'
    )
    runner = bench.build()
    state = bench.directory / "machine"
    state.mkdir()
    env = {**bench.env, "MICROVM_LAUNCHER": LAUNCH}
    run = [str(runner / "bin/microvm-run")]
    bare = [str(Path(sys.executable).resolve()), "-I", "-c", "pass"]
    for _ in range(2):
        subprocess.run(run, cwd=state, env=env, check=True, capture_output=True)
    pairs = [
        (
            timed(lambda: subprocess.run(run, cwd=state, env=env, check=True)),
            timed(lambda: subprocess.run(bare, check=True)),
        )
        for _ in range(15)
    ]
    mine, theirs = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    bench.row("`bin/microvm-run` to the VMM's exec", mine, theirs, "python3 -I -c pass", "10 x")


def loading(bench: Bench) -> None:
    """1,000 MicroVMs loaded and checked by the command line."""
    many = bench.directory / "many"
    many.mkdir()
    text = "".join(
        f'[microvms.vm-{n}]\nmem = 256\nvolumes = [{{image = "d", size = 9}}]\n'
        for n in range(1000)
    )
    (many / "microvm.toml").write_text(text)
    bench.row(
        "load and check 1,000 MicroVMs",
        median(lambda n: bench.microvm("check", f"{many}#vm-1")),
        None,
        "",
        "2 s",
    )


def guest_instructions(argv: list[str], until: bytes) -> float | None:
    """Boot with virtual time that counts instructions; return the uptime that `until` shows."""
    words = list(argv)
    words[words.index("-accel") + 1] = "tcg,thread=single"
    words += ["-icount", "shift=0,sleep=off"]
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/tmp",
    ) as vmm:
        seen = b""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and vmm.stdout:
            chunk = os.read(vmm.stdout.fileno(), 4096)
            seen += chunk
            if match := re.search(until, seen):
                vmm.kill()
                return float(match[1])
            if not chunk:
                break
        vmm.kill()
    return None


def booting(bench: Bench) -> None:
    """`hello` to its greeting in guest instructions (10^9), against debvm's image if there is one."""
    plan = json.loads(bench.microvm("plan", "--json", "--set", "accel=tcg", "examples#hello"))
    mine = guest_instructions(plan["argv"], rb"booted in ([0-9.]+) s")
    root = guest_instructions(
        plan["argv"], rb"kernel [0-9.]+ s, initrd [0-9.]+ s, system ([0-9.]+) s"
    )
    if mine is None or root is None:
        sys.exit("hello did not boot")
    print(
        f"hello: greeting after {mine:.2f}, switch_root after {mine - root:.2f} G guest instructions"
    )
    bench.rows.append(
        (
            "boot of hello to its greeting, guest instructions",
            f"{mine:.2f} G, {mine / 10.9:.2f} x (debvm, 10.9 G, measured before)",
            "0.38 x",
        )
    )
    bench.rows.append(
        (
            "kernel to switch_root, guest instructions",
            f"{mine - root:.2f} G, {(mine - root) / 6.4:.2f} x (stock initrd, 6.4 G, measured before)",
            "0.25 x",
        )
    )


def write(rows: list[tuple[str, str, str]]) -> None:
    table = "\n".join(f"| {what} | {seen} | {limit} |" for what, seen, limit in rows)
    PAGE.write_text(
        "# Performance\n\nMedians of one run of `make bench`; ratios are against the peer in the same run"
        " unless said otherwise.\n\n"
        f"Python {platform.python_version()}, Linux {platform.release().split('-')[0]}, "
        f"{os.cpu_count()} CPUs, emulation (no usable KVM).\n\n"
        f"| what | measured | to reach, at most |\n|---|---|---|\n{table}\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="microvm-bench-") as directory:
        bench = Bench(Path(directory))
        cold_root(bench)
        rebuilds(bench)
        launching(bench)
        loading(bench)
        if "--quick" not in sys.argv:
            booting(bench)
        write(bench.rows)
        Path(directory).chmod(0o755)
        subprocess.run([MICROVM, "store", "gc"], env=bench.env, capture_output=True, check=False)


if __name__ == "__main__":
    main()
