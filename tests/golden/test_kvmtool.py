"""What kvmtool is started with, for declarations that differ in one thing each."""

from pathlib import Path

import pytest

from microvm.model.declaration import MicroVM
from microvm.model.devices import Device, Interface, MacvtapOptions, Share, Volume, Vsock
from microvm.model.facts import Program
from microvm.model.options import KvmtoolOptions

PLACE = Path(__file__).parent / "kvmtool"


def vm(**fields):
    return MicroVM(hypervisor="kvmtool", **fields)


VSOCK = {"vhost_vsock": True, "secret": "0" * 32}
CASES = {
    "minimal": (vm(), {}),
    "with-vsock": (vm(), VSOCK),
    "foreground": (vm(), {"watched": True, "terminal": (24, 80, "xterm-256color"), **VSOCK}),
    "job": (vm(), {"watched": True, "job": True, **VSOCK}),
    "job-without-vsock": (vm(), {"watched": True, "job": True}),
    "volumes": (
        vm(
            volumes=(
                Volume(image="root.img", size=1024, mount_point="/"),
                Volume(image="/srv/x.img", auto_create=False, read_only=True),
                Volume(image="/dev/vg/lv", auto_create=False, mount_point="/lv", direct=True),
            )
        ),
        {"positions": {2: "ext4"}},
    ),
    "interfaces": (
        vm(
            interfaces=(
                Interface(type="user", id="net0"),
                Interface(type="tap", id="tap0", mac="02:00:00:00:00:01", bridge="br0"),
                Interface(type="macvtap", id="mv0", macvtap=MacvtapOptions(link="eth0")),
            )
        ),
        {},
    ),
    "shares": (vm(shares=(Share(tag="src", source="src", mount_point="/src", proto="9p"),)), {}),
    "devices": (
        vm(
            vcpu=2, mem=1024, balloon=True, deflate_on_oom=False, vsock=Vsock(cid=9),
            devices=(Device(bus="pci", path="0000:03:00.0"),), credential_files={"ssh.key": "a"},
        ),
        VSOCK,
    ),
    "own-words": (
        vm(
            initrd_path="boot/initrd", kernel_params=("debug",), pretty_procnames=False,
            kvmtool=KvmtoolOptions(extra_args=("--debug",), program="/opt/lkvm"),
        ),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_is_this_one(name, plan_of, written_down):
    declared, known = CASES[name]
    program = Program(path="/usr/bin/lkvm", version=(3, 18, 0))
    written_down(plan_of(declared, program, known), PLACE / f"{name}.txt")


def test_every_file_belongs_to_a_case():
    assert {path.name for path in PLACE.iterdir()} == {f"{name}.txt" for name in CASES}


def test_a_job_has_its_serial_line_whatever_the_guest_says(plan_of):
    """Seen in a guest: the kernel takes the last of these, and ttyS1 was missing."""
    program = Program(path="/usr/bin/lkvm", version=(3, 18, 0))
    known = {"watched": True, "job": True, "guests_params": ("quiet", "8250.nr_uarts=1")}
    argv = plan_of(vm(), program, known).argv
    line = argv[argv.index("--params") + 1].split()
    assert [word for word in line if word.startswith("8250.nr_uarts=")][-1] == "8250.nr_uarts=2"


def test_devices_that_it_can_not_serve_are_noted(plan_of):
    program = Program(path="/usr/bin/lkvm", version=(3, 18, 0))
    passed = vm(devices=(Device(bus="pci", path="0000:03:00.0"),))
    assert any("shares a BAR" in note for note in plan_of(passed, program, {}).notes)
    assert not any("shares a BAR" in note for note in plan_of(vm(), program, {}).notes)
