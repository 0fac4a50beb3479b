"""Whatever a declaration says, it is refused in our words or does just what it says."""

import json
import os
import posixpath
import re
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import BASE, NAMED, PATHS, QUICK, WORDS, changed, renamed, tables

from microvm.errors import HostError
from microvm.guests.debian import configuration, resolve
from microvm.guests.debian.accounts import Accounts
from microvm.guests.debian.sources import sources
from microvm.hypervisors import hypervisor
from microvm.hypervisors.qemu import PROGRAM
from microvm.model import declaration, devices, options, system
from microvm.model.codec import from_plain, to_plain
from microvm.model.declaration import MicroVM
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.guest import GuestSystem, Layer, LockedLayer, SystemLock
from microvm.model.runner import Runner
from microvm.projects import rules, trust
from microvm.projects.validation import validate

FLAVOURS = ("rust", "c")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project with a file that declarations may name."""
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "file").write_text("text")
    return directory


def planned(vm, directory, flavour):
    """Return the plan of a valid MicroVM on a host that has everything."""
    layer = Layer(name="base", tree="t", image="i", kind=vm.store_disk_type, uuid="u")
    guest = GuestSystem(
        name="s", source="debian", description="d", architecture="x86_64", kernel="k",
        kernel_release="1", initrd="k", features=(), layers=(layer,), kernel_params=(),
    )  # fmt: skip
    facts = Facts(
        accelerator=Accelerator(kind="kvm", reason=""),
        programs={
            PROGRAM: Program(path=vm.qemu.program or "/usr/bin/qemu", version=(10, 0)),
            "virtiofsd": Program(
                path=vm.virtiofsd.program or "/usr/bin/v", version=(1, 13), flavour=flavour
            ),
        },
        state_dir="/state", project_dir=str(directory), store_dir="/store", machine_id="1" * 32,
    )  # fmt: skip
    runner = Runner(schema=1, name="vm", microvm=vm, system=guest)
    return hypervisor(vm.hypervisor).plan(runner, facts)


FLAGS = {"-nodefaults", "-no-user-config", "-no-reboot"}
WHOLE = {"-smp", "-m", "-display", "-uuid", "-serial", "-kernel", "-initrd", "-append", "-cpu"}
"""Options whose value QEMU takes whole, or (-cpu) whose keys can do nothing to the host."""
KEYS = {
    "-name": {"guest"}, "-accel": {"", "thread"}, "-chardev": {"", "id", "signal", "path", "server", "wait"},
    "-run-with": {"user"}, "-sandbox": {"", "obsolete", "elevateprivileges", "spawn", "resourcecontrol"}, "-qmp": {"path", "server", "wait"},
    "-object": {"", "id", "size", "share", "hugetlb", "reserve"}, "-fw_cfg": {"name", "file"},
    "-drive": {"if", "id", "format", "file.driver", "file.filename", "file.locking", "read-only", "discard", "cache.direct"},
    "-fsdev": {"", "id", "path", "security_model", "multidevs", "readonly"},
    "-netdev": {"", "id", "hostfwd", "fd", "fds", "vhost"}, "-mon": {"chardev", "mode"},
    "-machine": {
        "", "usb", "vmport", "acpi", "pit", "pic", "rtc", "isa-serial", "auto-kernel-cmdline", "ioapic2", "memory-backend",
    },
    "-device": {
        "", "drive", "serial", "chardev", "tag", "fsdev", "mount_tag", "netdev", "mac", "romfile",
        "free-page-reporting", "deflate-on-oom", "guest-cid", "mq", "vectors", "id", "memdev", "requested-size", "prealloc", "bus", "chassis", "slot", "addr", "host", "vendorid", "productid", "hostbus", "hostaddr", "hostport",
    },
}  # fmt: skip
FILES = ("path", "file", "file.filename")
FORWARD = re.compile(r"(?:tcp|udp):(?:\d+\.){3}\d+:\d+-(?:(?:\d+\.){3}\d+)?:\d+")


def suboptions(value):
    """Split a value as QEMU's opts_do_parse does: two commas are one; the first key may lack."""
    found = []
    for part in value.replace(",,", "\0").split(","):
        key, mark, rest = part.replace("\0", ",").partition("=")
        # Up to a comma: a sign of equality after it belongs to no key.
        named = mark and "," not in key
        found.append((key, rest) if named else ("", part.replace("\0", ",")))
    assert all(key for key, _ in found[1:]), value
    return found


