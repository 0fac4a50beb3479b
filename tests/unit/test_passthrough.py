"""What keeps a device of the host from a guest is told before anything starts."""

import os

import pytest

from microvm.errors import HostError
from microvm.host import passthrough
from microvm.model.devices import Device

ADDRESS = "0000:03:00.0"
PCI = Device(bus="pci", path=ADDRESS)
ALL = ("device", "vfio-pci", "group", "node")


@pytest.fixture
def host(tmp_path):
    """Make a host whose PCI device has come as far as the steps say."""

    def make(*steps):
        place = tmp_path / "sys/bus/pci/devices" / ADDRESS
        if "device" in steps:
            place.mkdir(parents=True)
        for driver in {"vfio-pci", "nvme"} & set(steps):
            (place / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if "group" in steps:
            (place / "iommu_group").symlink_to("../../../kernel/iommu_groups/7")
        (tmp_path / "dev/vfio").mkdir(parents=True)
        if "node" in steps:
            (tmp_path / "dev/vfio/7").touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("steps", "said", "hint"),
    [
        ((), "the host has none there", "lspci"),
        (("device",), "no driver has it", "driverctl set-override 0000:03:00.0 vfio-pci"),
        (("device", "nvme"), "nvme has it", "driverctl set-override"),
        (ALL[:2], "IOMMU is off", "intel_iommu=on"),
        (ALL[:3], "there is no ", "devtmpfs"),
    ],
)
def test_a_pci_device_that_is_not_ready_is_told_with_the_next_step(host, steps, said, hint):
    with pytest.raises(HostError) as raised:
        passthrough.check([PCI], root=host(*steps))
    assert f"can't pass the PCI device {ADDRESS} through: " in raised.value.message
    assert said in raised.value.message
    assert hint in raised.value.hint


def test_a_pci_device_that_vfio_has_is_fine(host):
    passthrough.check([PCI], root=host(*ALL))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_group_of_somebody_else_is_told(host):
    root = host(*ALL)
    (root / "dev/vfio/7").chmod(0)
    with pytest.raises(HostError, match=r"no permission on .*/vfio/7"):
        passthrough.check([PCI], root=root)


STICK = {"idVendor": "0951", "idProduct": "1666", "busnum": "2", "devnum": "12", "devpath": "1.4"}


@pytest.mark.parametrize(
    ("selector", "is_this"),
    [
        ("vendorid=0x0951,productid=0x1666", True),
        ("vendorid=0x0951,productid=0x1667", False),
        ("hostbus=2,hostport=1.4", True),
        ("hostbus=2,hostaddr=12", True),
        ("hostbus=1", False),
        ("vendorid=x", False),
    ],
)
def test_a_usb_device_is_the_one_that_is_selected(tmp_path, selector, is_this):
    place = tmp_path / "sys/bus/usb/devices/2-1.4"
    place.mkdir(parents=True)
    (place.parent / "2-0:1.0").mkdir()  # an interface, not a device
    for name, text in STICK.items():
        (place / name).write_text(text + "\n")
    device = Device(bus="usb", path=selector)
    if is_this:
        with pytest.raises(HostError, match=r"there is no .*/dev/bus/usb/002/012"):
            passthrough.check([device], root=tmp_path)
        node = tmp_path / "dev/bus/usb/002/012"
        node.parent.mkdir(parents=True)
        node.touch()
    passthrough.check([device], root=tmp_path)
