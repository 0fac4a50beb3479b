"""Debian guests resolved and built for real: what survives, what is the same, what is told."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from microvm import guests
from microvm.errors import CommandFailed, HostError, MicroVMError, SpecError
from microvm.model.codec import from_plain, to_plain
from microvm.model.declaration import MicroVM
from microvm.model.guest import GuestSystem, SystemLock
from microvm.model.progress import Event, silent
from microvm.model.system import DebianSystem, File, Repository, Unit, User
from microvm.store import Store

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

MIRROR = os.environ.get("MICROVM_TEST_MIRROR")
SETXATTR = """perl -e '
my $file = q(/opt/a); my $name = q(security.capability);
my $value = pack(q(V5), 0x02000001, 1 << 10, 0, 0, 0);
syscall(188, $file, $name, $value, 20, 0) == 0 or die $!;
$name = q(user.mark); $value = q(hi);
syscall(188, $file, $name, $value, 2, 0) == 0 or die $!'"""
"""Sets a file capability and a user attribute: setxattr(2) by its number on x86-64."""


def declare(**fields: object) -> MicroVM:
    return MicroVM(system=DebianSystem(mirror=MIRROR, **fields))


@pytest.fixture(scope="module")
def store(guest_store) -> Store:
    return Store.open(guest_store)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def make(store, project):
    """Resolve and build a declaration; returns the system and its lock."""
    known: list[SystemLock] = []

    def build(
        microvm: MicroVM, *, old: SystemLock | None = None, shared=(), events=None, into=store
    ) -> tuple[GuestSystem, SystemLock]:
        told = events.append if events is not None else silent
        lock = guests.resolve(
            "web", microvm, shared_packages=shared, store=into, project_dir=project, old=old,
            neighbours=known, update=False, progress=told,
        )  # fmt: skip
        known.append(lock)
        system = guests.build("web", microvm, lock, store=into, project_dir=project, progress=told)
        return system, lock

    return build


RICH = declare(
    packages=("tree",),
    users={"ann": User(sudo=True, groups=("video", "own"), password_hash="")},
    timezone="Europe/Berlin",
    locale="de_DE.UTF-8",
    autologin="ann",
    files={
        "/home/ann/.config/a/b": File(text="x", owner="ann"),
        "/var/log/own": File(text="declared"),
    },
    units={
        "hi.service": Unit(
            text="[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
        )
    },
    run=(
        "rm -r /usr/share/perl5/Debconf; mkdir -p /usr/share/perl5/Debconf/Element; "
        "touch /usr/share/perl5/Debconf/Element/only",
        "rm /usr/bin/tree; mkdir /usr/bin/tree",
        "touch /opt/a; ln /opt/a /opt/b; chmod 4755 /opt/a; mkfifo /opt/fifo",
        r"touch '/opt/odd \ name " "\n\x07\xe4'; truncate -s 50M /opt/sparse",
        SETXATTR,
        "sleep 1000 & true",
        "mv /usr/lib/systemd/catalog /usr/lib/systemd/moved",
    ),
)


def digests(system: GuestSystem, store: Store) -> dict[str, str]:
    found = {
        layer.name: hashlib.sha256((store.item(layer.image) / "image").read_bytes()).hexdigest()
        for layer in system.layers
        if layer.image
    }
    initrd = (store.item(system.initrd) / "initrd").read_bytes()
    return {**found, "initrd": hashlib.sha256(initrd).hexdigest(), "system": system.name}


@pytest.fixture(scope="module")
def rich(make):
    return make(RICH)


