"""Declarations that once did something else than they said, or ended in a traceback."""

import os
import subprocess

import pytest

import microvm
from microvm.errors import MicroVMError, Problem, SpecError
from microvm.guests.debian.accounts import Accounts
from microvm.guests.debian.apt import Apt
from microvm.guests.debian.runtime import KERNEL_PARAMS
from microvm.guests.debian.sources import Source
from microvm.hypervisors import hypervisor
from microvm.hypervisors.kernel_line import LIMIT, ROOM
from microvm.hypervisors.qemu import PROGRAM
from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM
from microvm.model.devices import Volume, Vsock
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.guest import GuestSystem, Layer
from microvm.model.options import QemuOptions
from microvm.model.runner import Runner
from microvm.model.system import User
from microvm.projects import git, state


def problems(directory, declared, **options):
    directory.mkdir(exist_ok=True)
    (directory / "microvm.toml").write_text(f"[microvms.a]\n{declared}\n")
    return microvm.load(str(directory), **options).problems


def planned(vm, **facts):
    kinds = ("kernel", "base", "defaults", "packages", "configuration")
    layers = tuple(
        Layer(name=name, tree="t", image="i", kind="squashfs", uuid="0" * 36) for name in kinds
    )
    system = GuestSystem(
        name="s", source="debian", description="d", architecture="x86_64", kernel="k",
        kernel_release="1", initrd="k", features=(), layers=layers, kernel_params=KERNEL_PARAMS,
    )  # fmt: skip
    host = Facts(**{
        "accelerator": Accelerator(kind="tcg", reason=""),
        "programs": {PROGRAM: Program(path="/usr/bin/qemu", version=(10, 0))},
        "state_dir": "/state", "project_dir": "/p", "store_dir": "/store", "machine_id": "1" * 32,
        "vhost_vsock": True,
        **facts,
    })  # fmt: skip
    assert hypervisor("qemu").check(vm, host) == []
    return hypervisor("qemu").plan(Runner(schema=1, name="a", microvm=vm, system=system), host)


VOLUME = '[[microvms.a.volumes]]\nsize = 500\nimage = "{}"'
MOUNTED = '[[microvms.a.volumes]]\nimage = "v"\nsize = 500\nmount_point = "{}"'
SHARED = '[[microvms.a.shares]]\ntag = "s"\nsource = "."\nmount_point = "{}"'
ROOT = '[[microvms.a.volumes]]\nimage = "r"\nsize = 500\nmount_point = "/"\n'
NET = '[[microvms.a.interfaces]]\ntype = "user"\nid = "n"\n'
FORWARD = NET + '[[microvms.a.forward_ports]]\nguest.port = 1\nhost = {{port = 1, address = "{}"}}'


