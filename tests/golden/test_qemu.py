"""What qemu is started with, argument by argument, for declarations that differ in one thing each."""

from pathlib import Path

import pytest

from microvm.hypervisors.qemu import PROGRAM
from microvm.model.declaration import MicroVM
from microvm.model.devices import (
    Device,
    Endpoint,
    ForwardPort,
    Interface,
    MacvtapOptions,
    PcieRootPort,
    QemuDeviceOptions,
    Share,
    TapOptions,
    Volume,
    Vsock,
)
from microvm.model.facts import Accelerator, Program
from microvm.model.options import QemuOptions, VirtiofsdOptions
from microvm.model.system import DebianSystem

PLACE = Path(__file__).parent / "qemu"

RUST = Program(path="/usr/libexec/virtiofsd", version=(1, 13, 2), flavour="rust")
C = Program(path="/usr/lib/qemu/virtiofsd", version=(7, 2, 22), flavour="c")
TCG = {"accelerator": Accelerator(kind="tcg", reason="declared")}
GENERIC = DebianSystem(kernel="generic")
VIRTIOFS = Share(tag="src", source="src", mount_point="/src", read_only=True)
NINEP = Share(
    tag="old", source="/srv/a,b", mount_point="/old", proto="9p", security_model="mapped-file"
)