@pytest.fixture(scope="module")
def rich_root(rich, store, tmp_path_factory):
    """The rich guest's root as its initrd mounts it: images below, an overlay over them."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount images")
    system, _ = rich
    directory = tmp_path_factory.mktemp("root")
    mounted = []
    try:
        for number, layer in enumerate(system.layers):
            target = directory / str(number)
            target.mkdir()
            image = store.item(layer.image) / "image"
            done = subprocess.run(
                ["mount", "-t", layer.kind, "-o", "loop,ro", image, target],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"this host can't mount {layer.kind}: {done.stderr.strip()}")
            mounted.append(target)
        merged = directory / "merged"
        merged.mkdir()
        lowers = ":".join(str(path) for path in reversed(mounted))
        subprocess.run(
            ["mount", "-t", "overlay", "-o", f"lowerdir={lowers}", "overlay", merged], check=True
        )
        mounted.append(merged)
        yield merged
    finally:
        for target in reversed(mounted):
            subprocess.run(["umount", target], check=True)


def test_what_upper_layers_removed_stays_removed(rich_root):
    assert [path.name for path in rich_root.glob("usr/share/perl5/Debconf/*")] == ["Element"]
    assert [path.name for path in rich_root.glob("usr/share/perl5/Debconf/Element/*")] == ["only"]
    assert (rich_root / "usr/bin/tree").is_dir()
    assert not (rich_root / "usr/lib/systemd/catalog").exists()
    assert list((rich_root / "usr/lib/systemd/moved").iterdir())


def test_links_modes_attributes_and_odd_names_survive(rich_root):
    first, second = (rich_root / "opt/a").stat(), (rich_root / "opt/b").stat()
    assert (first.st_ino, first.st_nlink, first.st_mode & 0o7777) == (second.st_ino, 2, 0o4755)
    assert (rich_root / "opt/fifo").is_fifo()
    assert (rich_root / "opt/odd \\ name \n\x07\xe4").exists()
    assert (rich_root / "opt/sparse").stat().st_size == 50 << 20
    assert os.getxattr(rich_root / "opt/a", "user.mark") == b"hi"
    assert os.getxattr(rich_root / "opt/a", "security.capability")[:4] == b"\x01\0\0\x02"


def test_no_mark_of_overlayfs_and_no_device_is_left(rich_root):
    for directory, names, files in os.walk(rich_root):
        for name in (*names, *files):
            path = Path(directory, name)
            if path.is_symlink():
                continue
            assert not path.is_char_device(), path
            assert not path.is_block_device(), path
            assert not [mark for mark in os.listxattr(path) if "overlay" in mark], path


def test_accounts_files_and_units_are_as_declared(rich_root):
    passwd = (rich_root / "etc/passwd").read_text()
    assert "ann:x:1000:1000::/home/ann:/bin/bash\n" in passwd
    assert (rich_root / "home/ann/.config/a").stat().st_uid == 1000
    assert (rich_root / "var/log/own").read_text() == "declared"
    wants = rich_root / "etc/systemd/system/multi-user.target.wants"
    assert (wants / "hi.service").is_symlink()
    assert str((rich_root / "etc/localtime").readlink()).endswith("Europe/Berlin")
    assert (rich_root / "usr/lib/locale/locale-archive").exists()


def test_nothing_of_the_build_stays_in_the_guest(rich_root):
    assert (rich_root / "etc/machine-id").read_bytes() == b""
    for name in ("var/log/dpkg.log", "usr/sbin/policy-rc.d", "etc/passwd-", "var/lib/dpkg/lock"):
        assert not (rich_root / name).exists(), name
    assert not list(rich_root.glob("etc/ssh/ssh_host_*"))
    assert not list(rich_root.glob("var/cache/apt/*"))
    assert list(rich_root.glob("usr/share/doc/*/copyright"))
    assert not list(rich_root.glob("usr/share/man/man1/*"))


def test_another_store_gives_the_same_bytes_and_needs_no_network(rich, store, tmp_path):
    system, lock = rich
    other = Store.open(tmp_path / "store")
    for package in store.packages.iterdir():
        shutil.copyfile(package, other.packages / package.name)
    argv = [sys.executable, *again(lock, tmp_path)]
    if os.geteuid() == 0:
        argv = ["unshare", "--net", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = from_plain(GuestSystem, json.loads(done.stdout))
    assert digests(built, other) == digests(system, store)


def again(lock: SystemLock, directory: Path) -> list[str]:
    """Return the arguments that make Python build the rich guest in the directory's store."""
    (directory / "again.py").write_text(AGAIN)
    (directory / "again.json").write_text(json.dumps([to_plain(RICH), to_plain(lock)]))
    return [str(directory / "again.py"), str(directory)]


