"""An option is honoured or refused, never ignored: every one of the model is tried on every
hypervisor.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from microvm.guests.debian import configuration, resolve
from microvm.hypervisors import hypervisor
from microvm.hypervisors.features import wanted
from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import (
    Device,
    Endpoint,
    ForwardPort,
    Interface,
    MacvtapOptions,
    PcieRootPort,
    Share,
    Volume,
)  # fmt: skip
from microvm.model.facts import Accelerator, Program
from microvm.model.guest import LockedLayer, SystemLock
from microvm.model.options import QemuOptions
from microvm.model.system import DebianSystem, File, Repository, Unit, User
from microvm.projects import rules
from planned import LAYER, SYSTEM, VIRTIOFSD, facts, plan

FULL = MicroVM(
    system=DebianSystem(
        users={"bob": User()}, files={"/a": File(text="a")}, units={"a.service": Unit(text="a")},
        repositories=(Repository(url="http://localhost/r"),),
    ),
    balloon=True,
    volumes=(Volume(image="v.img", size=1, mount_point="/v"),),
    shares=(
        Share(tag="s", source=".", mount_point="/s"),
        Share(tag="n", source=".", mount_point="/n", proto="9p"),
    ),
    interfaces=(Interface(type="user", id="n0"), Interface(type="tap", id="t0")),
    forward_ports=(ForwardPort(host=Endpoint(port=1), guest=Endpoint(port=2)),),
)  # fmt: skip
MORE = {
    "qemu": {
        "interfaces": (
            *FULL.interfaces,
            Interface(type="macvtap", id="m0", macvtap=MacvtapOptions(link="eth0")),
        ),
        "volumes": (
            *FULL.volumes,
            Volume(image="q.img", auto_create=False, image_type="qcow2"),
        ),
        "devices": (
            Device(bus="pci", path="0000:00:02.0"),
            Device(bus="usb", path="vendorid=0x1,productid=0x2"),
        ),
        "qemu": QemuOptions(pcie_root_ports=(PcieRootPort(id="port0"),)),
    },
    "cloud-hypervisor": {
        "interfaces": (
            Interface(type="tap", id="t0"),
            Interface(type="macvtap", id="m0", macvtap=MacvtapOptions(link="eth0")),
        ),
        "devices": (Device(bus="pci", path="0000:00:02.0"),),
        "machine_id": "1" * 32,
    },
}
"""What a hypervisor can do beyond what all can."""

SAMPLES = {
    "firecracker.cpu": {"cpuid_modifiers": []}, "extra_config": {"mmds-config": {}}, "drive_io_engine": "Sync",
    "platform_oem_strings": ("x=y",), "vcpu": 4, "hotplug_mem": 128, "hotplugged_mem": 2, "link": "eth1",
    "bus": "usb", "addr": "5.0", "path": "0000:00:03.0", "mode": "private", "system.files.'/a'.mode": "0600",
    "accel": "tcg", "cpu": "Haswell", "machine_id": "2" * 32, "hypervisor": "crosvm",
    "socket": "x.sock", "user": "nobody", "initrd_path": "x/initrd", "devices": (Device(bus="pci", path="0000:00:01.0"),),
    "kernel_params": ("x",), "credential_files": {"a": "/etc/hostname"}, "store_disk_type": "squashfs",
    "store_proto": "9p", "store_disk_erofs_flags": ("-zlz4hc",), "store_disk_squashfs_flags": ("-comp", "gzip"),
    "machine_opts": {"hpet": "off"}, "machine": "microvm", "pcie_root_ports": (PcieRootPort(id="p"),),
    "extra_args": ("-x",), "program": "/bin/true", "mac": "02:00:00:00:00:09", "bridge": "br0",
    "macvtap": MacvtapOptions(link="eth0"), "fs_type": "xfs", "image_type": "qcow2", "serial": "S", "label": "L",
    "mkfs_extra_args": ("-v",), "mount_point": "/other", "size": 77, "security_model": "mapped", "cache": "always",
    "uid_map": ("map:1:0:1",), "gid_map": ("map:1:0:1",), "dax_window_size": 9, "proto": "9p", "source": "/etc",
    "tag": "other", "type": "tap", "id": "zz", "address": "127.0.0.2", "port": 99, "origin": "guest", "group": "kvm",
    "inode_file_handles": "never", "thread_pool_size": 3, "cid": 9, "release": "bookworm", "mirror": "http://localhost/m",
    "security_mirror": "http://localhost/s", "components": ("main", "contrib"), "packages": ("less",), "kernel": "cloud",
    "hostname": "other", "timezone": "Europe/Berlin", "locale": "de_DE.UTF-8", "autologin": "", "workdir": "/w",
    "ssh_authorized_keys": ("ssh-ed25519 AAAA k",), "run": ("true",), "uid": 4000, "groups": ("adm",), "shell": "/bin/sh",
    "home": "/h", "password_hash": "", "text": "other", "owner": "1:1", "enable": True, "dropin": "[Unit]\n",
    "url": "http://localhost/q", "suite": "s", "key": "k", "image": "w.img", "users": {"eve": User()},
    "files": {"/b": File(text="b")}, "units": {"b.service": Unit(text="b")}, "repositories": (),
    "volumes": (), "shares": (), "interfaces": (Interface(type="user", id="q"),), "forward_ports": (),
}  # fmt: skip

OTHERWISE = {
    "bus": "pci", "image_type": "vhd", "proto": "virtiofs", "type": "user", "hypervisor": "kvmtool", "kernel": "generic", "backend": "headless", "hostmem": "1G",
    "forward_ports": FULL.forward_ports, "shares": FULL.shares[:1], "interfaces": FULL.interfaces,
}  # fmt: skip
"""Values for where the sample is what is there already, or means the same."""

OPTIONS_OF = {kind: kind.replace("-", "_") for kind in HypervisorKind}


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


NEEDS = {
    "graphics.backend": "graphics.enable", "graphics.socket": "graphics.enable",
    "graphics.vulkan": "graphics.enable", "graphics.hostmem": "graphics.enable",
    "store_proto": "store_on_disk", "hotplugged_mem": "hotplug_mem",
}  # fmt: skip
"""Options that mean something only together with another one."""


def leaves(value, skipped, path=()):
    """Yield the path of every option below a dataclass, into the items of collections.

    Options of hypervisors that a declaration is not run on say nothing about this one.
    """
    for f in fields(value):
        here, inner = (*path, f.name), getattr(value, f.name)
        if f.name in skipped or here == ("system", "type"):
            continue
        items = enumerate(inner) if isinstance(inner, tuple) else ()
        items = inner.items() if isinstance(inner, dict) else items
        inside = [(key, item) for key, item in items if is_dataclass(item)]
        if is_dataclass(inner):
            yield from leaves(inner, skipped, here)
        else:
            yield here  # a table of options says nothing by itself
        for key, item in inside:
            yield from leaves(item, skipped, (*here, key))


def options_of(kind):
    skipped = {name for other, name in OPTIONS_OF.items() if other != kind}
    return leaves(ground(kind), skipped)


def changed(value, path, new):
    first, *rest = path
    if isinstance(value, tuple):
        return tuple(
            changed(item, rest, new) if i == first else item for i, item in enumerate(value)
        )
    if isinstance(value, dict):
        return {k: changed(item, rest, new) if k == first else item for k, item in value.items()}
    inner = new(getattr(value, first)) if not rest else changed(getattr(value, first), rest, new)
    return replace(value, **{first: inner})


def sample(path):
    def new(old):
        whole, name = ".".join(map(repr_of, path)), path[-1]
        if isinstance(old, bool):
            return not old
        if isinstance(old, int) and name not in SAMPLES:
            return old + 64
        found = SAMPLES.get(whole, SAMPLES.get(name, not old if old is None else old))
        return OTHERWISE.get(name, found) if found == old else found

    return new


def repr_of(part):
    return repr(part) if isinstance(part, str) and "/" in part else str(part)


def outcome(vm, tmp_path):
    """Everything that a declaration leads to, as plain data; problems alone when it is refused."""
    problems = [*hypervisor(vm.hypervisor).check(vm), *rules.check_all({"vm": vm}, Path("/nosuch"))]
    if problems:
        return ("refused", tuple(sorted(p.where for p in problems)))
    backend = hypervisor(vm.hypervisor)
    program = Program(path=backend.declared_program(vm) or "/usr/bin/vmm", version=(99, 0))
    virtiofsd = replace(VIRTIOFSD, path=vm.virtiofsd.program or VIRTIOFSD.path)
    known = facts(
        vm.hypervisor, accelerator=Accelerator(kind=vm.accel or "kvm", reason=""),
        machine_id=vm.machine_id or "1" * 32,
        programs={backend.program: program, "virtiofsd": virtiofsd},
    )  # fmt: skip
    layer = replace(LAYER, kind=vm.store_disk_type)
    planned = plan(vm, known, replace(SYSTEM, layers=(layer,)))
    lock = SystemLock(
        request="", date=0, mirrors={}, sources="", kernel_release="",
        layers=(LockedLayer(name="kernel", packages=()),),
    )  # fmt: skip
    contents = configuration.collect("vm", vm, lock, "d", tmp_path)
    return (
        planned, contents, resolve.request(vm, (), tmp_path), vm.system.run, vm.system.network,
        vm.store_disk_erofs_flags, vm.store_disk_squashfs_flags,
    )  # fmt: skip


@pytest.mark.parametrize("kind", HypervisorKind)
def test_the_declaration_that_is_varied_is_one_that_runs(kind, tmp_path):
    assert outcome(ground(kind), tmp_path)[0] != "refused"


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind in HypervisorKind for path in options_of(kind)],
    ids=lambda value: (
        value.value if isinstance(value, HypervisorKind) else ".".join(map(str, value))
    ),
)
def test_every_option_changes_something_or_is_refused(kind, path, tmp_path):
    name = ".".join(map(str, path))
    base = ground(kind)
    if needed := NEEDS.get(name):
        base = changed(base, needed.split("."), sample(needed.split(".")))
    if path[0] == "virtiofsd" and not any(share.proto == "virtiofs" for share in base.shares):
        base = replace(base, shares=FULL.shares[:1])  # refused there, and with it these options
    asking = changed(base, path, sample(path))
    if name == "deflate_on_oom":  # None leaves it to the hypervisor: one of the two is a choice
        asking = replace(base, deflate_on_oom=kind == "kvmtool")
    assert asking != base, f"SAMPLES has no other value for {name}"
    found = outcome(asking, tmp_path)
    assert found != outcome(base, tmp_path) or found[0] == "refused"