def check_argv(vm, argv):
    """Fail when a word says more than it should; return all files that the words name."""
    end = len(argv) - len(vm.qemu.extra_args)
    assert argv[end:] == vm.qemu.extra_args
    words = iter(argv[1:end])
    named = []
    for option in words:
        if option in FLAGS:
            continue
        value = next(words)
        assert not re.search(r"[\0-\x1f\x7f]", value)
        if option in WHOLE:
            assert not value.startswith("-")
            named += [value] if option in ("-kernel", "-initrd") else []
            continue
        found = suboptions(value.removeprefix("unix:"))
        keys = [key for key, _ in found if key != "hostfwd"]
        more = vm.qemu.machine_opts if option == "-machine" else ()
        assert set(keys) <= {*KEYS[option], *more}, value
        assert len(set(keys)) == len(keys), value
        assert all(FORWARD.fullmatch(text) for key, text in found if key == "hostfwd"), value
        named += [text for key, text in found if key in FILES]
    return named


def check_kernel_line(vm, line):
    words = line.split(" ")
    assert re.fullmatch(r"[\x20-\x7e]*", line)
    assert not set(line) & set("\"'")
    own = words[: len(words) - len(vm.kernel_params)]
    assert tuple(words[len(own) :]) == vm.kernel_params
    ours = r"console=|reboot=|panic=|microvm\.|systemd\.machine_id="
    assert all(re.match(ours, word) for word in own)
    assert not any(re.match(r"microvm\.(?!shell$)|systemd.machine.id", w) for w in vm.kernel_params)


def check_helper(vm, helper, directory):
    """Fail when a helper gets an argument that is not ours; return the directory that it serves."""
    share = next(share for share in vm.shares if helper.name == f"virtiofsd-{share.tag}")
    source = os.path.join(directory, share.source)  # noqa: PTH118 - as it is spelled
    end = len(helper.argv) - len(vm.virtiofsd.extra_args) - len(share.extra_args)
    own, rest = helper.argv[1:end], helper.argv[end:]
    assert rest == (*vm.virtiofsd.extra_args, *share.extra_args)
    if own[0] == "-f":
        # FUSE's options: a backslash takes the next character as it is.
        parts = re.findall(r"(?:\\.|[^\\,])+", own[2])
        assert re.sub(r"\\(.)", r"\1", parts[0]) == f"source={source}"
        assert all(re.match(r"cache=|sandbox=|xattr$|posix_acl$", part) for part in parts[1:])
        own = own[3:]
    else:
        assert own[0] == f"--shared-dir={source}"
    assert all(re.match(r"--[a-z-]+(?:=|$)", word) for word in own)
    return source


def inside(path, *places):
    real = posixpath.normpath(path)
    return any(real == place or real.startswith(f"{place}/") for place in places)


def check_plan(vm, plan, directory):
    named = check_argv(vm, plan.argv)
    assert {volume.image for volume in vm.volumes} <= set(named)
    check_kernel_line(vm, plan.argv[plan.argv.index("-append") + 1])
    named += [check_helper(vm, h, directory) for h in plan.helpers if "layer" not in h.name]
    named += [*plan.files, *plan.sockets, *(helper.socket for helper in plan.helpers)]
    ours = ("lock", "current", "helpers.lock", "taps.json", "host-id", "vmm.log")
    taken = [*plan.sockets, *(helper.socket for helper in plan.helpers)]
    taken += [posixpath.normpath(volume.image) for volume in vm.volumes]
    assert len(set(taken)) == len(taken)
    for path in named:
        if not path.startswith("/"):
            assert inside(f"/state/{path}", "/state")
            assert not inside(f"/state/{path}", *(f"/state/{name}" for name in ours))
    if not trust.requests("vm", vm, directory):
        for path in named:
            place = posixpath.join("/state", path)
            assert inside(place, "/state", "/store", str(directory))
        assert plan.argv[0] == "/usr/bin/qemu"