AGAIN = """
import json, sys
from pathlib import Path
from microvm import guests
from microvm.model.codec import from_plain, to_plain
from microvm.model.declaration import MicroVM
from microvm.model.guest import SystemLock
from microvm.model.progress import silent
from microvm.store import Store

directory = Path(sys.argv[1])
declared, locked = json.loads((directory / "again.json").read_text())
system = guests.build(
    "web", from_plain(MicroVM, declared), from_plain(SystemLock, locked),
    store=Store.open(directory / "store"), project_dir=directory, progress=silent,
)
print(json.dumps(to_plain(system)))
"""


def test_an_ordinary_user_gets_the_same_bytes_as_root(rich, store, user_cli):
    system, lock = rich
    argv = again(lock, user_cli.home)
    for package in store.packages.iterdir():
        target = user_cli.store / ".packages" / package.name
        if not target.exists():
            shutil.copyfile(package, target)
    done = subprocess.run(
        [*user_cli.python, *argv], cwd=user_cli.home, env=user_cli.env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = from_plain(GuestSystem, json.loads(done.stdout))
    assert digests(built, Store(user_cli.store)) == digests(system, store)


def test_a_changed_file_makes_only_the_configuration_anew(make, store):
    first, _ = make(declare(files={"/etc/one": File(text="1")}))
    second, _ = make(declare(files={"/etc/one": File(text="2")}))
    assert first.layers[:-1] == second.layers[:-1]
    assert first.layers[-1].name == second.layers[-1].name == "configuration"
    assert first.layers[-1] != second.layers[-1]


def test_guests_of_a_project_share_base_and_defaults(make):
    first, _ = make(declare(), shared=("tree",))
    second, lock = make(declare(packages=("netcat-openbsd",)), shared=("tree",))
    assert [layer.name for layer in second.layers] == [
        "kernel", "base", "defaults", "packages", "configuration",
    ]  # fmt: skip
    assert first.layers[:3] == second.layers[:3]
    own = {package.name for package in lock.layers[-1].packages}
    assert "netcat-openbsd" in own
    assert "libc6" not in own


def test_a_lock_is_kept_while_it_answers_and_a_package_more_leaves_the_rest(make):
    _, lock = make(declare())
    _, same = make(declare(), old=lock)
    assert same is lock
    events: list[Event] = []
    _, more = make(declare(packages=("tree",)), old=lock, events=events)
    assert more.mirrors == lock.mirrors
    assert more.layers[1] == lock.layers[1]
    assert not [event for event in events if event.step == "package lists"]


def test_without_images_only_trees_are_made(make, store):
    system, _ = make(replace(declare(), store_on_disk=False))
    assert {layer.image for layer in system.layers} == {None}
    assert all((store.item(layer.tree) / "tree").is_dir() for layer in system.layers)


def test_a_squashfs_ends_with_the_block_that_names_it(make, store, tool):
    tool("mksquashfs")
    system, _ = make(replace(declare(), store_disk_type="squashfs"))
    for layer in system.layers:
        with (store.item(layer.image) / "image").open("rb") as image:
            image.seek(-4096, os.SEEK_END)
            assert image.read().rstrip(b"\0") == f"microvm-layer {layer.uuid}\n".encode()


def test_a_kernel_of_ones_own_comes_from_a_directory(make, store, project):
    if os.geteuid() != 0:
        pytest.skip("needs root to look into a layer")
    stock, lock = make(declare())
    kernel = project / "kernel"
    shutil.copytree(store.item(stock.kernel) / "tree/usr/lib/modules", kernel / "lib/modules")
    shutil.copyfile(store.item(stock.kernel) / "vmlinuz", kernel / "vmlinuz")
    (kernel / "vmlinuz").chmod(0o600)
    own, own_lock = make(declare(kernel="kernel"))
    assert own_lock.kernel_release == ""
    assert own.kernel_release == stock.kernel_release == lock.kernel_release
    with pytest.raises(MicroVMError, match="no kernel"):
        make(declare(kernel="elsewhere"))


def test_a_guest_with_9p_gets_the_generic_kernel_and_says_so(make, store):
    events: list[Event] = []
    microvm = replace(declare(), store_on_disk=False, store_proto="9p")
    system, lock = make(microvm, events=events)
    assert "9p" in system.features
    assert "cloud" not in lock.kernel_release
    assert [event for event in events if "generic" in event.detail]


@pytest.fixture(scope="module")
def deb(project, tmp_path_factory):
    """A package of our own with a file that a later test asks for."""
    tree = tmp_path_factory.mktemp("deb")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: odd-one\nVersion: 1:2.0\nArchitecture: all\nDepends: libc6\n"
        "Maintainer: Test <test@example.org>\nDescription: test\n"
    )
    (tree / "usr/share/odd").mkdir(parents=True)
    (tree / "usr/share/odd/file").write_text("odd\n")
    path = project / "odd-one.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, capture_output=True
    )
    return path


