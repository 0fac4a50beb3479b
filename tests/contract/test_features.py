"""What a hypervisor says that it can: every feature, asked for by itself, is planned or refused with
what to do instead; and versions decide.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from microvm.errors import SpecError
from microvm.hypervisors import able, hypervisor
from microvm.hypervisors.features import Feature, wanted
from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import (
    Device,
    Endpoint,
    ForwardPort,
    Graphics,
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
from microvm.model.options import CloudHypervisorOptions, QemuOptions
from microvm.model.system import DebianSystem
from planned import facts, plan

TAP = Interface(type="tap", id="t0")
USER = Interface(type="user", id="n")
SHARE = Share(tag="s", source="s", mount_point="/s")
NINE = replace(SHARE, proto="9p")
REMAPPED = ForwardPort(host=Endpoint(port=1), guest=Endpoint(port=2), origin="guest")
FORWARDING = {
    "interfaces": (Interface(type="user", id="n"),),
    "forward_ports": (ForwardPort(host=Endpoint(port=9), guest=Endpoint(port=9)),),
}
ASKING: dict[Feature, tuple[dict, dict]] = {
    Feature.ACCEL_TCG: ({}, {"accel": "tcg"}),
    Feature.CPU_MODEL: ({}, {"cpu": "Haswell"}),
    Feature.HUGE_PAGES: ({}, {"hugepage_mem": True}),
    Feature.HOTPLUG: ({}, {"hotplug_mem": 256}),
    Feature.HOTPLUGGED: ({"hotplug_mem": 256}, {"hotplugged_mem": 128}),
    Feature.BALLOON: ({}, {"balloon": True}),
    Feature.INITIAL_BALLOON: ({"balloon": True}, {"initial_balloon_mem": 64}),
    Feature.BALLOON_GIVES: ({}, {"balloon": True, "deflate_on_oom": True}),
    Feature.BALLOON_KEEPS: ({}, {"balloon": True, "deflate_on_oom": False}),
    Feature.HUGE_BALLOON: ({"hugepage_mem": True}, {"balloon": True}),
    Feature.SOCKET: ({}, {"socket": "vmm.sock"}),
    Feature.USER: ({}, {"user": "nobody"}),
    Feature.SERIAL: ({}, {"volumes": (Volume(image="v", size=1, serial="S"),)}),
    Feature.DIRECT: ({}, {"volumes": (Volume(image="v", size=1, direct=True),)}),
    Feature.QCOW2: ({}, {"volumes": (Volume(image="v", size=1, image_type="qcow2"),)}),
    Feature.QCOW2_DIRECT: (
        {"volumes": (Volume(image="v", size=1, image_type="qcow2"),)},
        {"volumes": (Volume(image="v", size=1, image_type="qcow2", direct=True),)},
    ),
    Feature.VHD: ({}, {"volumes": (Volume(image="v", size=1, image_type="vhdx"),)}),
    Feature.SHARE_9P: ({}, {"shares": (NINE,)}),
    Feature.READ_ONLY_9P: ({"shares": (NINE,)}, {"shares": (replace(NINE, read_only=True),)}),
    Feature.MAPPED_9P: (
        {"shares": (NINE,)},
        {"shares": (replace(NINE, security_model="mapped"),)},
    ),
    Feature.SHARE_VIRTIOFS: ({}, {"shares": (SHARE,)}),
    Feature.DAX: (
        {"shares": (SHARE,)},
        {"shares": (Share(tag="s", source="s", mount_point="/s", dax=True),)},
    ),
    Feature.ROOT_SHARED: ({}, {"store_on_disk": False}),
    Feature.ROOT_9P: ({"store_on_disk": False}, {"store_proto": "9p"}),
    Feature.NET_USER: ({}, {"interfaces": (USER,)}),
    Feature.NET_USER_MORE: ({"interfaces": (USER,)}, {"interfaces": (USER, replace(USER, id="o"))}),
    Feature.NET_TAP: ({}, {"interfaces": (TAP,)}),
    Feature.NET_MACVTAP: (
        {},
        {"interfaces": (Interface(type="macvtap", id="m", macvtap=MacvtapOptions(link="e")),)},
    ),
    Feature.NET_BRIDGE: ({}, {"interfaces": (Interface(type="bridge", id="b", bridge="br0"),)}),
    Feature.VHOST: (
        {"interfaces": (TAP,)},
        {"interfaces": (Interface(type="tap", id="t0", tap=TapOptions(vhost=True)),)},
    ),
    Feature.FORWARD: (
        {"interfaces": (Interface(type="user", id="n"),)},
        {"forward_ports": (ForwardPort(host=Endpoint(port=1), guest=Endpoint(port=2)),)},
    ),
    Feature.PCI: ({}, {"devices": (Device(bus="pci", path="0000:01:00.0"),)}),
    Feature.USB: ({}, {"devices": (Device(bus="usb", path="vendorid=0x1,productid=0x2"),)}),
    Feature.VSOCK: ({}, {"vsock": Vsock(cid=7)}),
    Feature.GRAPHICS: ({}, {"graphics": Graphics(enable=True)}),
    Feature.MACHINED: ({}, {"register_with_machined": True}),
    Feature.CREDENTIALS: ({}, {"credential_files": {"a": "b"}}),
    Feature.ROOT_PORTS: ({}, {"qemu": QemuOptions(pcie_root_ports=(PcieRootPort(id="p"),))}),
    Feature.FORWARD_REMAPPED: (FORWARDING, {"forward_ports": (REMAPPED,)}),
    Feature.FORWARD_REMAPPED_UDP: (
        FORWARDING,
        {"forward_ports": (replace(REMAPPED, proto="udp"),)},
    ),
    Feature.FORWARD_IPV6: (
        FORWARDING,
        {
            "forward_ports": (
                ForwardPort(host=Endpoint(port=9, address="::1"), guest=Endpoint(port=9)),
            )
        },
    ),
}


def named(hint):
    """Return the hypervisors that a hint names."""
    return [o for o in HypervisorKind if re.search(rf"(?<![\w.`-]){o}(?![\w.-])", hint)]


def test_every_feature_is_asked_for_here():
    assert set(ASKING) == set(Feature)


@pytest.mark.parametrize("feature", Feature)
@pytest.mark.parametrize("kind", HypervisorKind)
def test_a_feature_is_planned_or_refused_with_what_to_do(kind, feature):
    first, more = ASKING[feature]
    without = MicroVM(hypervisor=kind.value, **first)
    asking = MicroVM(hypervisor=kind.value, **{**first, **more})
    if feature is Feature.ROOT_PORTS and kind != "qemu":
        assert wanted(asking) == wanted(without)  # qemu's options say nothing elsewhere
        return
    new = wanted(asking).keys() - wanted(without).keys()
    assert feature in new
    accelerator = Accelerator(kind="tcg" if feature is Feature.ACCEL_TCG else "kvm", reason="")
    backend, known = hypervisor(kind), facts(kind, accelerator=accelerator)
    problems = {problem.where: problem for problem in backend.check(asking, known)}
    row = backend.support(feature)
    if row.available:
        others = {
            where for other in wanted(asking) if other is not feature
            for where in wanted(asking)[other] if not backend.support(other).available
        }  # fmt: skip
        assert problems.keys() == others
        if not problems:
            assert plan(asking, known) != plan(without, facts(kind))
        return
    for where in wanted(asking)[feature]:
        assert kind.value in problems[where].message
        assert problems[where].hint, f"{kind.value} has nothing to say instead of {feature.value}"


OLD = [
    ("firecracker", (1, 7, 0), {}, "hypervisor", "needs firecracker 1.8, this is 1.7.0"),
    ("firecracker", (1, 10, 1), {"hugepage_mem": True}, "hugepage_mem", "1.11, this is 1.10.1"),
    ("firecracker", (1, 13), {"hotplug_mem": 128}, "hotplug_mem", "1.14, this is 1.13"),
    (
        "firecracker", (1, 13), {"hugepage_mem": True, "balloon": True}, "hugepage_mem",
        "huge pages and a balloon",
    ),
    (
        "firecracker", (1, 12), {"volumes": tuple(Volume(image=f"{n}", size=1) for n in range(12))},
        "volumes", "19 devices, 7 of them our own; firecracker takes 17; 1.13 takes more",
    ),
    ("cloud-hypervisor", (47, 0), {"vcpu": 255}, "vcpu", "cloud-hypervisor takes 254; 48 takes more"),
    ("cloud-hypervisor", (39, 0), {}, "hypervisor", "needs cloud-hypervisor 40, this is 39.0"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "version", "fields", "where", "words"), OLD)
def test_a_version_that_lacks_it_is_named_and_a_later_one_is_not(
    kind, version, fields, where, words
):
    declared = MicroVM(hypervisor=kind, **fields)
    backend = hypervisor(kind)
    [problem] = backend.check(declared, facts(kind, *version))
    assert problem.where == where
    assert words in problem.message
    assert problem.hint
    assert backend.check(declared, facts(kind, 99, 0)) == []
    assert backend.check(declared) == [], "without facts nothing is known of versions"


@pytest.mark.parametrize("kind", HypervisorKind)
def test_a_program_that_tells_no_version_counts_as_a_later_one(kind):
    known = facts(kind)
    program = Program(path="/usr/bin/vmm", version=())
    known = facts(kind, programs={**known.programs, hypervisor(kind).program: program})
    declared = MicroVM(hypervisor=kind.value, balloon=True)
    assert hypervisor(kind).check(declared, known) == []
    assert plan(declared, known).argv


GPU, PEN = "0000:01:00.0", "vendorid=0x1,productid=0x2"


def on_bus(path, bus):
    kind = "usb" if "=" in path else "pci"
    return Device(bus=kind, path=path, qemu=QemuDeviceOptions(bus=bus))


LIMITS = [
    ("firecracker", {"vcpu": 33}, "vcpu"),
    ("firecracker", {"hotplug_mem": 100}, "hotplug_mem"),
    ("cloud-hypervisor", {"hotplug_mem": 130}, "hotplug_mem"),
    ("qemu", {"hotplug_mem": 130}, "hotplug_mem"),
    ("qemu", {"devices": (Device(bus="pci", path="vendorid=0x1"),)}, "devices.0.path"),
    ("qemu", {"devices": (Device(bus="usb", path="0000:00:01.0"),)}, "devices.0.path"),
    ("qemu", {"devices": (Device(bus="usb", path="vendor=0x1"),)}, "devices.0.path"),
    (
        "qemu",
        {"devices": (Device(bus="usb", path="hostbus=1"),), "system": DebianSystem(kernel="cloud")},
        "system.kernel",
    ),
    *(
        ("qemu", {"qemu": QemuOptions(pcie_root_ports=ports)}, f"qemu.pcie_root_ports.{where}")
        for where, ports in (
            ("1.id", (PcieRootPort(id="p"), PcieRootPort(id="p"))),
            ("0.id", (PcieRootPort(id="usb"),)),
            ("1.chassis", (PcieRootPort(id="p", chassis=3), PcieRootPort(id="q", chassis=3))),
        )
    ),
    ("qemu", {"hotplug_mem": 128, "qemu": QemuOptions(machine="microvm")}, "qemu.machine"),
    *(
        (kind, {"devices": (Device(bus="pci", path="vendorid=0x1"),)}, "devices.0.path")
        for kind in ("cloud-hypervisor", "crosvm", "kvmtool")
    ),
    *(
        ("qemu", {"devices": (Device(bus="usb", path=path),)}, "devices.0.path")
        for path in ("vendorid=0x12345", "productid=hello", "hostbus=1,hostport=a", "hostaddr=0x1")
    ),
    (
        "qemu",
        {"devices": (Device(bus="usb", path="hostbus=1", qemu=QemuDeviceOptions(id="9x")),)},
        "devices.0.qemu.id",
    ),
    (
        "qemu",
        {"qemu": QemuOptions(pcie_root_ports=(PcieRootPort(id="p", addr="zz"),))},
        "qemu.pcie_root_ports.0.addr",
    ),
    *(
        (
            "qemu",
            {"devices": (on_bus(path, bus),), "qemu": QemuOptions(**more)},
            "devices.0.qemu.bus",
        )
        for path, bus, more in (
            (GPU, "port0", {}),
            (GPU, "pcie.1", {}),
            (GPU, "usb.0", {}),
            (GPU, "port0.0", {"pcie_root_ports": (PcieRootPort(id="port0"),)}),
            (GPU, "x", {"extra_args": ("-device", "pxb-pcie,id=x,bus_nr=20")}),
            (PEN, "pcie.0", {}),
            (PEN, "usb", {}),
            (PEN, "usb-bus.0", {}),
        )
    ),
    *(
        ("qemu", {"qemu": QemuOptions(pcie_root_ports=ports)}, f"qemu.pcie_root_ports.{where}.bus")
        for where, ports in (
            (0, (PcieRootPort(id="p", bus="pci.0"),)),
            (0, (PcieRootPort(id="p", bus="p"),)),
            (0, (PcieRootPort(id="p", bus="q"), PcieRootPort(id="q"))),  # made before q is
        )
    ),
    ("qemu", {"interfaces": (Interface(type="user", id="0n"),)}, "interfaces.0.id"),
    ("qemu", {"credential_files": {"a" * 29: "x"}}, f"credential_files.{'a' * 29}"),
    ("crosvm", {"vcpu": 255}, "vcpu"),
    ("kvmtool", {"volumes": (Volume(image="scsi:x", size=1),)}, "volumes.0.image"),
    *(
        (
            kind,
            {"interfaces": tuple(Interface(type="tap", id=f"t{n}") for n in range(30))},
            "interfaces",
        )
        for kind in ("qemu", "cloud-hypervisor", "firecracker", "crosvm")
    ),
    ("kvmtool", {"volumes": tuple(Volume(image=f"{n}", size=1) for n in range(4))}, "volumes"),
    (
        "kvmtool",
        {"volumes": (Volume(image="v", size=1),) * 3, "credential_files": {"a": "b"}},
        "volumes",
    ),
    ("kvmtool", {"interfaces": (TAP,) * 30}, "interfaces"),
    ("cloud-hypervisor", {"hotplug_mem": 128, "hotplugged_mem": 3}, "hotplugged_mem"),
    *(
        (kind, {"volumes": tuple(Volume(image=f"{n}", size=1) for n in range(25))}, "volumes")
        for kind in ("cloud-hypervisor", "firecracker", "crosvm", "qemu")
    ),
    *(
        (
            "cloud-hypervisor",
            {"cloud_hypervisor": CloudHypervisorOptions(platform_oem_strings=("fine", text))},
            "cloud_hypervisor.platform_oem_strings.1",
        )
        for text in ("a,b", "[a", 'a"b')
    ),
]


@pytest.mark.parametrize(("kind", "fields", "where"), LIMITS)
def test_what_there_is_no_room_for_is_refused(kind, fields, where):
    [problem] = hypervisor(kind).check(MicroVM(hypervisor=kind, **fields))
    assert problem.where == where
    assert problem.hint


ROOMY = [
    ({"vcpu": 33}, {"qemu", "cloud-hypervisor", "crosvm", "kvmtool"}),
    ({"vcpu": 255}, {"qemu", "cloud-hypervisor", "kvmtool"}),
    ({"volumes": (Volume(image="v", size=1),) * 4}, set(HypervisorKind) - {"kvmtool"}),
    ({"volumes": (Volume(image="v", size=1),) * 23}, set(HypervisorKind) - {"kvmtool"}),
    ({"volumes": (Volume(image="v", size=1),) * 24}, {"cloud-hypervisor", "firecracker"}),
    ({"interfaces": (TAP,) * 24}, {"cloud-hypervisor", "firecracker", "kvmtool"}),
    ({"interfaces": (TAP,) * 29}, {"kvmtool"}),
    ({"interfaces": (TAP,) * 30}, set()),
]


@pytest.mark.parametrize(("fields", "able"), ROOMY)
@pytest.mark.parametrize("kind", HypervisorKind)
def test_those_that_take_as_many_are_named_and_do(kind, fields, able):
    found = hypervisor(kind).check(MicroVM(hypervisor=kind.value, **fields), facts(kind))
    assert bool(found) == (kind not in able)
    for problem in found:
        assert set(named(problem.hint)) == able


@pytest.mark.parametrize(
    ("path", "bus", "more"),
    [
        (GPU, "pcie.0", {}),
        (GPU, "p", {"pcie_root_ports": (PcieRootPort(id="p"),)}),
        (GPU, "q", {"pcie_root_ports": (PcieRootPort(id="p"), PcieRootPort(id="q", bus="p"))}),
        (GPU, "/q35-pcihost/pcie.0", {}),
        (PEN, "usb.0", {}),
        (PEN, "usb-bus.0", {"machine_opts": {"usb": "on"}}),
    ],
)
def test_a_bus_that_is_there_is_taken(path, bus, more):
    declared = MicroVM(devices=(on_bus(path, bus),), qemu=QemuOptions(**more))
    assert hypervisor("qemu").check(declared, facts("qemu")) == []


def test_the_buses_that_there_are_are_told():
    ports = (PcieRootPort(id="p"), PcieRootPort(id="q"))
    more = QemuOptions(pcie_root_ports=ports, extra_args=("-device", "pxb-pcie,id=x,bus_nr=20"))
    devices = (on_bus(GPU, "r"), on_bus(GPU, "x"))
    problems = hypervisor("qemu").check(MicroVM(devices=devices, qemu=more))
    assert [problem.message for problem in problems] == [
        "there is no bus r for it", "there is no bus x for it",
    ]  # fmt: skip
    assert problems[0].hint == "say pcie.0, p or q"
    assert "`extra_args` are made later" in problems[1].hint


def test_a_machine_with_fewer_slots_is_named_for_it():
    volumes = tuple(Volume(image=f"{n}", size=1) for n in range(20))
    declared = MicroVM(volumes=volumes, qemu=QemuOptions(machine="microvm"))
    [problem] = hypervisor("qemu").check(declared, facts("qemu"))
    assert problem.message == "27 devices, 7 of them our own; qemu takes 24"
    assert "leave `qemu.machine` out" in problem.hint
    assert hypervisor("qemu").check(replace(declared, qemu=QemuOptions()), facts("qemu")) == []


@pytest.mark.parametrize(
    ("version", "image", "refused"),
    [
        ((53, 0), 'a"b.img', True),
        ((53, 0), "a[b.img", False),
        ((47, 0), "a[b.img", True),
        ((47, 0), "a,b.img", False),
    ],
)
def test_a_name_that_cloud_hypervisor_can_not_be_told_is_refused(version, image, refused):
    declared = MicroVM(hypervisor="cloud-hypervisor", volumes=(Volume(image=image, size=1),))
    known = facts("cloud-hypervisor", *version)
    if refused:
        with pytest.raises(SpecError) as raised:
            plan(declared, known)
        assert [problem.where for problem in raised.value.problems] == ["volumes.0.image"]
    else:
        assert f'path="{image}",' in " ".join(plan(declared, known).argv)


@pytest.mark.parametrize(
    ("kind", "version", "guesses"),
    [
        ("qemu", (10, 0), False), ("firecracker", (1, 16), False), ("crosvm", (), True),
        ("kvmtool", (3, 18), True), ("cloud-hypervisor", (50, 0), True),
        ("cloud-hypervisor", (53, 0), False),
    ],
)  # fmt: skip
def test_images_are_looked_at_where_a_hypervisor_guesses_their_format(kind, version, guesses):
    declared = MicroVM(hypervisor=kind, volumes=(Volume(image="v", size=1),))
    known = facts(kind)
    program = Program(path="/usr/bin/vmm", version=version)
    known = replace(known, programs={**known.programs, hypervisor(kind).program: program})
    [volume] = plan(declared, known).volumes
    assert volume.guessed == guesses


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhd", "vhdx"])
def test_cloud_hypervisor_does_not_warn_that_an_image_can_not_discard(kind):
    volume = Volume(image="v", auto_create=False, image_type=kind)
    declared = MicroVM(hypervisor="cloud-hypervisor", volumes=(volume,))
    [disk] = [word for word in plan(declared, facts("cloud-hypervisor")).argv if "path=v," in word]
    assert ("sparse=off" in disk) == (kind in ("vhd", "vhdx"))


def test_all_names_that_cloud_hypervisor_can_not_be_told_are_told_at_once():
    declared = MicroVM(
        hypervisor="cloud-hypervisor", socket='a"b',
        volumes=(Volume(image='a"[', size=1), Volume(image="a[b", size=1)),
    )  # fmt: skip
    backend = hypervisor("cloud-hypervisor")
    places = ["socket", "volumes.0.image"]
    assert [problem.where for problem in backend.check(declared)] == places
    known = facts("cloud-hypervisor", 47, 0)
    old = [problem.where for problem in backend.check(declared, known)]
    assert old == [*places, "volumes.1.image"]


def test_kvmtool_is_not_sent_to_a_directory_that_it_can_not_be_told():
    share = Share(tag="s", source="s", mount_point="/s", proto="9p")
    known = facts("kvmtool", store_dir="/a,b", project_dir="/c,d")
    found = hypervisor("kvmtool").check(MicroVM(hypervisor="kvmtool", shares=(share,)), known)
    assert [problem.where for problem in found] == ["store", "shares.0.source"]
    assert all(problem.hint for problem in found)


def test_an_emulated_cpu_is_not_the_hosts():
    known = facts("qemu", accelerator=Accelerator(kind="tcg", reason="declared"))
    [problem] = hypervisor("qemu").check(MicroVM(accel="tcg", cpu="host,pmu=off"), known)
    assert (problem.where, problem.hint) == ("cpu", "leave it out, or say max")


@pytest.mark.parametrize("kind", ["qemu", "crosvm", "kvmtool"])
def test_none_goes_on_without_the_vhost_vsock_that_was_asked_for(kind):
    declared = MicroVM(hypervisor=kind, vsock=Vsock(cid=77))
    [problem] = hypervisor(kind).check(declared, facts(kind, vhost_vsock=False))
    assert problem.where == "vsock.cid"
    assert "modprobe vhost_vsock" in problem.hint
    for other in HypervisorKind:
        without = facts(other, vhost_vsock=False)
        needs = hypervisor(other).check(replace(declared, hypervisor=other.value), without)
        assert (other in named(problem.hint)) == (not needs)
    assert hypervisor(kind).check(declared, facts(kind)) == []


@pytest.mark.parametrize("kind", ["qemu", "crosvm"])
def test_none_goes_on_without_the_vhost_net_that_was_asked_for(kind):
    taps = (TAP, Interface(type="tap", id="t1", tap=TapOptions(vhost=True)))
    known = facts(kind, vhost_net=False)
    [problem] = hypervisor(kind).check(MicroVM(hypervisor=kind, interfaces=taps), known)
    assert problem.where == "interfaces.1.tap.vhost"
    assert "modprobe vhost_net" in problem.hint


def test_only_root_can_let_the_vmm_become_another_user():
    [problem] = hypervisor("qemu").check(MicroVM(user="nobody"), facts("qemu", root=False))
    assert (problem.where, problem.message) == ("user", "only root can become nobody")


def test_a_user_in_a_namespace_of_the_launchers_can_not_become_another():
    declared = MicroVM(user="nobody", store_on_disk=False, store_proto="9p")
    [problem] = hypervisor("qemu").check(declared, None)
    assert problem.where == "user"
    assert "store_proto virtiofs" in problem.hint


@pytest.mark.parametrize("kind", HypervisorKind)
def test_a_bridge_interface_is_a_tap_that_the_launcher_puts_into_the_bridge(kind):
    found = []
    for type_ in ("tap", "bridge"):
        interface = Interface(type=type_, id="b0", bridge="br0")
        declared = MicroVM(hypervisor=kind.value, interfaces=(interface,))
        assert hypervisor(kind).check(declared, facts(kind)) == []
        found.append(plan(declared, facts(kind)))
    assert found[0] == found[1]
    assert [(tap.name, tap.bridge) for tap in found[1].taps] == [("b0", "br0")]


@pytest.mark.parametrize("feature", Feature)
def test_only_those_that_have_a_feature_are_named_for_it(feature):
    """What is said instead follows from the rows: nobody is sent to one that refuses as well."""
    for kind in HypervisorKind:
        backend = hypervisor(kind)
        if not backend.support(feature).available:
            assert named(backend.instead(feature)) == able(feature)


def test_the_page_of_what_was_seen_refuses_what_the_rows_refuse():
    """Rows change without a run of the nested suite; what it wrote must not be wrong then."""
    page = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
    head, _, *rows = page.partition("## What can be declared\n\n")[2].split("\n\n")[0].splitlines()
    kinds = [cell.split()[0] for cell in head.split("|")[2:-1]]
    told = {row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in rows}
    assert told.keys() <= {feature.value for feature in Feature}  # a new one comes with a next run
    for feature in (feature for feature in Feature if feature.value in told):
        for kind, cell in zip(kinds, told[feature.value], strict=True):
            assert (cell == "refused") != hypervisor(kind).support(feature).available, (
                kind,
                feature,
            )


@pytest.mark.parametrize("feature", Feature)
def test_those_that_are_named_instead_take_what_was_refused(feature):
    first, more = ASKING[feature]
    for name in able(feature):
        known = facts(name)
        if feature is Feature.ACCEL_TCG:
            known = replace(known, accelerator=Accelerator(kind="tcg", reason="declared"))
        declared = MicroVM(hypervisor=name, **{**first, **more})
        assert hypervisor(name).check(declared, known) == []


def test_user_interfaces_have_networks_of_their_own():
    names = ("n", "m", "o")
    declared = MicroVM(interfaces=tuple(Interface(type="user", id=name) for name in names))
    words = plan(declared, facts("qemu")).argv
    assert [word for word in words if word.startswith("user,")] == [
        "user,id=n", "user,id=m,net=10.0.3.0/24", "user,id=o,net=10.0.4.0/24",
    ]  # fmt: skip
