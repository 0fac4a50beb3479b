"""An option is honoured or refused, never ignored: every one of the model is tried on every
hypervisor. A refusal counts when it names the option.
"""

from dataclasses import replace

import pytest

from microvm.guests.debian import resolve
from microvm.hypervisors import hypervisor
from microvm.hypervisors.features import Feature, wanted
from microvm.model.codec import to_plain
from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import (
    Device,
    Interface,
    MacvtapOptions,
    PcieRootPort,
    Share,
    Volume,
)  # fmt: skip
from microvm.model.options import QemuOptions
from microvm.model.system import DebianSystem, File, Repository, Unit, User
from microvm.projects import keypath
from microvm.projects.validation import validate
from varying import (
    FORWARD,
    SHARE,
    changed,
    leaves,
    numberless,
    of_another,
    outcome,
    refusals,
    resolved,
    said,
    sample,
)

USER, TAP = Interface(type="user", id="n0"), Interface(type="tap", id="t0")
MACVTAP = Interface(type="macvtap", id="m0", macvtap=MacvtapOptions(link="eth0"))
RAW = Volume(image="v.img", size=300, mount_point="/v")  # as much as xfs asks for
QCOW2 = Volume(image="q.img", auto_create=False, image_type="qcow2")
VHD = Volume(image="w.vhd", auto_create=False, image_type="vhd")
PCI = Device(bus="pci", path="0000:00:02.0")
USB = Device(bus="usb", path="vendorid=0x1,productid=0x2")
FULL = MicroVM(
    system=DebianSystem(
        users={"bob": User()}, files={"/a": File(text="a")}, units={"a.service": Unit(text="a")},
        repositories=(Repository(url="http://localhost/r"),), mirror="http://localhost/debian",
    ),
    balloon=True,
    volumes=(RAW,),
    shares=(
        SHARE,
        Share(tag="n", source=".", mount_point="/n", proto="9p"),
    ),
    interfaces=(USER, TAP),
    forward_ports=(FORWARD,),
)  # fmt: skip
MORE = {
    "qemu": {
        "interfaces": (USER, TAP, MACVTAP), "volumes": (RAW, QCOW2, VHD), "devices": (PCI, USB),
        "qemu": QemuOptions(pcie_root_ports=(PcieRootPort(id="port0"),)),
    },
    "cloud-hypervisor": {
        "interfaces": (TAP, MACVTAP), "volumes": (RAW, QCOW2, VHD), "devices": (PCI,),
        "machine_id": "1" * 32,
    },
    "crosvm": {"interfaces": (TAP, MACVTAP), "volumes": (RAW, QCOW2), "devices": (PCI,)},
    "kvmtool": {"interfaces": (USER, TAP, MACVTAP), "devices": (PCI,)},
}  # fmt: skip
"""What a hypervisor can do beyond what all can."""

NEEDS = {
    "graphics.backend": {"graphics.enable": True}, "graphics.socket": {"graphics.enable": True},
    "graphics.vulkan": {"graphics.enable": True}, "graphics.hostmem": {"graphics.enable": True},
    # qemu serves either the layers over 9p or shares.
    "store_proto": {"store_on_disk": False, "shares": ()},
    "store_disk_squashfs_flags": {"store_disk_type": "squashfs"},
    "hotplugged_mem": {"hotplug_mem": 128}, "system.network": {"system.run": ("true",)},
    # A machine that needs PCI is a q35 by itself.
    "qemu.machine": {"shares": (), "devices": (), "qemu.pcie_root_ports": ()},
    "vsock.ssh.enable": {"vsock.cid": 9},
    "system.files.'/a'.source": {".text": None, ".source": "another"},
    "system.units.'a.service'.mask": {".text": None},
    "volumes.0.image_type": {".auto_create": False, ".size": None},
    "interfaces": {"forward_ports": ()}, "interfaces.N.type": {"forward_ports": ()},
    # What this hypervisor has and the other one lacks would be refused, each at its own key.
    "hypervisor": {
        "volumes": (), "shares": (), "interfaces": (), "forward_ports": (), "devices": (),
    },
}  # fmt: skip
"""What else the base says where an option means something only then; `.x` is beside the option."""

