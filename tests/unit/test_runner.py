"""A runner has the scripts that its machine needs, and no others."""

import pytest

from microvm.model.declaration import MicroVM
from microvm.model.devices import Interface, MacvtapOptions, Share
from microvm.model.guest import GuestSystem
from microvm.projects import runner
from microvm.store import Store

ALWAYS = {"microvm-run", "microvm-shutdown"}
SYSTEM = GuestSystem(
    name="s", source="debian", description="d", architecture="x86_64", kernel="k",
    kernel_release="1", initrd="k", features=(), kernel_params=(), layers=(),
)  # fmt: skip
SHARE = Share(tag="src", source="src", mount_point="/src")
MACVTAP = Interface(type="macvtap", id="mv0", macvtap=MacvtapOptions(link="eth0"))


@pytest.mark.parametrize(
    ("vm", "more"),
    [
        (MicroVM(), set()),
        (MicroVM(balloon=True), {"microvm-balloon"}),
        (MicroVM(hotplug_mem=256), {"microvm-balloon"}),
        (MicroVM(interfaces=(Interface(type="tap", id="tap0"),)), {"tap-up", "tap-down"}),
        (MicroVM(interfaces=(MACVTAP,)), {"macvtap-up", "macvtap-down"}),
        (MicroVM(shares=(SHARE,)), {"virtiofsd-run"}),
        (MicroVM(store_on_disk=False), {"virtiofsd-run"}),
        (MicroVM(store_on_disk=False, store_proto="9p"), set()),
    ],
)
def test_it_has_the_scripts_that_its_machine_needs(vm, more, tmp_path):
    store = Store.open(tmp_path / "store")
    item = runner.write("vm", vm, SYSTEM, store, vmlinux=None, disk=None)
    assert {path.name for path in (store.item(item) / "bin").iterdir()} == ALWAYS | more
