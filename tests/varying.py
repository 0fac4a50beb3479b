"""Declarations that differ in one option, and everything that they lead to as plain data."""

import re
from dataclasses import fields, is_dataclass, replace

import pytest

from microvm.errors import HostError
from microvm.guests.debian import configuration, image, resolve, runtime, sources
from microvm.hypervisors import hypervisor
from microvm.model.declaration import HypervisorKind
from microvm.model.devices import (
    Device,
    Endpoint,
    ForwardPort,
    Interface,
    MacvtapOptions,
    PcieRootPort,
    Share,
    names_device,
)  # fmt: skip
from microvm.model.facts import Accelerator, Program
from microvm.model.guest import LockedLayer, LockedPackage, SystemLock
from microvm.model.system import File, Unit, User
from microvm.projects import keypath, rules
from planned import LAYER, SYSTEM, VIRTIOFSD, facts, plan

SHARE = Share(tag="s", source=".", mount_point="/s")
FORWARD = ForwardPort(host=Endpoint(port=1), guest=Endpoint(port=2))

FILES = ("other.initrd", "secret", "key.asc", "one", "another", "linux/vmlinuz")
"""Files of the project that samples name."""
SAMPLES = {
    "firecracker.cpu": {"cpuid_modifiers": []}, "extra_config": {"mmds-config": {}}, "drive_io_engine": "Sync",
    "platform_oem_strings": ("x=y",), "vcpu": 4, "hotplug_mem": 128, "hotplugged_mem": 2, "link": "eth1",
    "bus": "usb", "addr": "5.0", "path": "0000:00:03.0", "mode": "private", "system.files.'/a'.mode": "0600",
    "devices.1.path": "vendorid=0x3,productid=0x4", "devices.0.qemu.bus": "port0", "devices.1.qemu.bus": "usb.0", "device_extra_args": "a=b",
    "qemu.pcie_root_ports.N.bus": "pcie.0", "chassis": 7, "slot": 3, "qemu.machine": "q35", "pivot_root": "root",
    "accel": "tcg", "cpu": "Haswell", "machine_id": "2" * 32, "hypervisor": "crosvm",
    "socket": "x.sock", "user": "nobody", "initrd_path": "other.initrd", "devices": (Device(bus="pci", path="0000:00:01.0"),),
    "kernel_params": ("x",), "credential_files": {"a": "secret"}, "store_disk_type": "squashfs",
    "store_proto": "9p", "store_disk_erofs_flags": ("-zlz4hc",), "store_disk_squashfs_flags": ("-comp", "gzip"),
    "machine_opts": {"hpet": "off"}, "pcie_root_ports": (PcieRootPort(id="p"),), "vulkan": "venus",
    "extra_args": ("-x",), "program": "/bin/true", "mac": "02:00:00:00:00:09", "bridge": "br0",
    "macvtap": MacvtapOptions(link="eth0"), "fs_type": "xfs", "image_type": "qcow2", "serial": "S", "label": "L",
    "mkfs_extra_args": ("-v",), "mount_point": "/other", "size": 377, "security_model": "mapped", "cache": "always",
    "uid_map": ("map:1:0:1",), "gid_map": ("map:1:0:1",), "dax_window_size": 9, "proto": "9p", "source": "/etc",
    "tag": "other", "type": "tap", "id": "zz", "address": "127.0.0.2", "port": 99, "origin": "guest", "group": "kvm",
    "inode_file_handles": "never", "thread_pool_size": 3, "cid": 9, "release": "bookworm", "mirror": "http://localhost/m",
    "security_mirror": "http://localhost/s", "components": ("main", "contrib"), "packages": ("less",), "kernel": "linux",
    "hostname": "other", "timezone": "Europe/Berlin", "locale": "de_DE.UTF-8", "autologin": "", "workdir": "/w",
    "ssh_authorized_keys": ("ssh-ed25519 AAAA k",), "run": ("true",), "uid": 4000, "groups": ("adm",), "shell": "/bin/sh",
    "home": "/h", "password_hash": "", "text": "other", "owner": "1:1", "enable": True, "dropin": "[Unit]\n",
    "url": "http://localhost/q", "suite": "s", "key": "key.asc", "image": "w.img", "users": {"eve": User()},
    "files": {"/b": File(text="b")}, "units": {"b.service": Unit(text="b")}, "repositories": (),
    "volumes": (), "shares": (), "interfaces": (Interface(type="tap", id="q"),), "forward_ports": (),
    "forward_ports.N.proto": "udp", "backend": "headless", "hostmem": "1G",
    "system.files.'/a'.source": "one",
}  # fmt: skip
"""Other values: by the whole key, by that with N for numbers, or by the option's own name."""

OTHERWISE = {
    "bus": "pci", "image_type": "raw", "proto": "virtiofs", "type": "user", "hypervisor": "kvmtool",
    "forward_ports": (FORWARD,), "shares": (SHARE,), "mount_point": "/v",
}  # fmt: skip
"""Values for where the sample is what is there already, or means the same."""