@pytest.mark.parametrize(
    ("declared", "where", "said"),
    [
        # Images and sockets among our own files, or outside the state directory.
        (VOLUME.format("lock"), "volumes.0.image", "our own"),
        (VOLUME.format("current/x"), "volumes.0.image", "our own"),
        (VOLUME.format("./lock"), "volumes.0.image", "our own"),
        (VOLUME.format("qmp.sock"), "volumes.0.image", "our own"),
        (VOLUME.format("root.img.layers"), "volumes.0.image", "our own"),
        (VOLUME.format(".volume.0"), "volumes.0.image", "our own"),
        (VOLUME.format("../x"), "volumes.0.image", "must not contain `..`"),
        (VOLUME.format("/dev/../etc/x"), "volumes.0.image", "must not contain `..`"),
        (VOLUME.format("."), "volumes.0.image", "is a directory"),
        (VOLUME.format("x/"), "volumes.0.image", "is a directory"),
        (VOLUME.format("x") + "\n" + VOLUME.format("./x"), "volumes.1.image", "that of"),
        (VOLUME.format("x" * 256), "volumes.0.image", "at most 255 bytes"),
        (VOLUME.format("ü" * 128), "volumes.0.image", "at most 255 bytes"),
        (VOLUME.format("x/" * 2048 + "x"), "volumes.0.image", "at most 4095 bytes"),
        ('socket = "lock"', "socket", "our own"),
        ('socket = "../x"', "socket", "must not contain `..`"),
        ('socket = "job.sock"', "socket", "that of microvm itself"),
        ('hypervisor = "firecracker"\nsocket = "vsock.sock"', "socket", "that of microvm itself"),
        ('socket = "x"\n' + VOLUME.format("x"), "socket", "that of"),
        # Mounts that a guest can't live with.
        (MOUNTED.format("/../x"), "volumes.0.mount_point", "without `.`, `..`"),
        (MOUNTED.format("/a/./b"), "volumes.0.mount_point", "without `.`, `..`"),
        (MOUNTED.format("/run"), "volumes.0.mount_point", "of the guest's own"),
        (MOUNTED.format("/proc/x"), "volumes.0.mount_point", "of the guest's own"),
        (MOUNTED.format("/usr"), "volumes.0.mount_point", "which a guest starts from"),
        (SHARED.format("/tmp"), "shares.0.mount_point", "empties /tmp"),
        (ROOT + MOUNTED.format("/tmp/x"), "volumes.1.mount_point", "hides what is in /tmp"),
        # Sizes without end.
        ("mem = 16777217", "mem", "at most 16777216"),
        ("mem = 0x" + "f" * 5000, "mem", "a number of 20000 bits"),
        ("mem = nan", "mem", "not a whole number"),
        ("vcpu = 256", "vcpu", "at most 255"),
        ('[[microvms.a.volumes]]\nimage = "x"\nsize = 67108865', "volumes.0.size", "at most"),
        (
            '[[microvms.a.volumes]]\nimage = "x"\nsize = 64\nfs_type = "xfs"',
            "volumes.0.size",
            "xfs needs 300 MiB",
        ),
        # The kernel's command line.
        ("kernel_params = ['a=\"b']", "kernel_params.0", "without spaces and quotes"),
        ('kernel_params = ["--"]', "kernel_params.0", "would go to init"),
        ('kernel_params = ["microvm.root=x"]', "kernel_params.0", "our own"),
        ('kernel_params = ["systemd.machine-id=1"]', "kernel_params.0", "take the place of ours"),
        (f'kernel_params = ["{"x" * ROOM}"]', "kernel_params", f"room for {ROOM}"),
        # What QEMU would take for something else.
        ('cpu = "-x"', "cpu", "a CPU model"),
        ('cpu = "host,help"', "cpu", "does not start"),
        ('qemu.machine_opts.type = "q35"', "qemu.machine_opts.type", "qemu.machine"),
        ('qemu.machine_opts."smp.cpus" = "9"', "qemu.machine_opts.smp.cpus", "vcpu"),
        ('qemu.machine_opts.dumpdtb = "/x"', "qemu.machine_opts.dumpdtb", "not for machine_opts"),
        (NET.replace('"n"', '"0n"'), "interfaces.0.id", "begins with a letter"),
        (NET + 'mac = "00:00:00:00:00:00"', "interfaces.0.mac", "means none"),
        (FORWARD.format("::1"), "forward_ports.0.host.address", "IPv4"),
        (FORWARD.format("999.9"), "forward_ports.0.host.address", "no IP address"),
        (f'credential_files.{"c" * 29} = "microvm.toml"', f"credential_files.{'c' * 29}", "28"),
        ('initrd_path = "nosuch"', "initrd_path", "there is no"),
        ('credential_files.c = "."', "credential_files.c", "is not a file"),
        ('machine_id = "00000000000000000000000000000000"', "machine_id", "means none"),
        # Lines and words of the guest's own files and programs.
        ('system.users.bob.home = "/x:/bin/sh"', "system.users.bob.home", "without a colon"),
        ("system.users.root.uid = 5", "system.users.root.uid", "uid of root is 0"),
        ('system.packages = ["less-"]', "system.packages.0", "a Debian package name"),
        ('system.run = ["a\\u0000b"]', "system.run.0", "without NUL"),
        ('system.mirror = "http://x/\\u009b"', "system.mirror", "URL"),
        ('system.release = "trixy"', "system.release", "no known release"),
        (
            'system.files."/a" = {text = "", owner = "99999"}',
            "system.files.'/a'.owner",
            "end at 65535",
        ),
        (
            'system.files."/a/b".text = ""\nsystem.files."/a".text = ""',
            "system.files.'/a/b'",
            "is a file",
        ),
        ('system.files."/run/x".text = ""', "system.files.'/run/x'", "hides the file"),
        (
            'system.files."/v/x".text = ""\n' + MOUNTED.format("/v"),
            "system.files.'/v/x'",
            "hides it",
        ),
        (
            'system.units."a.service" = {mask = true, text = "x"}',
            "system.units.'a.service'.text",
            "no effect",
        ),
        # Values that no JSON can hold.
        (
            "firecracker.extra_config.x = 2024-01-01",
            "firecracker.extra_config.x",
            "a date is none of",
        ),
        ("firecracker.extra_config.x = inf", "firecracker.extra_config.x", "a number is finite"),
    ],
)
def test_what_can_not_be_meant_is_refused_at_its_key(tmp_path, declared, where, said):
    found = problems(tmp_path, declared)
    assert (f"microvms.a.{where}", True) in {
        (p.where, said in p.message + (p.hint or "")) for p in found
    }, found


