"""What a foreign project asks of the host outside itself: listed, and granted only by `--trust`."""

import os
from collections.abc import Iterator
from pathlib import Path

from microvm.errors import Problem
from microvm.model.declaration import MicroVM

_ADDS = "it adds arguments to a program of the host"
HINT = "read the project, then say --trust to grant what it asks for"


def requests(name: str, microvm: MicroVM, directory: Path) -> list[Problem]:
    """Return everything that a MicroVM asks of the host outside its project, as problems."""
    found = [*_paths(microvm, directory), *_host(microvm)]
    return [
        Problem(where=f"microvms.{name}.{where}", message=message, hint=HINT)
        for where, message in found
    ]


def _outside(path: str, directory: Path) -> bool:
    """Whether a path leads out of the project, also through links."""
    resolved = Path(os.path.realpath(directory / path))
    return directory.resolve() not in (resolved, *resolved.parents)


def _named_paths(vm: MicroVM) -> Iterator[tuple[str, str]]:
    for index, share in enumerate(vm.shares):
        yield f"shares.{index}.source", share.source
    for path, file in vm.system.files.items():
        if file.source is not None:
            yield f"system.files.{path!r}.source", file.source
    for index, package in enumerate(vm.system.packages):
        if package.endswith(".deb"):
            yield f"system.packages.{index}", package
    for index, repository in enumerate(vm.system.repositories):
        if repository.key:
            yield f"system.repositories.{index}.key", repository.key
    yield from ((f"credential_files.{key}", path) for key, path in vm.credential_files.items())
    if vm.system.kernel not in (None, "cloud", "generic"):
        yield "system.kernel", f"{vm.system.kernel}/vmlinuz"
        yield "system.kernel", f"{vm.system.kernel}/lib/modules"
    if vm.initrd_path:
        yield "initrd_path", vm.initrd_path


def _paths(vm: MicroVM, directory: Path) -> Iterator[tuple[str, str]]:
    for where, path in _named_paths(vm):
        if _outside(path, directory):
            yield where, f"it asks for {path}, outside the project"
        elif where.startswith("system.files"):
            for link in (directory / path).rglob("*"):
                if link.is_symlink() and _outside(str(link), directory):
                    yield where, f"{link.relative_to(directory)} leads outside the project"
    for index, volume in enumerate(vm.volumes):
        if volume.image.startswith("/"):
            yield f"volumes.{index}.image", f"it asks for {volume.image} of the host"
        if volume.mkfs_extra_args:
            yield f"volumes.{index}.mkfs_extra_args", _ADDS


def _host(vm: MicroVM) -> Iterator[tuple[str, str]]:
    for key in ("qemu", "cloud_hypervisor", "firecracker", "crosvm", "kvmtool", "virtiofsd"):
        options = getattr(vm, key)
        if options.extra_args:
            yield f"{key}.extra_args", _ADDS
        if options.program:
            yield f"{key}.program", f"it runs the program {options.program}"
    asked = (
        ("qemu.machine_opts", vm.qemu.machine_opts, "it changes how qemu is set up"),
        ("firecracker.extra_config", vm.firecracker.extra_config, "it changes how it is set up"),
        # mksquashfs runs commands that its arguments name; both read files that they name.
        ("store_disk_erofs_flags", vm.store_disk_erofs_flags, _ADDS),
        ("store_disk_squashfs_flags", vm.store_disk_squashfs_flags, _ADDS),
        ("socket", vm.socket, "it names a socket of the host"),
        ("graphics.socket", vm.graphics.socket, "it names a socket of the host"),
        ("crosvm.pivot_root", vm.crosvm.pivot_root, "it names a directory of the host"),
        ("user", vm.user, f"it asks for the rights of {vm.user}"),
        ("virtiofsd.group", vm.virtiofsd.group, f"it lets the group {vm.virtiofsd.group} in"),
        ("system.network", vm.system.network, "its commands want the network while building"),
    )
    yield from ((where, said) for where, value, said in asked if value)
    yield from _repositories(vm)
    yield from _devices(vm)


def _repositories(vm: MicroVM) -> Iterator[tuple[str, str]]:
    for key in ("mirror", "security_mirror"):
        url = getattr(vm.system, key) or ""
        if url.startswith("file:"):
            yield f"system.{key}", f"it reads packages from {url}"
    for index, repository in enumerate(vm.system.repositories):
        if repository.url.startswith("file:") or repository.trusted:
            yield f"system.repositories.{index}", "it takes unsigned or local packages"


def _devices(vm: MicroVM) -> Iterator[tuple[str, str]]:
    for index, share in enumerate(vm.shares):
        if share.extra_args:
            yield f"shares.{index}.extra_args", _ADDS
        if share.socket:
            yield f"shares.{index}.socket", "it names a socket of the host"
    for index, device in enumerate(vm.devices):
        yield f"devices.{index}", f"it takes the device {device.path}"
    for index, interface in enumerate(vm.interfaces):
        if interface.type != "user":
            yield f"interfaces.{index}", f"it joins the host's network as {interface.type}"
    for index, forward in enumerate(vm.forward_ports):
        if forward.host.address not in ("", "127.0.0.1", "::1"):
            verb = "listens on" if forward.origin == "host" else "connects to"
            yield f"forward_ports.{index}.host", f"it {verb} {forward.host.address}"