OPTIONS_OF = {kind: kind.replace("-", "_") for kind in HypervisorKind}


def leaves(value, path=()):
    """Yield the path of every option below a dataclass, into the items of collections."""
    for f in fields(value):
        here, inner = (*path, f.name), getattr(value, f.name)
        if here == ("system", "type"):
            continue  # it has one value
        items = enumerate(inner) if isinstance(inner, tuple) else ()
        items = inner.items() if isinstance(inner, dict) else items
        inside = [(key, item) for key, item in items if is_dataclass(item)]
        if is_dataclass(inner):
            yield from leaves(inner, here)
        else:
            yield here  # a table of options says nothing by itself
        for key, item in inside:
            yield from leaves(item, (*here, key))


def of_another(kind, path):
    """Whether an option is in a table of another hypervisor, the whole MicroVM's or a device's.

    One declaration runs on several: each takes its own table, and passes over those of others.
    """
    table = path[2:3] if path[0] == "devices" else path[:1]
    return bool(table) and table[0] in {t for other, t in OPTIONS_OF.items() if other != kind}


def changed(value, path, new):
    """Return a declaration with another value at a path: what `new` makes of the old one."""
    first, *rest = path
    if isinstance(value, tuple):
        return tuple(
            changed(item, rest, new) if i == first else item for i, item in enumerate(value)
        )
    if isinstance(value, dict):
        return {k: changed(item, rest, new) if k == first else item for k, item in value.items()}
    inner = new(getattr(value, first)) if not rest else changed(getattr(value, first), rest, new)
    return replace(value, **{first: inner})


def numberless(key):
    """Return a key with N in place of the numbers of items."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", key)


def said(table, path):
    """Return what a table says for a path, by its most exact key; None: nothing."""
    key = keypath.join(path)
    return next((table[k] for k in (key, numberless(key), path[-1]) if k in table), None)


def sample(path):
    """Return what makes another value of the one at a path."""

    def new(old):
        if isinstance(old, bool):
            return not old
        found = said(SAMPLES, path)
        if found is None:
            assert isinstance(old, int | None), f"SAMPLES has no value for {path}"
            return not old if old is None else old + 64
        return OTHERWISE.get(path[-1], found) if found == old else found

    return new


def known(vm, project):
    """Return a host on which the declared programs are, and what is declared to be a fact."""
    backend = hypervisor(vm.hypervisor)
    program = Program(path=backend.declared_program(vm) or "/usr/bin/vmm", version=(99, 0))
    virtiofsd = replace(VIRTIOFSD, path=vm.virtiofsd.program or VIRTIOFSD.path)
    return facts(
        vm.hypervisor, accelerator=Accelerator(kind=vm.accel or "kvm", reason=""),
        machine_id=vm.machine_id or "1" * 32, project_dir=str(project),
        programs={backend.program: program, "virtiofsd": virtiofsd},
    )  # fmt: skip


def refusals(vm, project):
    """Return the keys at which a declaration is refused."""
    here = hypervisor(vm.hypervisor).check(vm, known(vm, project))
    ruled = rules.check_all({"vm": vm}, project)
    return {problem.where.removeprefix("microvms.vm.") for problem in (*here, *ruled)}


def resolved(vm, project):
    """What is asked of package repositories."""
    try:
        found = sources.sources(vm.system, project)
    except HostError as error:  # no keyring
        pytest.skip(str(error))
    return found, resolve.kernel_flavour(vm), {*vm.system.packages, *runtime.packages_for(vm)}


def looked_at(volume):
    """Return a volume's plan less what the launcher does not look at."""
    if volume.image_type != "raw":
        volume = replace(volume, fs_type="")
    if not volume.create or names_device(volume.image):
        volume = replace(volume, label=None, mkfs_args=())
    return volume


def outcome(vm, project):
    """Everything that a declaration leads to, as plain data."""
    layer = replace(LAYER, kind=vm.store_disk_type)
    planned = plan(vm, known(vm, project), replace(SYSTEM, layers=(layer,)))
    apt = LockedPackage(name="apt", version="", architecture="", sha256="", size=0, url="u")
    lock = SystemLock(
        request="", date=0, mirrors={}, sources="", kernel_release="",
        layers=(LockedLayer(name="base", packages=(apt,)),),
    )  # fmt: skip
    contents = configuration.collect("vm", vm, lock, "d", project)
    try:
        packed = image.settings(vm, "u", 0) if vm.store_on_disk else None
    except HostError as error:
        pytest.skip(str(error))
    return (
        replace(planned, volumes=tuple(map(looked_at, planned.volumes))),
        contents | {"network": vm.system.network and bool(vm.system.run)},
        resolved(vm, project), packed,
        vm.system.run,  # the builder runs these as they are
    )  # fmt: skip
