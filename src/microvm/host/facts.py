"""What the host is and has: programs with their versions, the accelerator, its identity."""

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microvm.errors import DeadlineExceeded, HostError, MicroVMError
from microvm.host import files, places, process
from microvm.host.process import Deadline
from microvm.model.facts import Accelerator, Program, dotted

KVM = Path("/dev/kvm")
_WITHOUT_KVM = "leave `accel` out, or say tcg"
TRIAL_TIMEOUTS_S = (20.0, 40.0)
"""How long a trial of KVM may be silent, and the second one: the first may have met a busy host."""
TRIAL_MOST = 6
"""What such a time is multiplied by for the whole of a trial: a slow host speaks for longer."""

_TRIALS = {
    "x86_64": ("q35", "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=t"),
    "aarch64": ("virt", "console=ttyAMA0 earlycon panic=-1"),
}
"""QEMU's machine type and the kernel's parameters for a trial, by machine name."""

_PACKAGES = {
    "virtiofsd": "virtiofsd",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}
_UNPACKAGED = {
    "cloud-hypervisor": "microvm hypervisors install cloud-hypervisor",
    "firecracker": "microvm hypervisors install firecracker",
    "crosvm": "Debian has no package of it (microvm hypervisors install crosvm tells more)",
    "lkvm": "Debian has no package of it (microvm hypervisors install kvmtool tells more)",
}


def package(name: str) -> str:
    """Return the Debian package that holds a program."""
    return _PACKAGES.get(name, name)


def cache_dir() -> Path:
    """Return the directory for what can be found out again."""
    if os.geteuid() == 0:
        return Path("/var/cache/microvm")
    try:
        return places.user_directory("XDG_CACHE_HOME", ".cache") / "microvm"
    except HostError:
        return Path("/var/cache/microvm")  # can't be written: a user without a home caches nothing


def program(
    name: str, declared: str | None = None, places: tuple[str, ...] = (), *, dry: bool = False
) -> Program:
    """Return a program with its version, asked once and then known by path, size and mtime.

    `places`: directories to look in after PATH. `dry`: remember nothing. Raises `HostError` that
    names the package when it is not there.
    """
    path = process.find_program(declared or name, places)
    if path is None and declared:
        raise _no_program(name, declared)
    if path is None:
        hint = f"install it: apt install {package(name)}"
        if name in _UNPACKAGED:
            hint = f"{_UNPACKAGED[name]}; or put it on PATH, or say where it is (`program`)"
        raise HostError(f"the program {name} is missing", hint=hint)
    info = path.stat()
    key = f"{name}:{path}:{info.st_size}:{info.st_mtime_ns}"
    record = cache_dir() / "programs.json"
    known = _read_json(record)
    match known.get(key):
        case [[*version], str(flavour)] if version:
            return Program(path=str(path), version=tuple(version), flavour=flavour)
    found = _ask(name, path)
    if found.version and not dry:
        others = {k: v for k, v in known.items() if not k.startswith(f"{name}:{path}:")}
        _remember(record, {**others, key: [found.version, found.flavour]})
    return found


_ANOTHER = "mend or reinstall it, or name another (`program`)"


def _no_program(name: str, declared: str) -> HostError:
    """Say why a declared program can't be it."""
    path = Path(declared)
    why = "is not on PATH"
    if path.is_dir():
        why = "is a directory"
    elif path.exists():
        why = "is not executable"
    elif "/" in declared:
        why = "is not there"
    message = f"the declared program for {name}, {declared}, {why}"
    return HostError(message, hint=f"correct `program`, or leave it out: {name} is looked for then")


