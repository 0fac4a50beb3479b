"""An option that means nothing without another one is refused when that one is missing: no two
declarations that differ lead to the same machine without a word.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from microvm.model.codec import to_plain
from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import (
    Device,
    Graphics,
    Interface,
    MacvtapOptions,
    PcieRootPort,
    Share,
    Volume,
    Vsock,
    VsockSsh,
)
from microvm.model.options import QemuOptions, VirtiofsdOptions
from microvm.model.system import DebianSystem, File, Repository, Unit, User
from microvm.projects import inheritance, keypath, rules
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
    sample,
)

USER = Interface(type="user", id="n0")
SHARE_9P = Share(tag="n", source=".", mount_point="/n", proto="9p")

LONE = [
    ({"initial_balloon_mem": 64}, {"balloon": True}, "initial_balloon_mem"),
    ({"hotplugged_mem": 2}, {"hotplug_mem": 128}, "hotplugged_mem"),
    ({"forward_ports": (FORWARD,)}, {"interfaces": (USER,)}, "forward_ports"),
    (
        {"vsock": Vsock(ssh=VsockSsh(enable=True))},
        {"vsock": Vsock(cid=9, ssh=VsockSsh(enable=True))}, "vsock.ssh.enable",
    ),
    *(
        ({"virtiofsd": VirtiofsdOptions(**{key: value}), "shares": (SHARE_9P,)}, needed, f"virtiofsd.{key}")
        for needed in ({"shares": (SHARE,)}, {"store_on_disk": False})
        for key, value in (("thread_pool_size", 0), ("group", "kvm"), ("extra_args", ("-x",)), ("program", "/bin/true"))
    ),
    *(
        (
            {"virtiofsd": VirtiofsdOptions(inode_file_handles=value), "store_on_disk": False},
            {"shares": (SHARE,)}, "virtiofsd.inode_file_handles",
        )
        for value in (None, "never", "mandatory")
    ),
    (
        {"system": DebianSystem(network=True)}, {"system": DebianSystem(network=True, run=("true",))},
        "system.network",
    ),
    (
        {"system": DebianSystem(updates=False, release="sid")}, {"system": DebianSystem(updates=False)},
        "system.updates",
    ),
    (
        {"system": DebianSystem(repositories=(Repository(url="http://r", suite="./", components=("x",)),))},
        {"system": DebianSystem(repositories=(Repository(url="http://r", suite="r", components=("x",)),))},
        "system.repositories.0.components",
    ),
    *(
        (
            {"volumes": (Volume(image="v", auto_create=False, image_type=kind, fs_type="xfs"),)},
            {"volumes": (Volume(image="v", auto_create=False, image_type=kind, fs_type="xfs", mount_point="/v"),)},
            "volumes.0.fs_type",
        )
        for kind in ("qcow2", "vhdx")
    ),
    *(
        (
            {"system": DebianSystem(units={"a.service": Unit(mask=True, **{key: value})})},
            {"system": DebianSystem(units={"a.service": Unit(**{key: value})})},
            f"system.units.'a.service'.{key}",
        )
        for key, value in (("text", "[Unit]"), ("dropin", "[Unit]"), ("enable", True))
    ),
    ({"deflate_on_oom": True}, {"balloon": True}, "deflate_on_oom"),
    ({"deflate_on_oom": False}, {"balloon": True}, "deflate_on_oom"),
    ({"store_proto": "9p"}, {"store_on_disk": False}, "store_proto"),
    ({"store_on_disk": False, "store_disk_type": "squashfs"}, {"store_on_disk": True}, "store_disk_type"),
    (
        {"store_on_disk": False, "store_disk_erofs_flags": ("-zlz4",)},
        {"store_on_disk": True}, "store_disk_erofs_flags",
    ),
    (
        {"store_disk_type": "squashfs", "store_disk_erofs_flags": ("-zlz4",)},
        {"store_disk_type": "erofs"}, "store_disk_erofs_flags",
    ),
    (
        {"store_disk_squashfs_flags": ("-comp", "gzip")},
        {"store_disk_type": "squashfs"}, "store_disk_squashfs_flags",
    ),
    *(
        ({"system": DebianSystem(security_mirror="http://s", **lone)}, {"system": DebianSystem(security_mirror="http://s")}, "system.security_mirror")
        for lone in ({"updates": False}, {"release": "sid"})
    ),
    (
        {"system": DebianSystem(repositories=(Repository(url="http://r", key="/etc/hostname", trusted=True),))},
        {"system": DebianSystem(repositories=(Repository(url="http://r", key="/etc/hostname"),))},
        "system.repositories.0.key",
    ),
    *(
        ({"graphics": Graphics(**{key: value})}, {"graphics": Graphics(enable=True, **{key: value})}, f"graphics.{key}")
        for key, value in (("backend", "headless"), ("socket", "x"), ("vulkan", "venus"), ("hostmem", "1G"))
    ),
]  # fmt: skip


def refused(**fields):
    found = []
    for kind in HypervisorKind:
        declared = {"vm": MicroVM(hypervisor=kind.value, **fields)}
        problems = rules.check_all(declared, Path("/nosuch"))
        assert all(problem.hint for problem in problems)
        found.append({problem.where.removeprefix("microvms.vm.") for problem in problems})
    assert all(places == found[0] for places in found), "the same on every hypervisor"
    return found[0]


@pytest.mark.parametrize(("fields", "needed", "where"), LONE)
def test_an_option_without_the_one_that_it_needs_is_refused(fields, needed, where):
    assert refused(**fields) == {where}
    assert refused(**{**fields, **needed}) == set()


@pytest.mark.parametrize(("fields", "needed", "where"), LONE)
def test_as_a_default_it_holds_for_those_that_have_what_it_needs(fields, needed, where):
    defaults = to_plain(MicroVM(**fields))
    said = to_plain(MicroVM(**needed), defaults=True)
    owns = {"with": {key: said[key] for key in needed}, "without": {}}
    tables, _ = inheritance.complete(defaults, owns, {})
    machines = {name: validate(table, name)[0] for name, table in tables.items()}
    told = {problem.where for problem in rules.check_all(machines, Path("/nosuch"))}
    if ".0." in where:  # what an item of a list lacks is beside it, whoever has the list
        assert f"microvms.without.{where}" in told
    else:
        assert told == set()
    assert inheritance.complete(defaults, {"without": {}}, {})[0] == {"without": defaults}


@pytest.mark.parametrize(
    ("volume", "made"),
    [
        ({"image": "v", "auto_create": False}, {"image": "v", "size": 10}),
        ({"image": "/dev/vg/v"}, {"image": "v", "size": 10}),
    ],
)
def test_what_a_file_system_is_made_with_is_refused_where_none_is_made(volume, made):
    asked = {"label": "data", "mkfs_extra_args": ("-v",)}
    where = {f"volumes.0.{key}" for key in asked}
    assert refused(volumes=(Volume(**volume, **asked),)) == where
    assert refused(volumes=(Volume(**made, **asked),)) == set()


MIRROR = {"mirror": "http://localhost/debian"}
PLAIN = DebianSystem(**MIRROR)


def volume(**more):
    return {"volumes": (Volume(**{"image": "v", "size": 400, **more}),)}


def system(**more):
    return {"system": DebianSystem(**MIRROR, **more)}


SPARE = {
    "nothing": {},
    "a squashfs": {"store_disk_type": "squashfs"},
    "no images, virtiofs": {"store_on_disk": False},
    "no images, 9p": {"store_on_disk": False, "store_proto": "9p"},
    "a balloon": {"balloon": True},
    "hot-plug memory": {"hotplug_mem": 256},
    "a volume": volume(mount_point="/v"),
    "a volume that is not mounted": volume(),
    "a volume for reading": volume(read_only=True),
    "the root on a volume": volume(mount_point="/"),
    "vfat": volume(mount_point="/v", fs_type="vfat"),
    "a foreign image": volume(size=None, auto_create=False, mount_point="/v"),
    "a foreign image that is not mounted": volume(size=None, auto_create=False),
    "a device": volume(size=None, image="/dev/vg/v", mount_point="/v"),
    "a device that is not mounted": volume(size=None, image="/dev/vg/v"),
    "a qcow2": volume(size=None, auto_create=False, image_type="qcow2", mount_point="/v"),
    "a qcow2 that is not mounted": volume(size=None, auto_create=False, image_type="qcow2"),
    "virtiofs": {"shares": (SHARE,)},
    "9p": {"shares": (SHARE_9P,)},
    "user networking": {"interfaces": (USER,)},
    "a tap": {"interfaces": (Interface(type="tap", id="t0"),)},
    "a bridge": {"interfaces": (Interface(type="bridge", id="t0", bridge="br0"),)},
    "a macvtap": {
        "interfaces": (Interface(type="macvtap", id="m0", macvtap=MacvtapOptions(link="eth0")),)
    },
    "a port of the host": {"interfaces": (USER,), "forward_ports": (FORWARD,)},
    "a port for the guest": {
        "interfaces": (USER,), "forward_ports": (replace(FORWARD, origin="guest"),),
    },
    "a PCI device": {"devices": (Device(bus="pci", path="0000:00:02.0"),)},
    "a USB device": {"devices": (Device(bus="usb", path="vendorid=0x1,productid=0x2"),)},
    "a root port": {"qemu": QemuOptions(pcie_root_ports=(PcieRootPort(id="p"),))},
    "a machine with PCI": {"qemu": QemuOptions(machine="q35")},
    "vsock": {"vsock": Vsock(cid=9)},
    "ssh over vsock": {"vsock": Vsock(cid=9, ssh=VsockSsh(enable=True))},
    "a credential": {"credential_files": {"a": "secret"}},
    "a release without updates": system(release="sid"),
    "no updates": system(updates=False),
    "accounts": system(users={"bob": User(), "root": User()}),
    "files": system(files={"/a": File(text="a"), "/b": File(source="one")}),
    "a tree of files": system(files={"/c": File(source="linux")}),
    "units": system(units={"a.service": Unit(text="a"), "c.service": Unit(dropin="x")}),
    "a masked unit": system(units={"b.service": Unit(mask=True)}),
    "a repository": system(repositories=(Repository(url="http://r"),)),
    "a flat repository": system(repositories=(Repository(url="http://r", suite="./"),)),
    "an unsigned repository": system(repositories=(Repository(url="http://r", trusted=True),)),
    "a key": system(repositories=(Repository(url="http://r", key="one"),)),
    "a kernel of one's own": system(kernel="linux"),
    "commands": system(run=("true",)),
}  # fmt: skip
"""Machines with little in them, so that whatever an option might need is missing in some."""

STATED = {
    "deflate_on_oom": "what the balloon does anyhow",
    "qemu.machine": "q35 where something needs PCI",
    "interfaces.N.type": "a tap with a bridge is a `bridge`",
}
"""Values that say what is so without them too: they are honoured."""


def without_effect(base, project):
    """Yield the options of a machine that can be said without a word and change nothing."""
    before = outcome(base, project)
    for path in leaves(base):
        if of_another(base.hypervisor, path):
            continue
        asking = changed(base, path, sample(path))
        well_formed = asking != base and validate(to_plain(asking), "vm")[1] == []
        if not well_formed or refusals(asking, project):
            continue
        if outcome(asking, project) == before:
            yield numberless(keypath.join(path))


@pytest.mark.parametrize("name", SPARE)
def test_an_option_that_changes_nothing_is_refused_whatever_it_lacks(name, project):
    declared = MicroVM(**{"system": PLAIN, **SPARE[name]})
    machines = [replace(declared, hypervisor=kind.value) for kind in HypervisorKind]
    runnable = [machine for machine in machines if not refusals(machine, project)]
    assert runnable
    for machine in runnable:
        assert {*without_effect(machine, project)} <= set(STATED), machine.hypervisor
