"""A declaration becomes a plan, on a host that has everything: for tests of plans as data."""

from microvm.hypervisors import hypervisor
from microvm.model.declaration import MicroVM
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.guest import GuestSystem, Layer
from microvm.model.plan import LaunchPlan
from microvm.model.runner import Runner

LAYER = Layer(name="base", tree="t", image="i", kind="erofs", uuid="u")
SYSTEM = GuestSystem(
    name="s", source="debian", description="d", architecture="x86_64", kernel="k",
    kernel_release="1", initrd="k", features=(), layers=(LAYER,), kernel_params=(),
)  # fmt: skip
VIRTIOFSD = Program(path="/v", version=(1, 13), flavour="rust")


def facts(kind: str, *version: int, **more) -> Facts:
    """Return a host with the hypervisor in a version (else a later one than any); `more` replaces."""
    program = Program(path="/usr/bin/vmm", version=version or (99, 0))
    return Facts(**{
        "accelerator": Accelerator(kind="kvm", reason=""), "landlock": 3, "vhost_net": True, "root": True,
        "vhost_vsock": True, "secret": "0" * 32,
        "hugetlbfs": "/h",
        "programs": {hypervisor(kind).program: program, "virtiofsd": VIRTIOFSD},
        "state_dir": "/s", "project_dir": "/p", "store_dir": "/st", "machine_id": "1" * 32, **more,
    })  # fmt: skip


def plan(declared: MicroVM, known: Facts, system: GuestSystem = SYSTEM) -> LaunchPlan:
    """Return the plan of a declaration; nobody has checked it."""
    runner = Runner(schema=1, name="vm", microvm=declared, system=system, vmlinux="v", disk="d")
    return hypervisor(declared.hypervisor).plan(runner, known)