@pytest.mark.parametrize(
    "declared",
    [
        'kernel_params = ["microvm.shell", "console=tty0"]',
        'cpu = "max,-vmx,pmu=off"',
        'socket = "a=b,c.sock"',
        VOLUME.format("d/lock"),
        VOLUME.format("/srv/lock"),
        VOLUME.format("/srv/x.lock"),
        VOLUME.format("two words, one image.img"),
        MOUNTED.format("/..."),
        MOUNTED.format("/tmp"),
        MOUNTED.format("/usr/local"),
        'system.packages = ["g++", "less=590-2.1~deb12u2", "libc6:amd64"]',
        'system.files."/etc/.hidden/..x".text = ""',
    ],
)
def test_what_only_looks_odd_is_allowed(tmp_path, declared):
    assert problems(tmp_path, declared) == ()


def test_a_kernel_directory_without_a_kernel_is_told_before_anything_is_built(tmp_path):
    (tmp_path / "k").mkdir()
    said = {p.message for p in problems(tmp_path, 'system.kernel = "k"')}
    assert any("vmlinuz" in text for text in said)
    assert any("lib/modules" in text for text in said)


def test_keys_that_apt_or_the_guest_would_mix_up_are_told(tmp_path):
    for name in ("a/k.asc", "b/k.asc", "c d.asc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("KEY")
    keys = ("a/k.asc", "b/k.asc", "c d.asc")
    listed = ", ".join(f'{{url = "http://x/", key = "{key}"}}' for key in keys)
    found = problems(tmp_path, f"system.repositories = [{listed}]")
    assert [p.where.split(".")[4] for p in found] == ["1", "2"]


def test_a_device_is_one_by_its_whole_path(tmp_path):
    vm = MicroVM(volumes=tuple(
        Volume(image=image, auto_create=False)
        for image in ("/dev/x,file.driver=file", "/dev/./y", "//dev/z", "/dev/shm/f")
    ))  # fmt: skip
    drives = [word for word in planned(vm).argv if "id=volume" in word]
    assert [("file.driver=host_device," in drive) for drive in drives] == [True, True, True, False]
    assert "file.filename=/dev/x,,file.driver=file," in drives[0]


def test_a_machine_option_is_one_option_whatever_its_value():
    vm = MicroVM(qemu=QemuOptions(machine_opts={"hpet": "off,dumpdtb=/x"}))
    argv = planned(vm).argv
    assert argv[argv.index("-machine") + 1].endswith("hpet=off,,dumpdtb=/x")


def test_the_room_for_kernel_parameters_is_there_with_every_slot_taken():
    declared = ("p" * (ROOM // 2 - 1),) * 2
    volumes = tuple(Volume(image=f"/v{n}", size=1, auto_create=False) for n in range(20))
    vm = MicroVM(
        volumes=(*volumes, Volume(image="/r", size=1, mount_point="/", fs_type="btrfs")),
        kernel_params=declared,
        vsock=Vsock(cid=3),
        balloon=True,
        store_disk_type="squashfs",
    )
    assert hypervisor("qemu").check(vm) == []
    line = planned(
        vm,
        positions=dict.fromkeys(range(21), "btrfs"),
        job=True,
        terminal=(9999, 9999, "xterm-256color"),
    ).argv[-1]
    assert line.endswith(" ".join(declared))
    assert LIMIT - 200 < len(line) <= LIMIT


@pytest.mark.parametrize(
    ("declared", "where"),
    [
        (VOLUME.format("x") + '\nmkfs_extra_args = ["/dev/sda"]', "volumes.0.mkfs_extra_args"),
        (
            'store_disk_type = "squashfs"\nstore_disk_squashfs_flags = ["-p", "x f 644 0 0 id"]',
            "store_disk_squashfs_flags",
        ),
        ('store_disk_erofs_flags = ["/etc"]', "store_disk_erofs_flags"),
        ('system.security_mirror = "file:///srv"', "system.security_mirror"),
        ('store_on_disk = false\nvirtiofsd.group = "kvm"', "virtiofsd.group"),
        ('firecracker.extra_config.x = "/etc"', "firecracker.extra_config"),
        ('system.kernel = "k"', "system.kernel"),
    ],
)
def test_what_reaches_for_the_host_is_asked_of_who_fetched_the_project(
    tmp_path, tool, declared, where
):
    kernel = tmp_path / "p/k"
    (kernel / "lib/modules").mkdir(parents=True)
    (kernel / "lib/modules/x").touch()
    (kernel / "vmlinuz").symlink_to("/etc/hostname")
    assert problems(tmp_path / "p", declared) == ()
    program = tool("git")
    for words in (
        ["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"],
    ):  # fmt: skip
        subprocess.run([program, "-C", tmp_path / "p", *words], check=True)
    asked = microvm.load(f"git+file://{tmp_path}/p#a").problems
    assert {problem.where for problem in asked} == {f"microvms.a.{where}"}


def test_a_checkout_lies_in_its_own_directory_whatever_the_urls_end(tmp_path, tool):
    assert problems(tmp_path / "p", "mem = 64") == ()
    program = tool("git")
    for words in (
        ["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"],
    ):  # fmt: skip
        subprocess.run([program, "-C", tmp_path / "p", *words], check=True)
    (tmp_path / "p/sub").mkdir()
    tree = git.fetch(f"file://{tmp_path}/p/sub/..", None)
    assert tree.name == "project"
    assert (tree / "microvm.toml").exists()


def test_a_package_is_found_by_its_name_not_by_a_pattern(tmp_path, tool):
    tool("apt-get")
    (tmp_path / "Packages").write_text("\n".join(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nFilename: ./{name}.deb\nSize: 1\n"
        f"SHA256: {'0' * 64}\n" for name in ("axb", "g++")
    ))  # fmt: skip
    source = Source(f"file:{tmp_path}", ("./",), (), None)
    apt = Apt.prepare(tmp_path / "apt", tmp_path / "lists", [source], "amd64")
    apt.update()
    assert [package.name for package in apt.solve(["axb", "g++"])] == ["axb", "g++"]
    with pytest.raises(MicroVMError, match=r"Unable to locate package a\.b"):
        apt.solve(["a.b"])


def test_a_uid_of_an_account_that_is_there_already_is_refused(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("daemon:x:1:1::/:/bin/sh\n")
    declared = to_plain(User(uid=5), defaults=True)
    with pytest.raises(MicroVMError, match="there with 1"):
        Accounts.read(tmp_path).add("daemon", declared)


def test_a_problem_tells_a_terminal_nothing():
    text = str(Problem(where="a\x1b[2J\n", message="\u202e", hint="ü\udc80"))
    assert text == "a\\x1b[2J\n: \\u202e\n    ü\\udc80"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mem=0x" + "f" * 5000, "a number of"),
        ("mem=" + "9" * 5000, "too many digits"),
        ("mem=" + "[" * 3000, "nested deeper"),
        ("mem.x" + ".x" * 50 + "=1", "more than 32 parts"),
        ("volumes.-1.size=9", "nothing at that path"),
        ("volumes.٣.size=9", "nothing at that path"),
        ("volumes." + "9" * 5000 + ".size=9", "nothing at that path"),
        ("mem=1\nvcpu = 3", "not a whole number"),
        (".mem=1", "not KEY=VALUE"),
    ],
    ids=lambda text: text[:20],
)
def test_an_override_that_can_not_be_meant_is_refused(tmp_path, override, said):
    (tmp_path / "microvm.toml").write_text('[microvms.a]\nvolumes = [{image = "x", size = 9}]\n')
    found = microvm.load(str(tmp_path), overrides=[override]).problems
    assert any(said in problem.message for problem in found), found


def test_an_override_reaches_keys_with_dots_in_them(tmp_path):
    (tmp_path / "microvm.toml").write_text("[microvms.a]\n")
    words = ["system.files.\"/etc/x.conf\".text='a=b'", "system.units.'a.service'.mask=true"]
    vm = microvm.load(str(tmp_path), overrides=words).get("a")
    assert vm.system.files["/etc/x.conf"].text == "a=b"
    assert vm.system.units["a.service"].mask


@pytest.mark.parametrize(
    "text", ["~nobody-of-that-name/x", "~\0", "x" * 300, "a/" * 3000, "a\0b", "\udc80#a"]
)
def test_a_reference_that_no_path_can_be_is_refused(text):
    with pytest.raises(SpecError):
        microvm.load(text)


def test_a_project_may_have_the_longest_name_that_there_is(tmp_path):
    place = tmp_path / ("ü" * 127)
    assert problems(place, "mem = 64") == ()
    machine = state.machine_dir(microvm.load(str(place)), "a")
    assert len(os.fsencode(machine.parent.name)) <= 255


def test_a_removed_current_directory_is_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SpecError, match="not there any more"):
        microvm.load(".")