def check_guest(vm, directory):
    """Fail when something of the guest is made of more than was declared, or lies elsewhere."""
    lock = SystemLock(
        request="", date=0, mirrors={}, sources="", kernel_release="",
        layers=(LockedLayer(name="kernel", packages=()),),
    )  # fmt: skip
    contents = configuration.collect("vm", vm, lock, "d", directory)
    paths = [*contents["files"], *contents["links"], *contents["declared"], *vm_paths(vm)]
    for path in paths:
        assert path.startswith("/")
        assert path in ("/", posixpath.normpath(path))
    accounts = Accounts(directory)
    for name, user in contents["users"].items():
        accounts.add(name, user)
    for table, count in (("passwd", 7), ("group", 4), ("shadow", 9)):
        for entry in getattr(accounts, table).values():
            line = ":".join(entry)
            assert len(line.split(":")) == count
            assert len(line.splitlines()) == 1
    try:
        found = sources(vm.system, directory) if vm.system.mirror else ()
    except HostError:  # the archive's keyring is not installed
        found = ()
    keys = {"Types", "URIs", "Suites", "Components", "Signed-By", "Trusted"}
    for source in found:
        lines = [line.partition(": ")[0] for line in source.paragraph().splitlines()]
        assert set(lines) <= keys
        assert len(set(lines)) == len(lines)
    resolve.request(vm, (), directory)


def vm_paths(vm):
    points = [v.mount_point for v in vm.volumes if v.mount_point]
    return [*points, *(share.mount_point for share in vm.shares)]


def check_accepted(vm, directory, flavour="rust"):
    """Everything that happens to a valid declaration before a program is started."""
    plain = json.dumps(to_plain(vm), allow_nan=False)
    assert from_plain(MicroVM, json.loads(plain)) == vm
    check_guest(vm, directory)
    if flavour == "c" and any((*share.uid_map, *share.gid_map) for share in vm.shares):
        flavour = "rust"
    if vm.virtiofsd.inode_file_handles == "mandatory" or "metadata" in (s.cache for s in vm.shares):
        flavour = "rust"
    check_plan(vm, planned(vm, directory, flavour), directory)


def problems_of(table, directory):
    """Return the object of a table and all that is wrong with it."""
    vm, found = validate(table, "microvms.vm")
    if vm is not None:
        trust.requests("vm", vm, directory)
        found = [*rules.check_all({"vm": vm}, directory), *hypervisor(vm.hypervisor).check(vm)]
    assert vm is not None or found
    for problem in found:
        assert not re.search("Input should|pydantic|Value error|<class", problem.message)
        assert len(str(problem)) < 12000
        assert re.fullmatch(r"[^\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]+", str(problem))
    return vm, found


def check_table(table, directory, flavour="rust"):
    vm, found = problems_of(table, directory)
    if vm is not None and not found:
        check_accepted(vm, directory, flavour)
        return True
    return False


def test_the_declaration_to_start_from_is_valid(home):
    assert all(check_table(BASE, home, flavour) for flavour in FLAVOURS)


@settings(QUICK, max_examples=500)
@given(table=tables(), flavour=st.sampled_from(FLAVOURS))
def test_any_table_is_refused_in_our_words_or_means_what_it_says(home, table, flavour):
    check_table(table, home, flavour)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_field_takes_every_odd_word(home, path):
    for word in WORDS:
        check_table(changed(BASE, path, word), home)


@pytest.mark.parametrize("path", NAMED, ids=lambda path: ".".join(path))
def test_every_name_may_be_every_odd_word(home, path):
    for word in WORDS:
        check_table(renamed(path, word), home)


def test_every_class_with_options_is_reached():
    """A new one can't be forgotten: its fields are among the paths."""
    reached = {name for path in PATHS for name in path if isinstance(name, str)}
    for module in (declaration, devices, options, system):
        for kind in vars(module).values():
            if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__:
                assert {f.name for f in fields(kind)} & reached, kind
