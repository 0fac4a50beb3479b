"""What crosvm is started with, for declarations that differ in one thing each."""

from pathlib import Path

import pytest

from microvm.model.declaration import MicroVM
from microvm.model.devices import (
    Device,
    Interface,
    MacvtapOptions,
    Share,
    TapOptions,
    Volume,
    Vsock,
)
from microvm.model.facts import Program
from microvm.model.options import CrosvmOptions

PLACE = Path(__file__).parent / "crosvm"
RUST = Program(path="/usr/libexec/virtiofsd", version=(1, 13, 2), flavour="rust")


def vm(**fields):
    return MicroVM(hypervisor="crosvm", **fields)


CASES = {
    "minimal": (vm(), {}),
    "foreground": (vm(), {"watched": True, "terminal": (24, 80, "xterm-256color")}),
    "job": (vm(), {"watched": True, "job": True}),
    "volumes": (
        vm(
            volumes=(
                Volume(image="root.img", size=1024, mount_point="/", serial="ROOT"),
                Volume(image='/srv/odd,"name\\.img', auto_create=False, read_only=True),
                Volume(image="/dev/vg/lv", auto_create=False, mount_point="/lv", direct=True),
            )
        ),
        {"positions": {2: "ext4"}},
    ),
    "interfaces": (
        vm(
            interfaces=(
                Interface(type="tap", id="tap0", mac="02:00:00:00:00:01"),
                Interface(type="tap", id="tap1", bridge="br0", tap=TapOptions(vhost=True)),
                Interface(type="macvtap", id="mv0", macvtap=MacvtapOptions(link="eth0")),
            )
        ),
        {"vhost_net": True},
    ),
    "shares": (
        vm(shares=(Share(tag="src", source="src", mount_point="/src", read_only=True),)),
        {"programs": {"virtiofsd": RUST}},
    ),
    "root-over-virtiofs": (vm(store_on_disk=False), {"programs": {"virtiofsd": RUST}}),
    "devices": (
        vm(
            vcpu=2, mem=1024, hugepage_mem=True, balloon=True, initial_balloon_mem=256,
            vsock=Vsock(cid=9), devices=(Device(bus="pci", path="0000:03:00.0"),),
            credential_files={"ssh.key": "keys/a"},
        ),
        {},
    ),
    "own-words": (
        vm(
            socket="control.sock", initrd_path="boot/initrd", kernel_params=("debug",),
            pretty_procnames=False,
            crosvm=CrosvmOptions(
                pivot_root="empty", extra_args=("--no-smt",), program="/opt/crosvm"
            ),
        ),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_is_this_one(name, plan_of, written_down):
    declared, known = CASES[name]
    program = Program(path="/usr/bin/crosvm", version=())
    written_down(plan_of(declared, program, known), PLACE / f"{name}.txt")


def test_every_file_belongs_to_a_case():
    assert {path.name for path in PLACE.iterdir()} == {f"{name}.txt" for name in CASES}


def test_lost_interrupts_are_noted_until_they_are_avoided(plan_of):
    passed = (Device(bus="pci", path="0000:03:00.0"),)
    program = Program(path="/usr/bin/crosvm", version=())
    (note,) = [n for n in plan_of(vm(devices=passed), program, {}).notes if "MSI-X" in n]
    assert 'kernel_params = ["pci=nomsi"]' in note
    avoided = plan_of(vm(devices=passed, kernel_params=("pci=noaer,nomsi",)), program, {})
    assert not any("MSI-X" in note for note in avoided.notes)
