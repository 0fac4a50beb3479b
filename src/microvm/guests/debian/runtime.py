"""What every guest contains beyond its declaration: units, scripts, network, mounts, masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from microvm.model import forwards
from microvm.model.declaration import MicroVM
from microvm.model.devices import Share, Volume
from microvm.model.identity import filesystem_uuid

BASE_PACKAGES = (
    "systemd-sysv", "udev", "login", "kmod", "netbase",
)  # fmt: skip
"""Beyond the essential packages: an init, device events, a login.

Not iproute2, where there is no network: it brings libbpf, with which systemd compiles programs for
the kernel at every boot (a tenth of a boot)."""

KERNEL_PARAMS = (
    "quiet",
    # Debian's kernels test every cipher at boot: two thirds of the time to the initrd.
    "cryptomgr.notests",
    # Left out of the kernel's start, a third of which they took: a generator of randomness from
    # timing noise that only FIPS mode uses; two walks over all kernel symbols that make lists of
    # trace points nicer to read (tracing works without); a device for the HPET, which is measured
    # for it; a test of a hash.
    "initcall_blacklist=jent_mod_init,trace_eval_init,ftrace_check_for_weak_functions,hpet_init,"
    "blake2s_mod_init",
    # Virtual timers need no proof that their interrupts arrive (40 ms each time).
    "no_timer_check",
    # Without `bpf` and `tomoyo`: systemd would load a program for RestrictFileSystems=.
    "lsm=landlock,lockdown,yama,integrity,apparmor,selinux",
    # systemd loads it for nothing at every boot; iptables still finds it.
    "modprobe.blacklist=ip_tables",
    "8250.nr_uarts=1",
    "rcupdate.rcu_expedited=1",
    "systemd.show_status=false",
)
"""Kernel parameters that make a guest quick on every hypervisor."""

LIBRARY = "/usr/lib/microvm"
_SCRIPTS = (
    "greet", "console", "job", "job-agent", "ssh-keys", "power-button", "power-stream",
    "stopping",
)  # fmt: skip
_UNITS = (
    "microvm-greeting.service", "microvm-console.service", "microvm-job.service",
    "microvm-online.service", "microvm-power.service", "microvm-power-stream.service",
    "microvm-stopping.service",
)  # fmt: skip
_STARTED = (
    "microvm-console.service", "microvm-job.service", "microvm-power.service",
    "microvm-power-stream.service",
)  # fmt: skip

_MASKED = (
    # Consoles: ours is microvm-console.service, which needs no udev.
    "getty@tty1.service", "getty-static.service", "serial-getty@ttyS0.service",
    # Upkeep of a long-lived, writable installation.
    "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "systemd-hwdb-update.service", "ldconfig.service", "systemd-update-done.service",
    "systemd-journal-catalog-update.service", "systemd-firstboot.service",
    "systemd-machine-id-commit.service", "systemd-sysusers.service", "first-boot-complete.target",
    # Hardware and file systems that a MicroVM does not have.
    "systemd-pstore.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service",
    "systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service", "systemd-binfmt.service",
    "systemd-remount-fs.service", "proc-sys-fs-binfmt_misc.automount", "dev-hugepages.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path", "systemd-random-seed.service", "modprobe@.service",
)  # fmt: skip
_GENERATORS = (
    "systemd-bless-boot-generator", "systemd-cryptsetup-generator", "systemd-getty-generator",
    "systemd-gpt-auto-generator", "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator", "systemd-rc-local-generator",
    "systemd-system-update-generator", "systemd-tpm2-generator", "systemd-veritysetup-generator",
    "systemd-factory-reset-generator",
)  # fmt: skip
"""Generators that find nothing in a MicroVM and cost a process each at every boot."""

_AFTER_GREETING = (
    "kmod-static-nodes.service", "systemd-journal-flush.service", "systemd-journald.service",
    "systemd-modules-load.service", "systemd-networkd.service", "systemd-resolved.service",
    "systemd-sysctl.service", "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-setup.service",
    "systemd-udev-load-credentials.service", "systemd-udev-trigger.service",
    "systemd-udevd.service", "systemd-user-sessions.service", "run-lock.mount",
    "dev-mqueue.mount",
)  # fmt: skip
"""Units that may come after the greeting: a prompt doesn't need them, a job waits for those that
it needs."""

_JOURNAL = "[Journal]\nForwardToConsole=no\nSystemMaxUse=64M\n"

_MANAGER = """\
[Manager]
DefaultTimeoutStopSec=10s
CtrlAltDelBurstAction=none
"""
"""A host that asks often for a shutdown by Ctrl-Alt-Del does not mean a reset."""

_NETWORK = """\
[Match]
Type=ether
Driver=virtio_net

