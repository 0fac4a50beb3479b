"""What golden tests of every back end share: a guest system, facts, and plans as text.

A file holds one argument a line, then those of each helper, the files that are written and the
descriptors that are inherited. A change of a plan shows as a change of these files: read it, and where
it is meant, write them anew with `MICROVM_UPDATE_GOLDEN=1 pytest tests/golden`.
"""

import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from microvm.hypervisors import hypervisor
from microvm.model.facts import Accelerator, Facts
from microvm.model.guest import GuestSystem, Layer
from microvm.model.runner import Runner

UPDATE = "MICROVM_UPDATE_GOLDEN"

SYSTEM = GuestSystem(
    name="0s-system", source="debian", description="Debian 13", architecture="x86_64",
    kernel="0k-kernel", kernel_release="6.12.48+deb13-cloud-amd64", initrd="0i-initrd",
    features=(), kernel_params=("quiet",),
    layers=tuple(
        Layer(name=name, tree=f"0t-{name}", image=f"0e-{name}", kind="erofs", uuid=f"uuid-{name}")
        for name in ("kernel", "base", "configuration")
    ),
)  # fmt: skip


@pytest.fixture
def plan_of():
    """Plan a declaration, with facts changed by what is known."""

    def plan(vm, program, known):
        known = dict(known)
        backend = hypervisor(vm.hypervisor)
        system = replace(SYSTEM, kernel_params=known.pop("guests_params", SYSTEM.kernel_params))
        facts = Facts(**{
            "accelerator": Accelerator(kind="kvm", reason="tried out on this host"),
            "state_dir": "/state", "project_dir": "/project", "store_dir": "/store",
            "machine_id": "1" * 32, "landlock": 3,
            "vhost_vsock": vm.hypervisor in ("qemu", "crosvm"),
            "programs": {backend.program: program, **known.pop("programs", {})}, **known,
        })  # fmt: skip
        assert backend.check(vm, facts) == []
        vmlinux = "0v-vmlinux" if backend.boots_vmlinux else None
        disk = "0d-disk" if backend.one_disk else None
        runner = Runner(schema=1, name="vm", microvm=vm, system=system, vmlinux=vmlinux, disk=disk)
        return backend.plan(runner, facts)

    return plan


@pytest.fixture
def written_down():
    """Compare a plan with its file."""

    def compare(plan, path: Path):
        found = _text(plan)
        if os.environ.get(UPDATE):
            path.parent.mkdir(exist_ok=True)
            path.write_text(found)
        assert path.exists(), f"{path} is missing: {UPDATE}=1 writes it"
        assert found == path.read_text(), f"see conftest.py: {UPDATE}=1"

    return compare


def _text(plan):
    commands = [plan.argv, *(helper.argv for helper in plan.helpers)]
    assert all("\n" not in word for part in commands for word in part)
    parts = ["\n".join(part) for part in commands]
    parts += [f"{name}:\n{text.rstrip()}" for name, text in plan.files.items()]
    parts += [
        f"descriptor {one.number}: one of {one.queues} queues of the {one.kind} {one.name}"
        for one in plan.opened
    ]
    return "\n\n".join(parts) + "\n"


@pytest.fixture(autouse=True)
def _x86_64():
    if platform.machine() != "x86_64":
        pytest.skip("the files are those of x86_64")
