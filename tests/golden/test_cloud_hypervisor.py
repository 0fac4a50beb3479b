"""What cloud-hypervisor is started with, for declarations that differ in one thing each."""

from pathlib import Path

import pytest

from microvm.model.declaration import MicroVM
from microvm.model.devices import Device, Interface, MacvtapOptions, Share, Volume, Vsock
from microvm.model.facts import Program
from microvm.model.options import CloudHypervisorOptions

PLACE = Path(__file__).parent / "cloud_hypervisor"
RUST = {"virtiofsd": Program(path="/usr/libexec/virtiofsd", version=(1, 13, 2), flavour="rust")}


def program(*version):
    return Program(path="/usr/bin/cloud-hypervisor", version=version)


def vm(**fields):
    return MicroVM(hypervisor="cloud-hypervisor", **fields)


VOLUMES = vm(
    vcpu=2,
    volumes=(
        Volume(image="root.img", size=1024, mount_point="/", label="root"),
        Volume(image="data.img", size=64, mount_point="/data", serial="DATA", direct=True),
        Volume(image="/srv/a,b [1].qcow2", auto_create=False, read_only=True, image_type="qcow2"),
        Volume(image="/dev/vg/lv", auto_create=False, mount_point="/lv", direct=False),
    ),
)
CASES = {
    "minimal": (vm(), (53, 0), {}),
    "oldest": (vm(), (40, 0), {}),
    "without-landlock": (vm(), (53, 0), {"landlock": 2}),
    "foreground": (vm(), (53, 0), {"watched": True, "terminal": (24, 80, "xterm-256color")}),
    "job": (vm(), (53, 0), {"watched": True, "job": True}),
    "job-with-cid": (vm(vsock=Vsock(cid=7)), (53, 0), {"watched": True, "job": True}),
    "volumes": (VOLUMES, (53, 0), {}),
    "volume-made-elsewhere": (
        vm(
            volumes=(
                Volume(image="own.img", size=64, mount_point="/own"),
                Volume(image="/srv/other.img", auto_create=False, mount_point="/other"),
            )
        ),
        (50, 2),
        {"positions": {1: "ext4"}},
    ),
    "interfaces": (
        vm(
            vcpu=3,
            interfaces=(
                Interface(type="tap", id="tap0", mac="02:00:00:00:00:01", bridge="br0"),
                Interface(type="macvtap", id="mv0", macvtap=MacvtapOptions(link="eth0")),
            ),
        ),
        (53, 0),
        {},
    ),
    "shares": (
        vm(
            hugepage_mem=True,
            shares=(
                Share(tag="src", source="src", mount_point="/src", read_only=True),
                Share(tag="b", source="/b", mount_point="/b", socket="a,b.sock"),
            ),
        ),
        (53, 0),
        {"programs": RUST},
    ),
    "root-over-virtiofs": (vm(store_on_disk=False), (53, 0), {"programs": RUST}),
    "memory": (
        vm(
            mem=1024,
            hugepage_mem=True,
            hotplug_mem=512,
            hotplugged_mem=128,
            balloon=True,
            initial_balloon_mem=256,
            deflate_on_oom=False,
        ),
        (53, 0),
        {"hugepage_kib": 2048},
    ),
    "devices": (
        vm(
            vsock=Vsock(cid=9),
            devices=(Device(bus="pci", path="0000:01:00.0"),),
            credential_files={"ssh.key": "keys/a", "absolute": "/etc/hostname"},
        ),
        (53, 0),
        {},
    ),
    "own-words": (
        vm(
            machine_id="01234567-89ab-cdef-0123-456789abcdef",
            socket="control,1.sock",
            initrd_path="boot/initrd",
            kernel_params=("debug", "a=b,c"),
            pretty_procnames=False,
            volumes=(Volume(image="v.img", size=1),),
            cloud_hypervisor=CloudHypervisorOptions(
                platform_oem_strings=("io.systemd.credential:a=b", "second"),
                extra_args=(
                    "--cpus", "boot=1,max=4,affinity=[0@[1,2]]", "--disk", "path=/x", "path=/y",
                    "--watchdog", "--serial=null", "--platform", "system_family=f", "--pvpanic",
                ),
                program="/opt/cloud-hypervisor",
            ),
        ),
        (53, 0),
        {"machine_id": "0123456789abcdef0123456789abcdef"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_is_this_one(name, plan_of, written_down):
    declared, version, known = CASES[name]
    written_down(plan_of(declared, program(*version), known), PLACE / f"{name}.txt")


def test_every_file_belongs_to_a_case():
    assert {path.name for path in PLACE.iterdir()} == {f"{name}.txt" for name in CASES}


def test_a_vhdx_image_that_is_written_to_is_noted(plan_of):
    program = Program(path="/usr/bin/cloud-hypervisor", version=(53, 0))

    def notes(**volume):
        image = Volume(image="d.vhdx", auto_create=False, image_type="vhdx", **volume)
        return " ".join(plan_of(vm(volumes=(image,)), program, {}).notes)

    assert "vhdx" in notes()
    assert "vhdx" not in notes(read_only=True)