[Network]
DHCP=yes

[DHCPv4]
ClientIdentifier=mac
"""


_DEVICES = """\
[Unit]
Wants=systemd-udev-trigger.service
After=systemd-udev-trigger.service

[Service]
ExecStartPre=-/bin/udevadm settle --timeout=10
"""
"""A job finds the devices of the host: udev loads their drivers."""

_FORWARD_SOCKET = """\
[Unit]
Description={about}
DefaultDependencies=no
Before=microvm-job.service shutdown.target
Conflicts=shutdown.target

[Socket]
ListenStream={entrance}
FreeBind=yes
"""
"""Listens before a job starts, and before networkd has given the guest the address."""

_ONLINE_V6 = """\
[Service]
ExecStart=-/lib/systemd/systemd-networkd-wait-online --any --ipv6 -o routable --timeout=10
"""
"""An address of IPv6 comes seconds after DHCP's of IPv4 (router advertisement, then duplicate
address detection), so only a guest that needs it waits."""

_FORWARD_SERVICE = """\
[Unit]
Description={about}
DefaultDependencies=no
Wants=microvm-online.service
After=microvm-online.service
Before=shutdown.target
Conflicts=shutdown.target

[Service]
ExecStart=/lib/systemd/systemd-socket-proxyd {target}
DynamicUser=yes
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Files and links of a guest's configuration layer, by path."""

    files: dict[str, tuple[bytes, int]]
    """Content and mode."""
    links: dict[str, str]
    """Target."""
    directories: dict[str, int]
    """Mode."""


def initrd_script() -> str:
    """Return the init of the initrd."""
    return (resources.files("microvm.guests.debian") / "data/init").read_text()


def packages_for(microvm: MicroVM) -> tuple[str, ...]:
    """Return the packages that options ask for without naming them."""
    system = microvm.system
    wanted = {"iproute2", "systemd-resolved"} if microvm.interfaces else set()
    users = system.users.values()
    if system.ssh_authorized_keys or microvm.vsock.ssh.enable:
        wanted.add("openssh-server")
    if any(user.ssh_authorized_keys for user in users):
        wanted.add("openssh-server")
    if any(user.sudo for user in users):
        wanted.add("sudo")
    if system.locale not in ("C.UTF-8", "C", "POSIX"):
        wanted.add("locales")
    if system.timezone != "UTC":
        wanted.add("tzdata")
    return tuple(sorted(wanted))