TOGETHER = {
    "interfaces.N.type": {".macvtap": None},
    "devices.0.bus": {".path": "vendorid=0x3,productid=0x4"}, "devices.1.bus": {".path": "0000:00:03.0"},
}  # fmt: skip
"""What changes with an option, because no other value goes with the rest as it is."""

ANY = frozenset(HypervisorKind)
LACKING = (
    ("graphics.", Feature.GRAPHICS, ANY),  # no hypervisor has it yet
    ("virtiofsd.", Feature.SHARE_VIRTIOFS, {"firecracker", "kvmtool"}),
    ("store_proto", Feature.ROOT_SHARED, {"firecracker", "kvmtool"}),
    ("hotplugged_mem", Feature.HOTPLUG, {"crosvm", "kvmtool"}),
)
"""Options whose base is refused: they belong to a feature that these hypervisors lack."""

OF_VIRTIOFS = ("socket", "cache", "posix_acl", "uid_map", "gid_map", "extra_args")
ELSEWHERE = {
    # A rule of several options together says at `proto` that it is the wrong one for them.
    **dict.fromkeys((f"shares.N.{name}" for name in OF_VIRTIOFS), "shares.N.proto"),
    "devices.N.bus": "devices.N",  # the feature's key: the device as a whole can't be passed on
}  # fmt: skip
"""Options that are refused at another key than their own, or one below it."""

RULED_OUT = (
    ("shares.N.security_model", {"cloud-hypervisor", "crosvm"}),  # an option of 9p
    *((f"shares.N.{name}", {"kvmtool"}) for name in OF_VIRTIOFS),  # which it has not
    ("interfaces.N.macvtap", {"firecracker"}),  # goes with type macvtap, which it has not
)
"""Options that no sample shows at work there: a rule refuses them, and no row of features."""

TOLD = {
    "accel", "cpu", "vcpu", "mem", "hugepage_mem", "hotplug_mem", "hotplugged_mem", "balloon",
    "initial_balloon_mem", "deflate_on_oom", "socket", "user", "initrd_path", "store_on_disk",
    "store_proto", "machine_id", "vsock.cid", "volumes.N.image", "volumes.N.read_only",
    "volumes.N.direct", "volumes.N.serial", "volumes.N.image_type", "shares.N.tag",
    "shares.N.source", "shares.N.proto", "shares.N.read_only",
    "interfaces.N.mac", "interfaces.N.tap.vhost", "devices.N.path",
}  # fmt: skip
"""Options that change more than what is done before and in the guest: the VMM is told them."""

FETCHED = (
    "system.release", "system.mirror", "system.security_mirror", "system.updates",
    "system.components", "system.repositories", "system.packages", "system.kernel",
)  # fmt: skip
"""Options that change what is asked of package repositories."""

UNTOLD = {("crosvm", "image_type")}  # it looks at the image; the launcher refuses another one


def ground(kind):
    """Return a declaration with everything that the hypervisor can have several of."""
    declared = replace(FULL, hypervisor=kind.value)
    refused = {
        where.split(".")[0] + "." + where.split(".")[1]
        for feature, places in wanted(declared).items()
        for where in places
        if "." in where and not hypervisor(kind).support(feature).available
    }
    system = replace(declared.system, kernel=None if kind in ("qemu", "kvmtool") else "cloud")
    kept = {
        key: tuple(
            item for index, item in enumerate(getattr(declared, key))
            if f"{key}.{index}" not in refused
        )
        for key in ("volumes", "shares", "interfaces", "forward_ports")
    }  # fmt: skip
    return replace(declared, system=system, **{**kept, **MORE.get(kind, {})})


def tried(*, others):
    """Return parameters: each option on each hypervisor; `others`: those that it passes over."""
    return pytest.mark.parametrize(
        ("kind", "path"),
        [
            (kind, path)
            for kind in HypervisorKind
            for path in leaves(ground(kind))
            if of_another(kind, path) == others
        ],
        ids=lambda value: (
            value.value if isinstance(value, HypervisorKind) else ".".join(map(str, value))
        ),
    )


def with_all(value, path, table):
    """Return the declaration with all that a table like NEEDS says for a path."""
    for key, new in (said(table, path) or {}).items():
        at = (*path[:-1], key[1:]) if key.startswith(".") else tuple(key.split("."))
        value = changed(value, at, lambda _, new=new: new)
    return value


