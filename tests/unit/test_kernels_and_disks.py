"""The uncompressed kernel inside a bzImage, and one disk for many layers."""

import gzip
import json
import lzma
import struct
import subprocess

import pytest

from microvm.errors import MicroVMError
from microvm.guests import composite, vmlinux
from microvm.model.guest import GuestSystem, Layer
from microvm.store import Store

KERNEL = vmlinux.ELF + b"kernel" * 1000


def bzimage(payload):
    """A setup sector and a payload as Documentation/arch/x86/boot.rst has them."""
    image = bytearray(1024 + 64)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    if not payload.startswith(b"\x1f\x8b"):  # gzip ends with the size by itself
        payload += struct.pack("<I", len(KERNEL))
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + payload


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_the_kernel_is_taken_out_of_its_image(pack):
    assert vmlinux.extract(bzimage(pack(KERNEL)), "6.12") == KERNEL
    assert vmlinux.extract(KERNEL, "6.12") == KERNEL


def test_a_kernel_packed_by_zstd_is_taken_out(tool):
    packed = subprocess.run([tool("zstd"), "-cq"], input=KERNEL, capture_output=True, check=True)
    assert vmlinux.extract(bzimage(packed.stdout), "6.12") == KERNEL


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"\0" * 2048, "no setup header"),
        (bzimage(b"what is this"), "unknown way"),
        (bzimage(gzip.compress(b"text")), "something else"),
        (bzimage(gzip.compress(KERNEL)[:-9]), "damaged"),
        (bzimage(lzma.compress(KERNEL)[:-9]), "damaged"),
    ],
)
def test_what_holds_no_kernel_is_told(image, words):
    with pytest.raises(MicroVMError, match=words):
        vmlinux.extract(image, "6.12")


def test_the_layers_become_partitions_of_one_disk(tmp_path, tool):
    store = Store.open(tmp_path / "store")
    contents = [b"one" * 5461 + b"!", b"two" * 400000]
    contents = [data.ljust(-(-len(data) // 4096) * 4096, b"\0") for data in contents]
    layers = []
    for number, data in enumerate(contents):
        name = f"{number:032x}-base-image"
        (store.path / name).mkdir()
        (store.path / name / "image").write_bytes(data)
        layers.append(Layer(name="base", tree="t", image=name, kind="erofs", uuid="u"))
    system = GuestSystem(
        name="s", source="debian", description="d", architecture="x86_64", kernel="k",
        kernel_release="1", initrd="k", features=(), layers=tuple(layers), kernel_params=(),
    )  # fmt: skip
    tool("sfdisk")
    disk = store.item(composite.add(system, store)) / "image"
    told = subprocess.run(
        [tool("sfdisk"), "--json", disk], capture_output=True, text=True, check=True
    )
    found = json.loads(told.stdout)["partitiontable"]["partitions"]
    data = disk.read_bytes()
    parts = [data[p["start"] * 512 : (p["start"] + p["size"]) * 512] for p in found]
    assert parts == contents
    other = Store.open(tmp_path / "other")
    for layer in layers:
        (other.path / layer.image).symlink_to(store.path / layer.image)
    assert (other.item(composite.add(system, other)) / "image").read_bytes() == data