def contents(
    name: str, microvm: MicroVM, *, installed: frozenset[str], description: str
) -> Contents:
    """Return what the configuration layer of a guest holds beside its declared files."""
    data = resources.files("microvm.guests.debian") / "data"
    files = {f"{LIBRARY}/{script}": ((data / script).read_bytes(), 0o755) for script in _SCRIPTS}
    if any(map(_may_grow, microvm.volumes)):
        files[f"{LIBRARY}/grow"] = ((data / "grow").read_bytes(), 0o755)
    links: dict[str, str] = {}
    units = [*_UNITS]
    started = [*_STARTED]
    if "openssh-server" in installed:
        units.append("microvm-ssh-keys.service")
        started.append("microvm-ssh-keys.service")
        files["/etc/ssh/sshd_config.d/microvm.conf"] = (_sshd(), 0o644)
        links["/etc/systemd/system/sockets.target.wants/ssh.socket"] = (
            "/lib/systemd/system/ssh.socket"
        )
        links["/etc/systemd/system/sshd-keygen.service"] = "/dev/null"
    files["/usr/lib/systemd/system-shutdown/microvm"] = ((data / "ending").read_bytes(), 0o755)
    for unit in units:
        files[f"/etc/systemd/system/{unit}"] = ((data / unit).read_bytes(), 0o644)
    links["/etc/systemd/system/shutdown.target.wants/microvm-stopping.service"] = (
        "../microvm-stopping.service"
    )
    for unit in started:
        links[f"/etc/systemd/system/sysinit.target.wants/{unit}"] = f"../{unit}"
    for verb in ("poweroff", "reboot", "halt"):
        files[f"/usr/local/sbin/{verb}"] = ((data / "poweroff").read_bytes(), 0o755)
    links |= _masks(microvm, installed)
    files |= _settings(name, microvm, description)
    links |= _network_links(microvm)
    if microvm.devices:
        path = "/etc/systemd/system/microvm-job.service.d/devices.conf"
        files[path] = (_DEVICES.encode(), 0o644)
    for unit, text in _forwards(microvm):
        files[f"/etc/systemd/{unit}"] = (text.encode(), 0o644)
        if unit.endswith(".socket"):
            name = unit.rpartition("/")[2]
            links[f"/etc/systemd/system/sysinit.target.wants/{name}"] = f"../{name}"
    return Contents(files=files, links=links, directories={"/var/lib/microvm": 0o755})


def _may_grow(volume: Volume) -> bool:
    """Return whether the initrd may have to grow a volume's file system."""
    mounted = volume.mount_point is not None and not volume.read_only
    return mounted and volume.fs_type != "vfat"


def _masks(microvm: MicroVM, installed: frozenset[str]) -> dict[str, str]:
    links = {f"/etc/systemd/system/{unit}": "/dev/null" for unit in _MASKED}
    links |= {f"/etc/systemd/system-generators/{name}": "/dev/null" for name in _GENERATORS}
    if "dbus" not in installed:
        links["/etc/systemd/system/systemd-logind.service"] = "/dev/null"
    # No session manager refuses logins while the guest starts: there is nothing to wait for.
    links["/etc/tmpfiles.d/systemd-nologin.conf"] = "/dev/null"
    if all(volume.mount_point != "/" for volume in microvm.volumes):
        links["/etc/systemd/system/tmp.mount"] = "/dev/null"  # / is a tmpfs already
    # Ctrl-Alt-Del is how a host asks for a shutdown where there is no power button.
    links["/etc/systemd/system/ctrl-alt-del.target"] = "/lib/systemd/system/poweroff.target"
    return links


def _settings(name: str, microvm: MicroVM, description: str) -> dict[str, tuple[bytes, int]]:
    texts = {
        "/etc/microvm/autologin": f"{microvm.system.autologin}\n",
        "/etc/microvm/description": f"{description}\n",
        "/etc/microvm/mounts": "".join(_mounts(name, microvm)),
        "/etc/machine-id": "",
        "/etc/systemd/network/80-microvm.network": _NETWORK,
        "/etc/systemd/journald.conf.d/microvm.conf": _JOURNAL,
        "/etc/systemd/system.conf.d/microvm.conf": _MANAGER,
    }
    for unit in _AFTER_GREETING:
        texts[f"/etc/systemd/system/{unit}.d/microvm.conf"] = (
            "[Unit]\nAfter=microvm-greeting.service\n"
        )
    # A shutdown right after the greeting waits: a journal that is starting complains loudly else.
    # One that is told of a program as the guest ends finds no manager, and says so on the console.
    texts["/etc/systemd/system/systemd-journald.service.d/microvm.conf"] += (
        "Before=shutdown.target\n[Service]\nEnvironment=SYSTEMD_LOG_LEVEL=crit\n"
    )
    return {path: (text.encode(), 0o644) for path, text in texts.items()}


