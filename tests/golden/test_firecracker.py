"""What firecracker is started with, and its configuration, for declarations that differ in one
thing each.
"""

from pathlib import Path

import pytest

from microvm.model.declaration import MicroVM
from microvm.model.devices import Interface, Volume, Vsock
from microvm.model.facts import Program
from microvm.model.options import FirecrackerOptions

PLACE = Path(__file__).parent / "firecracker"


def vm(**fields):
    return MicroVM(hypervisor="firecracker", **fields)


NEWEST = (1, 16, 1)
CASES = {
    "minimal": (vm(), NEWEST, {}),
    "oldest": (vm(balloon=True), (1, 8, 0), {}),
    "foreground": (vm(), NEWEST, {"watched": True, "terminal": (24, 80, "xterm-256color")}),
    "job": (vm(), NEWEST, {"watched": True, "job": True}),
    "volumes": (
        vm(
            volumes=(
                Volume(image="root.img", size=1024, mount_point="/", label="root"),
                Volume(image="/srv/odd,name.img", auto_create=False, read_only=True, direct=False),
                Volume(image="/dev/vg/lv", auto_create=False, mount_point="/lv"),
            )
        ),
        NEWEST,
        {"positions": {2: "ext4"}},
    ),
    "interfaces": (
        vm(
            vcpu=4,
            interfaces=(
                Interface(type="tap", id="tap0", mac="02:00:00:00:00:01"),
                Interface(type="tap", id="tap1", bridge="br0"),
            ),
        ),
        NEWEST,
        {},
    ),
    "memory": (
        vm(
            mem=1024,
            hugepage_mem=True,
            hotplug_mem=256,
            balloon=True,
            initial_balloon_mem=256,
            deflate_on_oom=False,
        ),
        NEWEST,
        {},
    ),
    "devices": (
        vm(
            vsock=Vsock(cid=9),
            credential_files={"ssh.key": "keys/a", "absolute": "/etc/hostname"},
        ),
        NEWEST,
        {},
    ),
    "own-words": (
        vm(
            machine_id="01234567-89ab-cdef-0123-456789abcdef",
            socket="control.sock",
            initrd_path="boot/initrd",
            kernel_params=("debug",),
            pretty_procnames=False,
            volumes=(Volume(image="v.img", size=1),),
            firecracker=FirecrackerOptions(
                cpu={"cpuid_modifiers": [], "kvm_capabilities": ["!56"]},
                drive_io_engine="Sync",
                extra_args=("--boot-timer",),
                extra_config={
                    "machine-config": {"track_dirty_pages": True},
                    "drives": [
                        {
                            "drive_id": "volume0",
                            "rate_limiter": {"ops": {"size": 10, "refill_time": 1}},
                        },
                        {"drive_id": "more", "path_on_host": "/x", "is_root_device": False},
                    ],
                    "metrics": {"metrics_path": "metrics"},
                    "entropy": None,
                },
                program="/opt/firecracker",
            ),
        ),
        NEWEST,
        {"machine_id": "0123456789abcdef0123456789abcdef"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_and_the_configuration_are_these(name, plan_of, written_down):
    declared, version, known = CASES[name]
    program = Program(path="/usr/bin/firecracker", version=version)
    written_down(plan_of(declared, program, known), PLACE / f"{name}.txt")


def test_every_file_belongs_to_a_case():
    assert {path.name for path in PLACE.iterdir()} == {f"{name}.txt" for name in CASES}