CASES: dict[str, tuple[MicroVM, dict[str, object]]] = {
    "minimal": (MicroVM(), {}),
    "tcg": (MicroVM(accel="tcg", vcpu=2, mem=1024), TCG),
    "tcg-before-8.1": (
        MicroVM(accel="tcg", vcpu=2),
        {**TCG, "programs": {PROGRAM: Program(path="/opt/qemu", version=(7, 2, 22))}},
    ),
    "foreground": (MicroVM(), {"watched": True, "terminal": (24, 80, "xterm-256color")}),
    "job": (MicroVM(), {"watched": True, "job": True}),
    "volumes": (
        MicroVM(volumes=(
            Volume(image="root.img", size=1024, mount_point="/", label="root"),
            Volume(image="data.img", size=64, mount_point="/data", fs_type="xfs", serial="DATA",
                   direct=True),
            Volume(image="/srv/odd,name.img", auto_create=False, read_only=True, direct=False),
            Volume(image="/dev/vg/lv", auto_create=False, mount_point="/lv"),
        )),
        {},
    ),
    "volume-made-elsewhere": (
        MicroVM(volumes=(
            Volume(image="own.img", size=64, mount_point="/own"),
            Volume(image="/srv/other.img", auto_create=False, mount_point="/other"),
        )),
        {"positions": {1: "ext4"}},
    ),
    "user-network": (
        MicroVM(
            interfaces=(Interface(type="user", id="net0"),),
            forward_ports=(
                ForwardPort(host=Endpoint(port=8080), guest=Endpoint(port=80)),
                ForwardPort(host=Endpoint(port=5353, address="127.0.0.2"),
                            guest=Endpoint(port=53, address="10.0.2.15"), proto="udp"),
                ForwardPort(host=Endpoint(port=5432), guest=Endpoint(port=5432), origin="guest"),
            ),
        ),
        {},
    ),
    "tap": (
        MicroVM(vcpu=4, interfaces=(
            Interface(type="tap", id="tap0", mac="02:00:00:00:00:01"),
            Interface(type="tap", id="tap1", bridge="br0", tap=TapOptions(vhost=True)),
        )),
        {"vhost_net": True},
    ),
    "interfaces": (
        MicroVM(interfaces=(
            Interface(type="macvtap", id="mv0", macvtap=MacvtapOptions(link="eth0")),
            Interface(type="bridge", id="b0", bridge="br0"),
            Interface(type="user", id="net0"),
        )),
        {},
    ),
    "queues": (MicroVM(vcpu=3, interfaces=(Interface(type="tap", id="tap0"),)), TCG),
    "shares": (MicroVM(system=GENERIC, shares=(VIRTIOFS, NINEP)), {"programs": {"virtiofsd": RUST}}),
    "shares-old-virtiofsd": (
        MicroVM(shares=(VIRTIOFS,), virtiofsd=VirtiofsdOptions(inode_file_handles=None)),
        {"programs": {"virtiofsd": C}, "root": True},
    ),
    "another-user": (MicroVM(user="nobody"), {"root": True}),
    "another-user-before-9.1": (
        MicroVM(user="nobody"),
        {"programs": {PROGRAM: Program(path="/opt/qemu", version=(9, 0))}, "root": True},
    ),
    "root-over-virtiofs": (MicroVM(store_on_disk=False), {"programs": {"virtiofsd": RUST}}),
    "root-over-9p": (MicroVM(system=GENERIC, store_on_disk=False, store_proto="9p"), {}),
    "huge-pages": (MicroVM(mem=2048, hugepage_mem=True), {}),
    "memory": (
        MicroVM(mem=1024, hotplug_mem=512, hotplugged_mem=128, balloon=True, initial_balloon_mem=256),
        {},
    ),
    "memory-of-huge-pages": (
        MicroVM(hotplug_mem=256, hugepage_mem=True, shares=(VIRTIOFS,)), {"programs": {"virtiofsd": RUST}},
    ),
    "passed-through": (
        MicroVM(
            devices=(
                Device(bus="pci", path="0000:01:00.0", qemu=QemuDeviceOptions(
                    id="gpu", bus="port0", device_extra_args="x-igd-opregion=on,multifunction=on")),
                Device(bus="usb", path="vendorid=0x1d6b,productid=0x0002"),
            ),
            qemu=QemuOptions(pcie_root_ports=(
                PcieRootPort(id="port0"), PcieRootPort(id="port1", bus="pcie.0", slot=3, addr="0x1c"),
                PcieRootPort(id="port2", chassis=1),
            )),
        ),
        {},
    ),
    "image-types": (
        MicroVM(volumes=tuple(
            Volume(image=f"{kind}.img", auto_create=False, mount_point=f"/{kind}", image_type=kind)
            for kind in ("qcow2", "vhd", "vhdx")
        )),
        {"positions": {0: "", 1: "", 2: ""}},
    ),
    "devices": (
        MicroVM(
            vsock=Vsock(cid=7), balloon=True, deflate_on_oom=False,
            credential_files={"ssh.key": "keys/a,b", "absolute": "/etc/hostname"},
        ),
        {},
    ),
    "own-words": (
        MicroVM(
            cpu="Haswell,-hle", machine_id="01234567-89ab-cdef-0123-456789abcdef",
            socket="control,1.sock", initrd_path="boot/initrd", kernel_params=("debug", "a=b,c"),
            pretty_procnames=False,
            qemu=QemuOptions(
                machine="q35", machine_opts={"hpet": "off", "vmport": "on"}, serial_console=False,
                extra_args=("-device", "pvpanic-pci", "-trace", "a b"), program="/opt/qemu",
            ),
        ),
        {"programs": {PROGRAM: Program(path="/opt/qemu", version=(9, 2))},
         "machine_id": "0123456789abcdef0123456789abcdef"},
    ),
}  # fmt: skip


QEMU = Program(path=f"/usr/bin/{PROGRAM}", version=(10, 0, 2))


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_is_this_one(name, plan_of, written_down):
    vm, known = CASES[name]
    written_down(plan_of(vm, QEMU, known), PLACE / f"{name}.txt")


def test_every_file_belongs_to_a_case():
    assert {path.name for path in PLACE.iterdir()} == {f"{name}.txt" for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_the_layers_that_qemu_serves_are_told_to_the_launcher(name, plan_of):
    vm, known = CASES[name]
    layers = [f"/store/0t-{layer}/tree" for layer in ("kernel", "base", "configuration")]
    expected = tuple(layers) if name == "root-over-9p" else ()
    assert plan_of(vm, QEMU, known).trees == expected
