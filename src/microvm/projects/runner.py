"""The runner: a directory of plain files that says everything about starting a MicroVM."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from microvm.hypervisors.shares import socket_of
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM
from microvm.model.guest import GuestSystem
from microvm.model.runner import SCHEMA, Runner
from microvm.model.system import DebianSystem
from microvm.store import Store, item_name

_SCRIPT = """\
#!/bin/sh
exec "${{MICROVM_LAUNCHER:-microvm-launch}}" {verb} "$0" "$@"
"""
LAYOUT = 3


def write(
    name: str,
    microvm: MicroVM,
    system: GuestSystem,
    store: Store,
    *,
    vmlinux: str | None,
    disk: str | None,
) -> str:
    """Add the runner to the store and return its item's name."""
    # What the guest is made of is in the system; a launch needs nothing of its declaration.
    lean = replace(
        microvm, system=DebianSystem(release=microvm.system.release, kernel=microvm.system.kernel)
    )
    runner = Runner(
        schema=SCHEMA, name=name, microvm=lean, system=system, vmlinux=vmlinux, disk=disk
    )
    plain = {f.name: to_plain(getattr(runner, f.name)) for f in fields(runner)}
    item = item_name(f"{name}-runner", [LAYOUT, plain])
    store.add(item, lambda directory: _fill(directory, runner, plain))
    return item


def _fill(directory: Path, runner: Runner, plain: dict[str, Any]) -> None:
    share = directory / "share/microvm"
    share.mkdir(parents=True)
    (share / "runner.json").write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
    for name, text in _metadata(runner.microvm).items():
        path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (share / "system").symlink_to(f"../../../{runner.system.name}")
    (directory / "bin").mkdir()
    for name, verb in _scripts(runner.microvm).items():
        script = directory / "bin" / name
        script.write_text(_SCRIPT.format(verb=verb))
        script.chmod(0o755)
    needed = (runner.system.name, *filter(None, [runner.vmlinux, runner.disk]))
    (directory / "references").write_text("".join(f"{item}\n" for item in needed))


def _scripts(vm: MicroVM) -> dict[str, str]:
    scripts = {"microvm-run": "run", "microvm-shutdown": "shutdown"}
    if vm.balloon or vm.hotplug_mem:
        scripts["microvm-balloon"] = "balloon"
    if any(interface.type in ("tap", "bridge") for interface in vm.interfaces):
        scripts |= {"tap-up": "tap-up", "tap-down": "tap-down"}
    if any(interface.type == "macvtap" for interface in vm.interfaces):
        scripts |= {"macvtap-up": "macvtap-up", "macvtap-down": "macvtap-down"}
    if vm.uses("virtiofs"):
        scripts["virtiofsd-run"] = "virtiofsd-run"
    return scripts


def _metadata(vm: MicroVM) -> dict[str, str]:
    """Return MicroVM.nix's metadata files: one item a line."""
    files = {"hypervisor": f"{vm.hypervisor}\n"}
    if vm.vsock.cid is not None:
        files["vsock-cid"] = f"{vm.vsock.cid}\n"
    taps = [each.id for each in vm.interfaces if each.type in ("tap", "bridge")]
    if taps:
        files["tap-interfaces"] = "".join(f"{tap}\n" for tap in taps)
    macvtaps = [
        f"{interface.id} {interface.mac or '-'} {interface.macvtap.link} {interface.macvtap.mode}\n"
        for interface in vm.interfaces
        if interface.macvtap
    ]
    if macvtaps:
        files["macvtap-interfaces"] = "".join(macvtaps)
    for share in vm.shares:
        if share.proto == "virtiofs":
            files[f"virtiofs/{share.tag}/socket"] = f"{socket_of(share)}\n"
            files[f"virtiofs/{share.tag}/source"] = f"{share.source}\n"
    return files
