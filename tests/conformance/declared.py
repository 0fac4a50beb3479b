"""What the guests of the suite declare: as settings of `guest/microvm.toml`, for each hypervisor."""

from report import NOT_THERE

from microvm.hypervisors import hypervisor
from microvm.hypervisors.features import Feature
from microvm.model.declaration import HypervisorKind

KINDS = [kind.value for kind in HypervisorKind]
MACHINE_ID = "0123456789abcdef0123456789abcdef"
MAC = "02:00:00:00:77:"
SERIAL = "data-7"
PORT = 8100
SHARES = {
    "files": '{tag="files",source="shared",mount_point="/srv/files",proto="virtiofs"}',
    "locked": '{tag="locked",source="shared",mount_point="/srv/locked",read_only=true}',
    "nine": '{tag="nine",source="shared",mount_point="/srv/nine",proto="9p"}',
}
GIFT, PEN = "0000:00:1e.0", "vendorid=0x0627,productid=0x0001"
"""The NVMe disk and the USB tablet that the bed can give away."""
PACKED = {Feature.QCOW2: "packed.qcow2", Feature.VHD: "packed.vhd"}
"""Images that are not raw, of one size."""
BRIDGED, OF_USER = "10.77.0.", ("10.0.2.", "192.168.33.")
"""How addresses begin that a guest gets by DHCP: on br0 of the bed, on user networking."""


def has(kind, feature):
    return hypervisor(kind).support(feature).available


def shares(kind):
    """Return the shares of a guest: two of virtiofs, one of them read-only, and one of 9p."""
    of_virtiofs = ("files", "locked") if has(kind, Feature.SHARE_VIRTIOFS) else ()
    return (*of_virtiofs, *(("nine",) if has(kind, Feature.SHARE_9P) else ()))


def is_there(kind, what):
    """Return whether a hypervisor has what no declaration asks for."""
    return kind not in NOT_THERE.get(what, ())


def kernel_for(kind):
    """The cloud kernel has no 9p."""
    return ('system.kernel="generic"',) if has(kind, Feature.SHARE_9P) else ()


def address(kind):
    return f"{MAC}{KINDS.index(kind):02x}"


def devices(kind):
    """Return the settings of a guest with every common device that a hypervisor has."""
    serial = f',serial="{SERIAL}"' if has(kind, Feature.SERIAL) else ""
    tap = f'type="tap",id="tap{KINDS.index(kind)}",mac="{address(kind)}"'
    return (
        f'volumes=[{{image="data.img",size=64,mount_point="/srv/data",fs_type="ext4"{serial}}},'
        '{image="fixed.img",size=32,mount_point="/srv/fixed",fs_type="ext4",read_only=true}]',
        f'interfaces=[{{{tap},bridge="br0"}}]',
        f"shares=[{','.join(SHARES[tag] for tag in shares(kind))}]",
        f'machine_id="{MACHINE_ID}"',
        'credential_files={conf="secret.txt"}',
        "balloon=true",
        *kernel_for(kind),
    )


def extras(kind):
    """Return the settings of a guest with what not every hypervisor has."""
    direct = ",direct=true" if has(kind, Feature.DIRECT) else ""
    packed = "".join(
        f',{{image="{image}",image_type="{image.partition(".")[2]}",auto_create=false}}'
        for feature, image in PACKED.items()
        if has(kind, feature)
    )
    number = KINDS.index(kind)
    interfaces = [f'{{type="bridge",id="brd{number}",bridge="br0"}}']
    if has(kind, Feature.VHOST):
        interfaces.append(f'{{type="tap",id="tap{number}",bridge="br0",tap={{vhost=true}}}}')
    if has(kind, Feature.NET_MACVTAP):
        interfaces.append(f'{{type="macvtap",id="mvt{number}",macvtap={{link="side"}}}}')
    if has(kind, Feature.NET_USER):
        interfaces.append('{type="user",id="user0"}')
    found = [
        f'volumes=[{{image="data.img",size=64{direct}}}{packed}]',
        f"interfaces=[{','.join(interfaces)}]",
        "vcpu=2",
        f"vsock={{cid={7000 + number}}}",
        "balloon=true",
    ]
    if has(kind, Feature.FORWARD):
        inward = f'{{origin="host",host={{port={PORT}}},guest={{port=8099}}}}'
        outward = '{origin="guest",host={port=8098},guest={port=8097}}'  # see in_bed/watch.py
        ports = (inward, outward) if has(kind, Feature.FORWARD_REMAPPED) else (inward,)
        found.append(f"forward_ports=[{','.join(ports)}]")
    if has(kind, Feature.USER):
        found.append('user="nobody"')
    if is_there(kind, "OEM strings"):
        found.append('cloud_hypervisor.platform_oem_strings=["microvm:conformance"]')
    for feature, setting in (
        (Feature.HUGE_PAGES, "hugepage_mem=true"),
        (Feature.HOTPLUG, "hotplug_mem=256"),
        (Feature.HOTPLUGGED, "hotplugged_mem=128"),
        (Feature.INITIAL_BALLOON, "initial_balloon_mem=64"),
    ):
        if has(kind, feature):
            found.append(setting)
    return found