def _ask(name: str, path: Path) -> Program:
    if name == "crosvm":
        return Program(path=str(path), version=())  # its numbers are a log's time, never a version
    doing = f"ask {path.name} for its version"
    try:
        done = process.run([path, "--version"], timeout_s=10, check=False, doing=doing)
    except MicroVMError as error:
        raise HostError(error.message, hint=error.hint or f"is it {name}? {_ANOTHER}") from error
    text = (done.stdout + done.stderr).decode(errors="replace")
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    version = tuple(int(part) for part in match.groups() if part) if match else ()
    flavour = ""
    if name == "virtiofsd":
        # The C one drops groups before it looks at its options, which only root may.
        flavour = "c" if re.search("FUSE|fuse|setgroups", text) else "rust"
    elif not version and done.returncode != 0:  # one that can't say that can't run guests either
        raise HostError(
            f"could not {doing}: it {process.ended(done.returncode)}"
            f"{process.last_words(text.encode(), 3)}",
            hint=f"is {path} a working {name}? {_ANOTHER}",
        )
    return Program(path=str(path), version=version, flavour=flavour)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(path: Path, value: object) -> None:
    """Write a cache; a host that doesn't let us goes without one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps(value))
    except (OSError, MicroVMError):
        return


def boot_id() -> str:
    """Return what tells one boot of this host from another (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def host_id(state_dir: Path, *, dry: bool = False) -> str:
    """Return the host's machine-id, or a random one that is kept beside the state.

    `dry`: make none; zeros stand for it until a run does.
    """
    try:
        found = Path("/etc/machine-id").read_text().strip()
    except OSError:
        found = ""
    if re.fullmatch(r"[0-9a-f]{32}", found):
        return found
    record = state_dir / "host-id"
    if not record.exists():
        if dry:
            return "0" * 32
        files.write_atomic(record, os.urandom(16).hex() + "\n")
    return record.read_text().strip()


def hugepage_kib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the size of the host's huge pages, or 0."""
    found = re.search(r"^Hugepagesize:\s*(\d+) kB$", meminfo.read_text(), re.M)
    return int(found[1]) if found else 0


def hugepages_free(
    meminfo: Path = Path("/proc/meminfo"),
    overcommit: Path = Path("/proc/sys/vm/nr_overcommit_hugepages"),
) -> int:
    """Return how many huge pages of the usual size a program can still get."""
    said = dict(re.findall(r"^HugePages_(\w+):\s*(\d+)$", meminfo.read_text(), re.M))
    have = {name: int(number) for name, number in said.items()}
    free = have.get("Free", 0) - have.get("Rsvd", 0)
    more = int(overcommit.read_text()) if overcommit.exists() else 0
    return free + max(more - have.get("Surp", 0), 0)


def hugetlbfs(mounts: Path = Path("/proc/mounts")) -> str | None:
    """Return where a hugetlbfs is mounted that we may write to, and its pages are no giants."""
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split(" ")
        path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), place)  # proc_mounts
        if kind == "hugetlbfs" and "pagesize=1024M" not in options and os.access(path, os.W_OK):
            return path
    return None


def shmem_thp(place: Path = Path("/sys/kernel/mm/transparent_hugepage")) -> str:
    """Return when shared memory gets transparent huge pages: `advise`, `never` and so on."""
    try:
        text = (place / "shmem_enabled").read_text()
    except OSError:
        return "never"  # a kernel without them
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else "never"


def kvm_module() -> str | None:
    """Return which module is behind /dev/kvm: `kvm_intel`, `kvm_amd`, `kvm_pvm`, or None."""
    for name in ("kvm_pvm", "kvm_intel", "kvm_amd"):
        if Path("/sys/module", name).exists():
            return name
    return None


def kvm_obstacle() -> str | None:
    """Return why hardware virtualisation can't be tried here, or None."""
    if not KVM.exists():
        return "the host has no /dev/kvm"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "no permission on /dev/kvm (sudo usermod -aG kvm $USER, then log in again)"
    if kvm_module() == "kvm_pvm":
        return "/dev/kvm is kvm_pvm, which runs only kernels built for it"
    return None


def accelerator(
    qemu: Program, kernel: Path, declared: str | None, *, dry: bool = False
) -> Accelerator:
    """Return how to run virtual CPUs: as declared, else KVM where it is seen to work.

    A /dev/kvm that opens may still not run a stock kernel, so it is tried out with the guest's,
    once a boot of the host; with `dry` it is only looked up how that went. Raises `HostError`
    when `kvm` is declared and can't be used; with `dry` the reason tells.
    """
    if declared == "tcg":
        return Accelerator(kind="tcg", reason="declared")
    obstacle = kvm_obstacle()
    if obstacle is None:
        trials = Trials(cache_dir() / "kvm.json", boot_id())
        verdict = trials.known(qemu, kernel)
        if verdict is None and dry:
            return Accelerator(kind="kvm", reason="not tried out on this host yet; a run does it")
        obstacle = (verdict or trials.verdict(qemu, kernel)).obstacle
    if obstacle is None:
        return Accelerator(kind="kvm", reason="tried out on this host")
    if declared == "kvm" and dry:
        return _unusable(obstacle)
    if declared == "kvm":
        raise HostError(f"accel is kvm, but {obstacle}", hint=_WITHOUT_KVM)
    return Accelerator(kind="tcg", reason=f"emulation, because {obstacle}")


def kvm_lack(name: str, declared: str | None) -> HostError | None:
    """Return what is wrong where a hypervisor, or `accel`, asks for KVM that can't be used here."""
    obstacle = kvm_obstacle() if name != "qemu" or declared == "kvm" else None
    if obstacle is None:
        return None
    if name == "qemu":
        return HostError(f"accel is kvm, but {obstacle}", hint=_WITHOUT_KVM)
    return HostError(
        f"{name} needs hardware virtualisation, but {obstacle}",
        hint="use --hypervisor qemu, which can emulate",
    )


