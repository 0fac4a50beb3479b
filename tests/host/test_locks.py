"""When a project's lock is written, and when it is left alone."""

import json

import pytest

import microvm

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]


def layers(runner):
    system = json.loads((runner / "share/microvm/system/system.json").read_text())
    return [layer["name"] for layer in system["layers"]]


def test_fields_changed_for_once_leave_the_lock_as_it_is(guest_store, tmp_path, mirror):
    store = microvm.Store.open(guest_store)
    said = f'system.mirror = "{mirror}"\n' if mirror else ""
    (tmp_path / "microvm.toml").write_text(f"[microvms.web]\n{said}")
    declared = microvm.build(microvm.load(str(tmp_path)), store=store)
    lock = (tmp_path / "microvm.lock").read_bytes()
    changed = microvm.load(str(tmp_path), overrides=['system.packages=["less"]'])
    assert layers(declared) == ["kernel", "base", "configuration"]
    assert layers(microvm.build(changed, store=store)) == [
        "kernel", "base", "packages", "configuration",
    ]  # fmt: skip
    assert (tmp_path / "microvm.lock").read_bytes() == lock