def varied(kind, path):
    """Return a declaration and one that differs from it in an option; both are well-formed."""
    base = with_all(ground(kind), path, NEEDS)
    if path[0] == "virtiofsd" and not base.uses("virtiofs"):
        base = replace(base, shares=FULL.shares[:1])
    asking = changed(base, path, sample(path))
    if path == ("deflate_on_oom",):
        # None leaves it to the hypervisor: one of the two is what it does anyhow.
        asking = replace(base, deflate_on_oom=kind == "kvmtool")
    asking = with_all(asking, path, TOGETHER)
    assert asking != base, f"SAMPLES has no other value for {path}"
    for each in (base, asking):
        assert validate(to_plain(each), "vm")[1] == []
    return base, asking


def told(vm, project):
    """What the VMM and its helpers are told, less the kernel's command line."""
    planned = outcome(vm, project)[0]
    words = [word for word in planned.argv if "panic=" not in word]
    files = [line for text in planned.files.values() for line in text.splitlines()]
    return words, [line for line in files if "panic=" not in line], planned.helpers


def names(where, path):
    """Whether a refusal is of an option: at its key, below it, or where ELSEWHERE has it."""
    key = keypath.join(path)
    elsewhere = ELSEWHERE.get(numberless(key))
    return where == key or where.startswith(f"{key}.") or numberless(where) == elsewhere


def lacking(kind, path):
    """Return the feature that an option belongs to where the hypervisor lacks it, or None."""
    key = keypath.join(path)
    found = (f for start, f, kinds in LACKING if key.startswith(start) and kind in kinds)
    return next(found, None) if key != "graphics.enable" else None


@pytest.mark.parametrize("kind", HypervisorKind)
def test_the_declaration_that_is_varied_is_one_that_runs(kind, project):
    assert refusals(ground(kind), project) == set()


@tried(others=False)
def test_every_option_changes_something_or_is_refused_by_its_name(kind, path, project):
    base, asking = varied(kind, path)
    before, after = refusals(base, project), refusals(asking, project)
    if feature := lacking(kind, path):
        assert not hypervisor(kind).support(feature).available
        assert before == set(wanted(base)[feature]), "refused for what it belongs to, and no more"
        assert before <= after
        return
    assert before == set(), "a base that is refused hides what the option does"
    if not after:
        assert outcome(asking, project) != outcome(base, project)
        if numberless(keypath.join(path)) in TOLD and (kind, path[-1]) not in UNTOLD:
            assert told(asking, project) != told(base, project), "the VMM has to know it"
        fetched = resolved(asking, project) != resolved(base, project)
        assert fetched or not keypath.join(path).startswith(FETCHED), "apt has to know it"
        if fetched:
            again = resolve.request(asking, (), project), resolve.request(base, (), project)
            assert again[0] != again[1], "an old lock would still answer it"
        return
    assert any(names(where, path) for where in after), f"refused for something else: {after}"


def verdict(kind, path, project):
    """Return `taken`, `lacking` for what a row of features refuses, `ruled` for other refusals."""
    _, asking = varied(kind, path)
    after = refusals(asking, project)
    rows = wanted(asking).items()
    lacks = {
        where for feature, places in rows if not hypervisor(kind).support(feature).available
        for where in places
    }  # fmt: skip
    return ("lacking" if after & lacks else "ruled") if after else "taken"


@pytest.mark.parametrize("kind", HypervisorKind)
def test_what_no_sample_shows_at_work_is_listed_with_a_reason(kind, project):
    found = {}
    for path in leaves(ground(kind)):
        if not of_another(kind, path):
            key = numberless(keypath.join(path))
            found.setdefault(key, set()).add(verdict(kind, path, project))
    taken = [key for key, verdicts in found.items() if "taken" in verdicts]
    ruled = {
        key for key, verdicts in found.items()
        if verdicts == {"ruled"} and not any(each.startswith(f"{key}.") for each in taken)
    }  # fmt: skip
    assert ruled == {key for key, kinds in RULED_OUT if kind in kinds}


@tried(others=True)
def test_tables_of_other_hypervisors_are_passed_over_whole(kind, path, project):
    base, asking = varied(kind, path)
    assert refusals(asking, project) == set()
    assert outcome(asking, project) == outcome(base, project)
