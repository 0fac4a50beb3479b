"""What the host is and has: programs with their versions, the accelerator, its identity."""

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from microvm.errors import HostError, MicroVMError
from microvm.host import files, process
from microvm.model.facts import Accelerator, Program

KVM = Path("/dev/kvm")
TRIAL_TIMEOUT_S = 20.0

_PACKAGES = {
    "virtiofsd": "virtiofsd",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}


def cache_dir() -> Path:
    """Return the directory for what can be found out again."""
    if os.geteuid() == 0:
        return Path("/var/cache/microvm")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microvm"


def program(name: str, declared: str | None = None, places: tuple[str, ...] = ()) -> Program:
    """Return a program with its version, asked once and then known by path, size and mtime.

    Raises `HostError` that names the package when it is not there.
    """
    path = process.find_program(declared or name, places)
    if path is None:
        package = _PACKAGES.get(name, name)
        raise HostError(
            f"the program {declared or name} is missing", hint=f"install it: apt install {package}"
        )
    info = path.stat()
    key = f"{path}:{info.st_size}:{info.st_mtime_ns}"
    record = cache_dir() / "programs.json"
    known = _read_json(record)
    if key not in known:
        known[key] = _ask(path)
        _remember(record, known)
    version, flavour = known[key]
    return Program(path=str(path), version=tuple(version), flavour=flavour)


def _ask(path: Path) -> tuple[tuple[int, ...], str]:
    done = process.run([path, "--version"], timeout_s=10, check=False, doing=f"ask {path.name}")
    text = (done.stdout + done.stderr).decode(errors="replace")
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    version = tuple(int(part) for part in match.groups() if part) if match else ()
    flavour = ""
    if "virtiofsd" in path.name:
        flavour = "c" if "FUSE" in text or "fuse" in text else "rust"
    return version, flavour


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


def host_id(state_dir: Path) -> str:
    """Return the host's machine-id, or a random one that is kept beside the state."""
    try:
        found = Path("/etc/machine-id").read_text().strip()
    except OSError:
        found = ""
    if re.fullmatch(r"[0-9a-f]{32}", found):
        return found
    record = state_dir / "host-id"
    if not record.exists():
        files.write_atomic(record, secrets.token_hex(16) + "\n")
    return record.read_text().strip()


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


def accelerator(qemu: Program, kernel: Path, declared: str | None) -> Accelerator:
    """Return how to run virtual CPUs: as declared, else KVM where it is seen to work.

    A /dev/kvm that opens may still not run a stock kernel, so it is tried out with the guest's,
    once a boot of the host. Raises `HostError` when `kvm` is declared and can't be used.
    """
    if declared == "tcg":
        return Accelerator(kind="tcg", reason="declared")
    obstacle = kvm_obstacle()
    if obstacle is None:
        obstacle = _trial(qemu, kernel)
    if obstacle is None:
        return Accelerator(kind="kvm", reason="tried out on this host")
    if declared == "kvm":
        raise HostError(f"accel is kvm, but {obstacle}", hint="leave `accel` out, or say tcg")
    return Accelerator(kind="tcg", reason=f"emulation, because {obstacle}")


def _trial(qemu: Program, kernel: Path) -> str | None:
    """Boot the kernel to its panic for want of a root; return why it doesn't get there, or None."""
    record = cache_dir() / "kvm.json"
    key = f"{boot_id()}:{qemu.path}:{qemu.version}:{os.geteuid()}"
    known = _read_json(record)
    if key in known:
        verdict = known[key][0]
        return verdict if isinstance(verdict, str) else None
    argv = [
        qemu.path, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(kernel), "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=t",
    ]  # fmt: skip
    obstacle: str | None = None
    try:
        done = process.run(argv, timeout_s=TRIAL_TIMEOUT_S, check=False, doing="try KVM out")
        if b"Linux version" not in done.stdout:
            obstacle = f"KVM does not run a stock kernel here{process.last_words(done.stderr, 3)}"
    except MicroVMError:
        obstacle = f"KVM does not run a stock kernel here: no boot within {TRIAL_TIMEOUT_S:g} s"
    _remember(record, {key: [obstacle]})
    return obstacle