def _network_links(microvm: MicroVM) -> dict[str, str]:
    """Start the network only where there is one."""
    wants = "/etc/systemd/system/sysinit.target.wants"
    if not microvm.interfaces:
        masked = (
            "systemd-networkd.service", "systemd-networkd.socket", "systemd-resolved.service",
            "systemd-networkd-wait-online.service",
        )  # fmt: skip
        return {f"/etc/systemd/system/{unit}": "/dev/null" for unit in masked}
    return {
        f"{wants}/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
        f"{wants}/systemd-resolved.service": "/lib/systemd/system/systemd-resolved.service",
        "/etc/systemd/system/systemd-networkd-wait-online.service": "/dev/null",
        "/etc/resolv.conf": "/run/systemd/resolve/stub-resolv.conf",
    }


def _forwards(microvm: MicroVM) -> Iterator[tuple[str, str]]:
    """Yield path below /etc/systemd and text of what opens ports for the guest."""
    to_host = [(i, one) for i, one in enumerate(microvm.forward_ports) if one.origin == "guest"]
    if any(":" in forwards.target(forward)[0] for _, forward in to_host):
        yield "system/microvm-online.service.d/ipv6.conf", _ONLINE_V6
    found = [(index, one) for index, one in to_host if not forwards.is_direct(one)]
    for index, forward in found:
        host, port = forwards.target(forward)
        words = {
            "about": f"Port {port} of the host, seen at {host}",
            "entrance": forwards.written(*forwards.entrance(forward)),
            # The last colon counts: brackets around IPv6 would be part of a name there.
            "target": f"{host}:{port}",
        }
        yield f"system/microvm-forward-{index}.socket", _FORWARD_SOCKET.format(**words)
        yield f"system/microvm-forward-{index}.service", _FORWARD_SERVICE.format(**words)
    addresses = dict.fromkeys(forwards.entrance(forward)[0] for _, forward in found)
    if own := [address for address in addresses if not forwards.is_local(address)]:
        lines = (f"Address={a}/{128 if ':' in a else 32}\n" for a in own)
        yield "network/80-microvm-lo.network", f"[Match]\nName=lo\n\n[Network]\n{''.join(lines)}"


def _sshd() -> bytes:
    keys = "".join(
        f"HostKey /var/lib/microvm/ssh/ssh_host_{kind}_key\n" for kind in ("ed25519", "ecdsa")
    )
    return keys.encode()


def mount_order(paths: Iterator[tuple[str, str]]) -> list[str]:
    """Return the lines of mounts sorted so that a parent comes before what lies in it."""
    return [line for _, line in sorted(paths, key=lambda pair: pair[0].count("/"))]


def _mounts(name: str, microvm: MicroVM) -> list[str]:
    return mount_order(_mount_lines(name, microvm))


def _mount_lines(name: str, microvm: MicroVM) -> Iterator[tuple[str, str]]:
    for index, volume in enumerate(microvm.volumes):
        if volume.mount_point not in (None, "/"):
            yield volume.mount_point, _volume_line(name, index, volume)
    for share in microvm.shares:
        yield share.mount_point, _share_line(share)


def _volume_line(name: str, index: int, volume: Volume) -> str:
    point = escape(volume.mount_point or "")
    options = "ro" if volume.read_only else "rw"
    uuid = filesystem_uuid(name, volume)
    return f"volume {index} {uuid} {point} {volume.fs_type} {options}\n"


def _share_line(share: Share) -> str:
    options = "ro" if share.read_only else "rw"
    if share.dax:
        options += ",dax"
    return f"share {share.tag} {escape(share.mount_point)} {share.proto} {options}\n"


def escape(path: str) -> str:
    r"""Return a path for the mounts file: spaces, backslashes and the like as octal `\0NNN`."""
    plain = set(b"/.-_+,:@=" + bytes(range(48, 58)) + bytes(range(65, 91)) + bytes(range(97, 123)))
    return "".join(chr(c) if c in plain else f"\\0{c:03o}" for c in path.encode())