def kvm_only(name: str, *, dry: bool = False) -> Accelerator:
    """Return KVM for a hypervisor that has nothing else.

    Raises `HostError` where it can't be used; with `dry` the reason tells.
    """
    if lack := kvm_lack(name, None):
        if dry:
            return _unusable(str(kvm_obstacle()))
        raise lack
    return Accelerator(kind="kvm", reason=f"{name} knows nothing else")


def _unusable(obstacle: str) -> Accelerator:
    return Accelerator(kind="kvm", reason=f"it would not start here: {obstacle}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial of KVM showed."""

    obstacle: str | None
    """Why it doesn't run the kernel; None: it does."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials of KVM and what is remembered of them for one boot of the host.

    A kernel that runs speaks for all kernels; one that doesn't, only for itself.
    """

    record: Path
    boot: str

    def known(self, qemu: Program, kernel: Path) -> Verdict | None:
        """Return what an earlier trial of this boot showed, or None."""
        known = self._read()
        general = _trial_key(qemu)
        if general in known and known[general] is None:
            return Verdict(None)
        obstacle = known.get(f"{general}:{kernel}")
        return Verdict(obstacle) if isinstance(obstacle, str) else None

    def verdict(
        self, qemu: Program, kernel: Path, timeouts_s: tuple[float, ...] = TRIAL_TIMEOUTS_S
    ) -> Verdict:
        """Try KVM out, once more where it took too long, and remember what that showed."""
        obstacle: str | None = None
        for timeout_s in timeouts_s:
            try:
                obstacle = _trial(qemu, kernel, timeout_s)
            except DeadlineExceeded as error:
                obstacle = f"KVM does not run a stock kernel here: {error}"
                continue
            except HostError as error:  # that says nothing about KVM
                return Verdict(str(error))
            break
        key = _trial_key(qemu)
        kept = {**self._read(), key if obstacle is None else f"{key}:{kernel}": obstacle}
        _remember(self.record, {"boot": self.boot, "verdicts": kept})
        return Verdict(obstacle)

    def _read(self) -> dict[str, Any]:
        """Return the verdicts of this boot; a new boot may have another kernel or machine."""
        found = _read_json(self.record)
        verdicts = found.get("verdicts") if found.get("boot") == self.boot else None
        return verdicts if isinstance(verdicts, dict) else {}


def _trial_key(qemu: Program) -> str:
    return f"{os.geteuid()}:{qemu.path}:{dotted(qemu.version)}"


def _trial(qemu: Program, kernel: Path, timeout_s: float) -> str | None:
    """Boot the kernel to its panic for want of a root; return why it doesn't get there, or None.

    Raises `DeadlineExceeded` when it is silent for `timeout_s`, or speaks without end; `HostError`.
    """
    argv = trial_command(qemu.path, kernel, platform.machine())
    if argv is None:
        return f"how to try KVM out on {platform.machine()} is not known"
    said = _said(argv, timeout_s)
    if b"Linux version" in said:
        return None
    return f"KVM does not run a stock kernel here{process.last_words(said, 3)}"


def _said(argv: tuple[str, ...], timeout_s: float) -> bytes:
    """Return what a program says until it ends; a nested host may need minutes for a boot."""
    import tempfile  # not on the way of a launch

    with tempfile.TemporaryDirectory(prefix="microvm-kvm-") as place:
        log = Path(place, "said")
        with process.spawn(argv, log=log) as running:
            whole, quiet, size = Deadline(TRIAL_MOST * timeout_s), Deadline(timeout_s), 0
            while running.wait(0.1) is None:
                if (now := log.stat().st_size) > size:
                    quiet, size = Deadline(timeout_s), now
                if quiet.expired:
                    raise DeadlineExceeded(f"it says nothing for {timeout_s:g} s")
                if whole.expired:
                    raise DeadlineExceeded(f"no boot within {TRIAL_MOST * timeout_s:g} s")
        return log.read_bytes()


def trial_command(qemu: str, kernel: Path, machine: str) -> tuple[str, ...] | None:
    """Return the command that tries KVM out on hosts of that machine name, or None."""
    if machine not in _TRIALS:
        return None
    kind, parameters = _TRIALS[machine]
    return (
        qemu, "-machine", kind, "-accel", "kvm", "-cpu", "host", "-m", "256M",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(kernel), "-append", parameters,
    )  # fmt: skip
