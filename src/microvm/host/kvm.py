"""How virtual CPUs are run on this host: by KVM where it is seen to work, else emulated."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microvm.errors import DeadlineExceeded, HostError
from microvm.host import cache, process
from microvm.host.process import Deadline
from microvm.model.facts import Accelerator, Program, dotted

KVM = Path("/dev/kvm")
TRIAL_TIMEOUTS_S = (20.0, 40.0)
"""How long a trial of KVM may be silent, and the second one: the first may have met a busy host."""
TRIAL_MOST = 6
"""What such a time is multiplied by for the whole of a trial: a slow host speaks for longer."""

_TRIALS = {
    "x86_64": ("q35", "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=t"),
    "aarch64": ("virt", "console=ttyAMA0 earlycon panic=-1"),
}
"""QEMU's machine type and the kernel's parameters for a trial, by machine name."""


def boot_id() -> str:
    """Return what tells one boot of this host from another (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def module() -> str | None:
    """Return which module is behind /dev/kvm: `kvm_intel`, `kvm_amd`, `kvm_pvm`, or None."""
    for name in ("kvm_pvm", "kvm_intel", "kvm_amd"):
        if Path("/sys/module", name).exists():
            return name
    return None


def obstacle() -> str | None:
    """Return why hardware virtualisation can't be tried here, or None."""
    if not KVM.exists():
        return "the host has no /dev/kvm"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "no permission on /dev/kvm (sudo usermod -aG kvm $USER, then log in again)"
    if module() == "kvm_pvm":
        return "/dev/kvm is kvm_pvm, which runs only kernels built for it"
    return None


def accelerator(
    qemu: Program, kernel: Path | None, declared: str | None, *, dry: bool = False
) -> Accelerator:
    """Return how to run virtual CPUs: as declared, else KVM where it is seen to work.

    A /dev/kvm that opens may still not run a stock kernel, so it is tried out with the guest's,
    once a boot of the host; with `dry` or no kernel it is only looked up how that went. Raises
    `HostError` when `kvm` is declared and can't be used; with `dry` the reason tells.
    """
    if declared == "tcg":
        return Accelerator(kind="tcg", reason="declared")
    why = obstacle()
    if why is None:
        trials = Trials(cache.directory() / "kvm.json", boot_id())
        verdict = trials.known(qemu, kernel)
        if verdict is None:
            if dry or kernel is None:
                reason = "not tried out on this host yet; a run does it"
                return Accelerator(kind="kvm", reason=reason)
            verdict = trials.verdict(qemu, kernel)
        why = verdict.obstacle
    if why is None:
        return Accelerator(kind="kvm", reason="tried out on this host")
    if declared == "kvm" and dry:
        return _unusable(why)
    if declared == "kvm":
        raise _declared(why)
    return Accelerator(kind="tcg", reason=f"emulation, because {why}")


def lack(name: str, *, emulates: bool, declared: str | None) -> HostError | None:
    """Return why a hypervisor can't even try KVM where it has to, or None.

    `emulates`: whether it can do without, unless `declared` says otherwise.
    """
    why = obstacle()
    if why is None or (emulates and declared != "kvm"):
        return None
    if emulates:
        return _declared(why)
    return HostError(
        f"{name} needs hardware virtualisation, but {why}",
        hint="use --hypervisor qemu, which can emulate",
    )


def only(name: str) -> Accelerator:
    """Return KVM for a hypervisor that has nothing else; the reason tells where it has no use."""
    if why := obstacle():
        return _unusable(why)
    return Accelerator(kind="kvm", reason=f"{name} knows nothing else")


def _declared(why: str) -> HostError:
    return HostError(f"accel is kvm, but {why}", hint="leave `accel` out, or say tcg")


def _unusable(why: str) -> Accelerator:
    return Accelerator(kind="kvm", reason=f"it would not start here: {why}")


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

    def known(self, qemu: Program, kernel: Path | None) -> Verdict | None:
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
        why: str | None = None
        for timeout_s in timeouts_s:
            try:
                why = _trial(qemu, kernel, timeout_s)
            except DeadlineExceeded as error:
                why = f"KVM does not run a stock kernel here: {error}"
                continue
            except HostError as error:  # that says nothing about KVM
                return Verdict(str(error))
            break
        key = _trial_key(qemu)
        kept = {**self._read(), key if why is None else f"{key}:{kernel}": why}
        cache.remember(self.record, {"boot": self.boot, "verdicts": kept})
        return Verdict(why)

    def _read(self) -> dict[str, Any]:
        """Return the verdicts of this boot; a new boot may have another kernel or machine."""
        found = cache.read(self.record)
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