def holds(store: Store, system: GuestSystem, layer: str, path: str) -> bool:
    (tree,) = (each.tree for each in system.layers if each.name == layer)
    return (store.item(tree) / "tree" / path).exists()


def test_a_local_package_is_installed_with_what_it_needs(make, store, deb):
    system, lock = make(declare(packages=("./odd-one.deb",)))
    (package,) = [p for p in lock.layers[-1].packages if p.name == "odd-one"]
    assert (package.version, package.url) == ("1:2.0", "")
    if os.geteuid() == 0:
        assert holds(store, system, "packages", "usr/share/odd/file")
    tree = store.item(system.layers[-2].tree)
    assert package.sha256 in (tree / "packages").read_text().split()
    kept = store.packages / f"{package.sha256}.deb"
    kept.unlink()
    make(declare(packages=("./odd-one.deb",)), old=lock)
    assert kept.exists()


def test_a_trusted_repository_on_this_machine_gives_packages(make, store, project, deb):
    repository = project / "repository"
    repository.mkdir()
    shutil.copyfile(deb, repository / "odd-one.deb")
    control = subprocess.run(["dpkg-deb", "-f", deb], capture_output=True, text=True, check=True)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    (repository / "Packages").write_text(
        f"{control.stdout}Filename: ./odd-one.deb\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
    )
    url = f"file://{repository}"
    untrusted = Repository(url=url, suite="./")
    with pytest.raises(MicroVMError, match="Release"):
        make(declare(repositories=(untrusted,), packages=("odd-one",)))
    trusted = replace(untrusted, trusted=True)
    _, lock = make(declare(repositories=(trusted,), packages=("odd-one",)))
    assert "odd-one" in {package.name for package in lock.layers[-1].packages}
    assert "file:" not in lock.sources


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"release": "trixy"}, SpecError, "trixy"),
        ({"packages": ("openssh-servr",)}, MicroVMError, "Unable to locate package"),
        ({"components": ("maim",)}, MicroVMError, "'maim'"),
        ({"packages": ("systemd-sysv", "sysvinit-core")}, MicroVMError, "Conflicts"),
        ({"packages": ("./none.deb",)}, HostError, "none.deb"),
        ({"timezone": "Europe/Nowhere"}, MicroVMError, "Nowhere"),
        ({"locale": "xx_YY.UTF-8"}, CommandFailed, "xx_YY"),
        ({"autologin": "bob"}, MicroVMError, "bob"),
        ({"units": {"none.service": Unit(enable=True)}}, CommandFailed, "none.service"),
        ({"files": {"/etc/x": File(text="", owner="bob")}}, MicroVMError, "/etc/x.*bob"),
        ({"files": {"/etc": File(text="")}}, MicroVMError, "/etc"),
        ({"files": {"/etc/x": File(source="none")}}, HostError, "none"),
        (
            {"run": ("true", "echo why it failed; exit 7")},
            CommandFailed,
            r"(?s)system\.run\.1.*status 7.*why it failed",
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_error(make, store, fields, error, words):
    before = set(store.abandoned())  # other tests kill builds of this store
    with pytest.raises(error, match=words):
        make(declare(**fields))
    assert set(store.abandoned()) <= before


def test_a_full_disk_is_told_and_leaves_a_store_that_works(make, store, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    _, lock = make(declare())
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", small], check=True)
    try:
        try:
            os.setxattr(small, "user.try", b"")
        except OSError:
            pytest.skip("tmpfs has no user attributes before Linux 6.6")
        full = Store.open(small)
        for package in (package for layer in lock.layers for package in layer.packages):
            name = f"{package.sha256}.deb"
            shutil.copyfile(store.packages / name, full.packages / name)

        def build() -> GuestSystem:
            return guests.build(
                "web", declare(), lock, store=full, project_dir=tmp_path, progress=silent
            )

        with pytest.raises(HostError, match="no space left"):
            build()
        assert full.abandoned() == []
        assert full.verify().problems == ()
        subprocess.run(["mount", "-o", "remount,size=1g", small], check=True)
        assert build().layers
    finally:
        subprocess.run(["umount", small], check=True)


ESCAPE = """perl -e '
mkdir q(/opt/jail); chroot q(/opt/jail) or die; chdir q(..) for 1 .. 40; chroot q(.) or die;
exit 3 if -e q({secret}); open my $out, q(>), q({directory}/written); exit 0'"""


def test_commands_cannot_leave_the_root_even_as_its_root(make, tmp_path, tmp_path_factory):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    ours = tmp_path_factory.getbasetemp().parent
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to(ours):
            directory.chmod(0o755)
    tmp_path.chmod(0o777)
    make(
        declare(
            run=(
                "test ! -e /mnt/store",
                f"test ! -e /proc/1/root{secret}",
                f"! ls /proc/1/cwd{secret} /proc/1/fd",
                ESCAPE.replace("{secret}", str(secret)).replace("{directory}", str(tmp_path)),
                # A host that is a container may refuse the mount.
                f"mkdir /opt/p; ! mount -t proc proc /opt/p || test ! -e /opt/p/1/root{secret}",
                "! kill -9 1; kill -9 -1 || true",
            )
        )
    )
    assert not (tmp_path / "written").exists()


def test_the_nearest_names_of_a_package_that_is_not_there_are_told(make):
    with pytest.raises(MicroVMError) as caught:
        make(declare(packages=("openssh-servr",)))
    assert "openssh-server" in (caught.value.hint or "")


def test_an_unreachable_mirror_is_told_with_apts_words(make):
    with pytest.raises(CommandFailed, match=r"127\.0\.0\.1:1"):
        make(MicroVM(system=DebianSystem(mirror="http://127.0.0.1:1/debian")))


def test_a_mirror_that_stalls_is_given_up(make):
    # The kernel takes the connections, and nobody ever answers.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        with pytest.raises(MicroVMError, match=rf"127\.0\.0\.1:{port}|no end"):
            make(MicroVM(system=DebianSystem(mirror=f"http://127.0.0.1:{port}/debian")))


def test_a_release_file_that_was_changed_on_the_way_is_refused(make, store, tmp_path):
    make(declare())
    signed = next(store.lists.glob("*-lists/*_dists_trixie_InRelease"))
    dist = tmp_path / "mirror/dists/trixie"
    dist.mkdir(parents=True)
    text = signed.read_text().replace("Suite: stable", "Suite: unstable")
    (dist / "InRelease").write_text(text)
    system = DebianSystem(mirror=f"file://{tmp_path}/mirror", updates=False)
    with pytest.raises(CommandFailed, match=r"(?i)signature|BADSIG"):
        make(MicroVM(system=system))


def test_a_locked_package_that_the_mirror_no_longer_has_names_the_way_out(make, tmp_path):
    _, lock = make(declare())
    base = lock.layers[1]
    gone = replace(base.packages[0], sha256="0" * 64, url="http://127.0.0.1:1/gone.deb")
    broken = replace(lock, layers=(lock.layers[0], replace(base, packages=(gone,))))
    empty = Store.open(tmp_path / "store")
    with pytest.raises(MicroVMError) as caught:
        guests.build("web", declare(), broken, store=empty, project_dir=tmp_path, progress=silent)
    assert "microvm lock --update" in (caught.value.hint or "")
