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
VIRTIOFS = {
    "files": 'source="shared",proto="virtiofs"',
    "locked": 'source="shared",read_only=true,cache="always"',
    "moved": 'source="moved",uid_map=["map:1000:4000:10"],gid_map=["map:1000:5000:10"],cache="metadata"',
    "acl": 'source="shared",posix_acl=true,cache="never"',
}
NINE = {
    "nine": 'source="shared",proto="9p"',
    "closed": 'source="shared",proto="9p",read_only=true',
    "passed": 'source="passed",proto="9p",security_model="passthrough"',
    "mapped": 'source="mapped",proto="9p",security_model="mapped"',
    "beside": 'source="beside",proto="9p",security_model="mapped-file"',
}
"""What shares are, by their tags: those of virtiofs, and of 9p, of which all but qemu have one."""
DIRECTORIES = ("shared", "moved", "passed", "mapped", "beside")
"""What they are of."""
MODES = ("bridge", "private", "vepa", "passthru", "source")
"""Of macvtaps."""
MASKED = "adx"
"""What the CPU template hides, of what every guest of the bed has: bit 19 of EBX of leaf 7."""
GIFT, PEN = "0000:00:1e.0", "vendorid=0x0627,productid=0x0001"
"""The NVMe disk and the USB tablet that the bed can give away."""
PACKED = {Feature.QCOW2: "packed.qcow2", Feature.VHD: "packed.vhd"}
"""Images that are not raw, of one size."""
SOCKET = "run/vmm.sock"
BRIDGED, OF_USER = "10.77.0.", ("10.0.2.", "192.168.33.")
"""How addresses begin that a guest gets by DHCP: on br0 of the bed, on user networking."""


def has(kind, feature):
    return hypervisor(kind).support(feature).available


def shares(kind):
    """Return the shares of a guest by their tags."""
    nine = NINE if kind == "qemu" else {"nine": NINE["nine"]}
    return {
        **(VIRTIOFS if has(kind, Feature.SHARE_VIRTIOFS) else {}),
        **(nine if has(kind, Feature.SHARE_9P) else {}),
    }


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
    users = "".join(f',{{type="user",id="{name}"}}' for name in users_of(kind))
    dirs = [f'{{tag="{tag}",mount_point="/srv/{tag}",{o}}}' for tag, o in shares(kind).items()]
    return (
        f'volumes=[{{image="data.img",size=64,mount_point="/srv/data",fs_type="ext4"{serial}}},'
        '{image="fixed.img",size=32,mount_point="/srv/fixed",fs_type="ext4",read_only=true}]',
        f'interfaces=[{{{tap},bridge="br0"}}{users}]',
        f"shares=[{','.join(dirs)}]",
        f'machine_id="{MACHINE_ID}"',
        'credential_files={conf="secret.txt"}',
        "balloon=true",
        *kernel_for(kind),
        *(("deflate_on_oom=false",) if has(kind, Feature.BALLOON_KEEPS) else ()),
        *(('firecracker.drive_io_engine="Sync"',) if kind == "firecracker" else ()),
    )


def users_of(kind):
    """Return the names of user interfaces where there may be several."""
    return ("user1", "user2") if has(kind, Feature.NET_USER_MORE) else ()


def macvtap(kind, mode):
    """Return the name of a macvtap of a mode."""
    return f"mvt{KINDS.index(kind)}{mode[:4]}"


def _of_firecracker():
    modifier = f'{{register="ebx",bitmap="0b{"x" * 12}0{"x" * 19}"}}'
    leaf = f'{{leaf="0x7",subleaf="0x0",flags=1,modifiers=[{modifier}]}}'
    limited = "rate_limiter={bandwidth={size=1048576,refill_time=1000}}"
    more = f'"machine-config"={{smt=true}},drives=[{{drive_id="volume0",{limited}}}]'
    return (f"firecracker.cpu={{cpuid_modifiers=[{leaf}]}}", f"firecracker.extra_config={{{more}}}")


def is_direct(kind, packed):
    """Return whether an image that is not raw is one that bypasses the page cache."""
    return packed is Feature.QCOW2 and has(kind, Feature.QCOW2_DIRECT)


def extras(kind):
    """Return the settings of a guest with what not every hypervisor has."""
    direct = ",direct=true" if has(kind, Feature.DIRECT) else ""
    packed = "".join(
        f',{{image="{image}",image_type="{image.partition(".")[2]}",auto_create=false'
        f"{',direct=true' if is_direct(kind, feature) else ''}}}"
        for feature, image in PACKED.items()
        if has(kind, feature)
    )
    number = KINDS.index(kind)
    interfaces = [f'{{type="bridge",id="brd{number}",bridge="br0"}}']
    if has(kind, Feature.VHOST):
        interfaces.append(f'{{type="tap",id="tap{number}",bridge="br0",tap={{vhost=true}}}}')
    if has(kind, Feature.NET_MACVTAP):
        interfaces += [
            f'{{type="macvtap",id="{macvtap(kind, mode)}",'
            f'macvtap={{link="{"alone" if mode == "passthru" else "side"}",mode="{mode}"}}}}'
            for mode in MODES
        ]
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
    if is_there(kind, "OEM strings"):
        found.append('cloud_hypervisor.platform_oem_strings=["microvm:conformance"]')
    if kind == "firecracker":
        found += _of_firecracker()
    for feature, setting in (
        (Feature.USER, 'user="nobody"'),
        (Feature.SOCKET, f'socket="{SOCKET}"'),
        (Feature.BALLOON_GIVES, "deflate_on_oom=true"),
        (Feature.HUGE_PAGES, "hugepage_mem=true"),
        (Feature.HOTPLUG, "hotplug_mem=256"),
        (Feature.HOTPLUGGED, "hotplugged_mem=128"),
        (Feature.INITIAL_BALLOON, "initial_balloon_mem=64"),
    ):
        if has(kind, feature):
            found.append(setting)
    return found
