"""A hostile project's commands, built as root: they change nothing on the host and reach nobody."""

import ctypes
import os
import platform
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from place import mounts_of

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

SECRET = "of-the-host-and-of-nobody-else"
LEFT_RUNNING = "98763"
SETTINGS = ("kernel/core_pattern", "kernel/hostname", "kernel/printk", "net/ipv4/ip_forward")


@pytest.fixture
def public():
    """A directory that every user of this host may enter and write to."""
    directory = Path(tempfile.mkdtemp(prefix="microvm-test-", dir="/var/tmp"))
    directory.chmod(0o777)
    (directory / "secret").write_text(SECRET)
    (directory / "secret").chmod(0o644)
    yield directory
    shutil.rmtree(directory)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


def host_state() -> dict[str, object]:
    settings = {name: Path("/proc/sys", name).read_text() for name in SETTINGS}
    return {**settings, "mounts": mounts_of("self"), "links": sorted(socket.if_nameindex())}


def perl(*lines: str) -> str:
    """Return a command that runs perl, the one language that every guest has."""
    return f"perl -MSocket -e '{'; '.join(lines)}'"


def run(place, *commands: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Build with these commands; each of them says by its status whether it was kept out."""
    listed = ", ".join(f"'''{command}'''" for command in commands)
    place.declare(text or secrets.token_hex(8), f"run = [{listed}]")
    built = place.build()
    assert "Traceback" not in built.stderr, built.stderr
    return built


def kept_out(place, *commands: str) -> None:
    before = host_state()
    built = run(place, *commands)
    assert built.returncode == 0, built.stderr
    assert host_state() == before
    assert place.left() == []


@contextmanager
def listening(family: int, address):
    with socket.socket(family) as server:
        server.bind(address)
        server.listen(64)
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody came


def test_no_server_of_the_host_is_reached(place, public):
    path = str(public / "socket")
    name = f"\0microvm-test-{secrets.token_hex(8)}"
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0)) as tcp,
        listening(socket.AF_UNIX, name),
        listening(socket.AF_UNIX, path),
    ):
        Path(path).chmod(0o777)
        port = tcp.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            tcp.accept()[0].close()  # it is there
        abstract = name.replace("\0", "\\0")
        kept_out(
            place,
            perl("socket S,2,1,0", f"exit !!connect S, sockaddr_in {port}, INADDR_LOOPBACK"),
            perl("socket S,1,1,0", f"exit !!connect S, pack(q(S), 1) . qq({abstract})"),
            perl("socket S,1,1,0", f"exit !!connect S, sockaddr_un(q({path}))"),
            'test "$(ls /sys/class/net /proc/sys/net/ipv4/conf 2>/dev/null | grep -c eth)" = 0',
            "! grep -q 00000000 /proc/net/route",  # a way to other hosts
        )


def test_no_file_of_the_host_is_read_or_written(place, public):
    before = contents(public)
    secret, written = public / "secret", public / "written"
    kept_out(
        place,
        f"! cat {secret}",
        f"! touch {written}",
        f"! cat /proc/1/root{secret}",
        f"! cat /proc/1/cwd{secret}",
        "! ls /proc/1/fd /proc/1/map_files",
        "! cat /proc/1/environ /proc/1/mem",
        # Both are refused where the host itself is a container and has /proc covered in part.
        f"mkdir /opt/p; ! mount -t proc proc /opt/p || test ! -e /opt/p/1/root{secret}",
        # Every descriptor that a command has: its standard ones, and what reads the list.
        "test \"$(ls /proc/self/fd | wc -l)\" = 4",
        f"for fd in /proc/self/fd/*; do ! test -e $fd/..{secret}; done",
        f"! nsenter -t 1 -m cat {secret}",
        f"! unshare -Urm true || unshare -Urm sh -c \"! cat {secret}\"",
        perl(
            "mkdir q(/opt/jail)", "chroot q(/opt/jail) or die", "chdir q(..) for 1 .. 40",
            "chroot q(.) or die", f"exit 3 if -e q({secret})", f"open my $out, q(>), q({written})",
            "exit 0",
        ),
    )  # fmt: skip
    assert contents(public) == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls by their x86-64 numbers")
def test_our_own_process_is_not_traced_and_no_kernel_setting_changes(place):
    ptrace, process_vm_readv, settimeofday, kexec, init_module = 101, 310, 164, 246, 175
    kept_out(
        place,
        perl(f"exit(syscall({ptrace}, 16, 1, 0, 0) == 0)"),
        perl(
            "my $b = q( ) x 8", "my $v = pack(q(PQ), $b, 8)", "my $r = pack(q(QQ), 4194304, 8)",
            f"exit(syscall({process_vm_readv}, 1, $v, 1, $r, 1, 0) >= 0)",
        ),
        perl("my $t = pack(q(QQ), time, 0)", f"exit(syscall({settimeofday}, $t, 0) == 0)"),
        perl(f"exit(syscall({kexec}, 0, 0, 0, 0) == 0)"),
        perl("my $m = q(x)", f"exit(syscall({init_module}, $m, 1, $m) == 0)"),
        "! sh -c \"echo x >/proc/sys/kernel/core_pattern\"",
        "! sh -c \"echo h >/proc/sysrq-trigger\"",
        "! sh -c \"echo 1 >/proc/sys/kernel/printk\"",
        "! sh -c \"echo -1000 >/proc/1/oom_score_adj\"",
        "mkdir -p /opt/m; for kind in sysfs cgroup2 devtmpfs debugfs tracefs securityfs; do "
        "! mount -t $kind none /opt/m || ! ls /opt/m | grep -q . ; done",
        "mkdir -p /opt/n; mount -t tmpfs none /opt/n; mount --make-rshared /opt/n; "
        "mount --bind /opt/n /mnt",
        "mknod /tmp/sda b 8 0 && exit 1 || true",
        "hostname of-somebody-else || true",
        "kill -9 1 || true",
        "kill -9 -1 || true",
    )  # fmt: skip


def _with_a_key() -> None:
    """Take a new session keyring that holds a secret, as a login may have (keyctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(250, 1, None)
    libc.syscall(248, b"user", b"microvm-test", SECRET.encode(), len(SECRET), -3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls by their x86-64 numbers")
def test_the_keys_of_who_builds_stay_with_who_builds(place):
    reads = (
        "my ($type, $name) = (qq(user), qq(microvm-test))",
        "exit(syscall(249, $type, $name, 0, 0) >= 0)",
    )
    place.declare("keys", f"run = ['''{perl(*reads)}''', '! grep -q microvm-test /proc/keys']")
    shown = subprocess.run(
        ["cat", "/proc/keys"], preexec_fn=_with_a_key, capture_output=True, text=True, check=False
    )
    if "microvm-test" not in shown.stdout:
        pytest.skip("this kernel has no keyrings, or forbids them here")
    built = subprocess.run(
        place.cli.command("build", str(place.project)), env=place.cli.env,
        preexec_fn=_with_a_key, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr


def test_a_root_whose_links_lead_to_the_host_is_cleaned_in_itself_alone(place, public):
    """What a layer must not hold is deleted after the commands, by us, who see the host."""
    for name in ("log/of-the-host", "tmp/of-the-host", "lib/apt/lists/of-the-host", "machine-id"):
        path = public / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        path.chmod(0o666)
    for directory in public.rglob("*/"):
        directory.chmod(0o777)
    before = contents(public)
    for replaced in ("/var", "/var/log", "/var/lib", "/etc"):
        name = replaced.lstrip("/")
        built = run(
            place, f"mkdir -p /opt/away; mv {replaced} /opt/away; ln -s {public} {replaced}"
        )
        assert "Read-only" not in built.stderr, name
        assert contents(public) == before, name
    inside = ("/etc/passwd", "/usr/sbin/policy-rc.d", "/etc/resolv.conf")
    built = run(place, *(f"ln -sfn {public}/log/of-the-host {path}" for path in inside))
    assert built.returncode == 0, built.stderr
    assert contents(public) == before


def test_setuid_files_of_a_guest_are_out_of_every_users_reach(place):
    built = run(place, "cp /bin/sh /opt/suid; chmod 6755 /opt/suid; chmod 777 / /opt")
    assert built.returncode == 0, built.stderr
    trees = list(place.store.glob("*/tree"))
    assert any((tree / "opt/suid").exists() for tree in trees) or os.geteuid() != 0
    for tree in trees:
        info = tree.stat()
        assert info.st_mode & 0o777 == 0o700, tree
        assert info.st_uid >= 65536, "the tree belongs to a user of the host"
    assert (place.store / ".tmp").stat().st_mode & 0o777 == 0o700


def test_what_commands_leave_running_ends_with_them_and_their_number_has_a_limit(place):
    daemon = f'setsid sh -c "trap : TERM HUP INT; sleep {LEFT_RUNNING}" >/dev/null 2>&1 &'
    kept_out(
        place,
        f"{daemon} true",
        f"unshare -Urpf --mount-proc {daemon} true",
        'grep -q "^Max processes  *16384  *16384" /proc/self/limits',
        "yes 2>&1 | head -c 50000000",
    )
    assert f"sleep\0{LEFT_RUNNING}" not in "\n".join(command_lines())


def command_lines() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield file.read_text(errors="replace")
