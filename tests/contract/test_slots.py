"""What the check lets through has a slot for each device, and no file of ours for a disk."""

import json
from dataclasses import replace
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from microvm.hypervisors import hypervisor, limits
from microvm.hypervisors.features import Feature
from microvm.hypervisors.room import Room
from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import Device, Interface, PcieRootPort, QemuDeviceOptions, Volume, Vsock
from microvm.model.options import FirecrackerOptions, QemuOptions
from microvm.projects import rules
from planned import LAYER, SYSTEM, facts, plan

LAYERS = tuple(replace(LAYER, name=f"{n}", uuid=f"{n}") for n in range(limits.LAYERS))
TAP = Interface(type="tap", id="t0")
MMIO = (1, 12)
"""The last firecracker whose devices have no PCI."""
ROOM = {
    "q35": 30,
    "microvm": 24,
    "cloud-hypervisor": 31,
    "crosvm": 31,
    "firecracker": 31,
    "mmio": 17,
}
"""Devices that a guest can have: QEMU 7.2 and 10.0 refuse one more; the others by their sources."""


def asking(kind, volumes, where, plain):
    """Return a declaration with volumes, and unless plain with all that takes a slot by itself."""
    machine = where if kind == "qemu" else None
    declared = MicroVM(
        hypervisor=kind, qemu=QemuOptions(machine=machine),
        volumes=tuple(Volume(image=f"{n}.img", size=1) for n in range(volumes)),
    )  # fmt: skip
    if plain:
        return declared
    declared = replace(
        declared, interfaces=(TAP,), balloon=True, vsock=Vsock(cid=7), credential_files={"a": "b"}
    )
    if where not in ("microvm", "mmio") and hypervisor(kind).support(Feature.HOTPLUG).available:
        declared = replace(declared, hotplug_mem=128)
    if where == "q35":
        ports = QemuOptions(machine=machine, pcie_root_ports=(PcieRootPort(id="p"),))
        usb = Device(bus="usb", path="vendorid=0x1,productid=0x2")
        declared = replace(declared, devices=(usb,), qemu=ports)
    return declared


def values(argv, option):
    """Return how many values an option of cloud-hypervisor has."""
    if option not in argv:
        return 0
    return len([*takewhile(lambda word: word[:2] != "--", argv[argv.index(option) + 1 :])])


def taken(kind, planned):
    """Return where a plan's devices are, and how many slots they take."""
    argv = planned.argv
    if kind == "qemu":
        devices = [word.partition(",")[0] for option, word in pairwise(argv) if option == "-device"]
        machine = argv[argv.index("-machine") + 1].partition(",")[0]
        others = ("pcie-root-port", "qemu-xhci")
        return machine, sum(d in others or d.endswith(("-pci", "-device")) for d in devices)
    if kind == "firecracker":
        config = json.loads(planned.files["firecracker.json"])
        single = ("entropy", "balloon", "vsock", "memory-hotplug")
        found = len(config["drives"]) + len(config["network-interfaces"])
        where = kind if "--enable-pci" in argv else "mmio"
        return where, found + sum(key in config for key in single)
    randomness = 1
    if kind == "crosvm":
        options = ("--block", "--net", "--serial", "--vsock", "--balloon-page-reporting")
        return kind, randomness + sum(word in options for word in argv)
    options = ("--disk", "--net", "--balloon", "--vsock")
    memory = "hotplug_method" in argv[argv.index("--memory") + 1]
    return kind, randomness + memory + sum(values(argv, option) for option in options)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("qemu", None), ("qemu", "q35"), ("qemu", "microvm"), ("cloud-hypervisor", None),
        ("crosvm", None), ("firecracker", None), ("firecracker", "mmio"),
    ],
)  # fmt: skip
def test_as_many_volumes_as_the_check_lets_through_have_room(kind, where, plain):
    version = MMIO if where == "mmio" else ()
    known = facts(kind, *version, job=True)
    backend, found = hypervisor(kind), {}
    for volumes in range(1, 32):
        declared = asking(kind, volumes, where, plain)
        if backend.check(declared, known) == []:
            at, found[volumes] = taken(kind, plan(declared, known, replace(SYSTEM, layers=LAYERS)))
            assert found[volumes] <= ROOM[at], f"{volumes} volumes"
    assert found[max(found)] >= ROOM[at] - 2, "some that would have had room are refused"


@pytest.mark.parametrize(("bus", "more"), [(None, 1), ("pcie.0", 1), ("q", 0)])
def test_what_is_on_the_root_bus_takes_a_slot_of_it(bus, more):
    ports = (PcieRootPort(id="q"), PcieRootPort(id="p", bus=bus))
    device = Device(bus="pci", path="0000:01:00.0", qemu=QemuDeviceOptions(bus=bus))
    one = MicroVM(qemu=QemuOptions(pcie_root_ports=ports[:1]))
    both = replace(one, qemu=QemuOptions(pcie_root_ports=ports), devices=(device,))
    used = [hypervisor("qemu").used(Room.DEVICES, each)[0] for each in (one, both)]
    assert used[1] - used[0] == 2 * more


@pytest.mark.parametrize("kind", HypervisorKind)
def test_no_volume_has_the_name_of_a_file_that_a_plan_writes(kind):
    declared = replace(
        asking(kind.value, 1, None, False), firecracker=FirecrackerOptions(cpu={"a": 1})
    )
    found = plan(declared, facts(kind, job=True, watched=True, vhost_vsock=True))
    own = [*found.files, *found.directories, *found.sockets, *found.locks]
    own += [name for name in (found.log, found.credentials and found.credentials.image) if name]
    for name in own:
        taken = replace(declared, volumes=(Volume(image=name, size=1),))
        problems = rules.check_all({"vm": taken}, Path("/nosuch"))
        assert "microvms.vm.volumes.0.image" in [problem.where for problem in problems], name
