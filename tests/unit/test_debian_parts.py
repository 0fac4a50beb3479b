"""The Debian builder's pure parts: solver output, accounts, layers' order, what a layer drops."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from microvm.errors import HostError, MicroVMError, SpecError
from microvm.guests.debian import apt, configuration, inside, resolve, sources, tree
from microvm.guests.debian.accounts import Accounts
from microvm.guests.debian.inside import needed_first
from microvm.guests.debian.lists import KEPT, Lists
from microvm.guests.debian.resolve import kernel_flavour, reasons_for_generic
from microvm.model.declaration import MicroVM
from microvm.model.devices import Device, Share
from microvm.model.guest import LockedLayer, LockedPackage, SystemLock
from microvm.model.system import DebianSystem, Repository, Unit, User

DATE = 1_700_000_000
DIGEST = "ab" * 32


def lock(*packages: str, sources_text: str = "") -> SystemLock:
    locked = tuple(
        LockedPackage(
            name=name, version="1", architecture="all", sha256=DIGEST, size=1, url="http://m/x"
        )
        for name in packages
    )
    return SystemLock(
        request="",
        date=DATE,
        mirrors={},
        sources=sources_text,
        kernel_release="6.1-cloud",
        layers=(LockedLayer(name="base", packages=locked),),
    )


def collected(system: DebianSystem, tmp_path: Path, *installed: str) -> dict:
    return configuration.collect("web", MicroVM(system=system), lock(*installed), "about", tmp_path)


def test_apts_list_of_files_becomes_locked_packages_sorted_by_name():
    printed = (
        "Reading package lists...\n"
        f"'http://m/p/z_1%3a2.0-1_amd64.deb' z_1%3a2.0-1_amd64.deb 20 SHA256:{DIGEST}\n"
        f"'http://m/p/a_3_all.deb' a_3_all.deb 10 SHA256:{DIGEST}\n"
    )
    first, second = apt._parse_uris(printed)
    assert (first.name, first.version, first.architecture, first.size) == ("a", "3", "all", 10)
    assert (second.name, second.version) == ("z", "1:2.0-1")


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("E: Unable to locate package openssh-servr", "openssh-servr"),
        ("E: Package 'init-x' has no installation candidate", "init-x"),
        ("E: Version '9' for 'tree' was not found", "tree"),
    ],
)
def test_the_package_that_apt_does_not_know_is_found_in_its_words(words, package):
    match = apt._UNKNOWN.search(f"could not resolve:\n  {words}")
    assert match and package in match.groups()


def test_why_packages_do_not_go_together_is_taken_from_apts_standard_output():
    said = b"Some text\nThe following packages have unmet dependencies:\n a : Conflicts: b\nE: no\n"
    assert "a : Conflicts: b" in apt._unmet(said)
    assert apt._unmet(b"all is well\n") == ""


def test_an_unknown_release_is_refused_with_those_that_are_known():
    with pytest.raises(SpecError, match="trixy") as caught:
        sources.distribution("trixy")
    assert "trixie" in str(caught.value)


def test_a_mirror_gives_its_security_archive_beside_it(tmp_path):
    system = DebianSystem(mirror="http://mirror.test/debian/", components=("main", "contrib"))
    main, security = sources._mirror_sources(system, "/key.gpg")
    assert main.suites == ("trixie", "trixie-updates")
    assert (security.url, security.suites) == (
        "http://mirror.test/debian-security",
        ("trixie-security",),
    )
    assert "Signed-By: /key.gpg" in main.paragraph()
    assert "Components: main contrib" in main.paragraph()


@pytest.mark.parametrize("release", ["trixie", "noble"])
def test_a_security_mirror_is_used_beside_a_mirror(release):
    declared = {"mirror": "http://m.test/d", "security_mirror": "http://s.test/d"}
    system = DebianSystem(release=release, **declared)
    main, security = sources._mirror_sources(system, "/key.gpg")
    assert (main.url, main.suites) == ("http://m.test/d", (release, f"{release}-updates"))
    assert (security.url, security.suites) == ("http://s.test/d", (f"{release}-security",))


@pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap")
def test_a_security_mirror_is_used_beside_the_mirrors_of_mmdebstrap():
    plain, asking = DebianSystem(), DebianSystem(security_mirror="http://s.test/d")
    before = {s.suites: s.url for s in sources._default_sources(plain, "/key.gpg")}
    after = {s.suites: s.url for s in sources._default_sources(asking, "/key.gpg")}
    assert after == {**before, ("trixie-security",): "http://s.test/d"}
    assert after != before


def test_without_updates_only_the_release_itself_is_used():
    system = DebianSystem(mirror="http://mirror.test/debian", updates=False)
    (only,) = sources._mirror_sources(system, "/key.gpg")
    assert only.suites == ("trixie",)


def test_a_kernel_with_9p_is_chosen_where_a_share_needs_it():
    share = Share(tag="src", source="src", mount_point="/src", proto="9p")
    assert kernel_flavour(MicroVM()) == "cloud"
    assert kernel_flavour(MicroVM(shares=(share,))) == "generic"
    assert kernel_flavour(MicroVM(store_on_disk=False, store_proto="9p")) == "generic"
    assert kernel_flavour(MicroVM(shares=(share,), system=DebianSystem(kernel="cloud"))) == "cloud"


def test_a_device_of_the_host_brings_the_kernel_with_drivers_of_devices():
    passed = (Device(bus="pci", path="0000:03:00.0"),)
    assert kernel_flavour(MicroVM(devices=passed)) == "generic"
    assert "drivers" in " ".join(reasons_for_generic(MicroVM(devices=passed)))
    assert kernel_flavour(MicroVM(devices=passed, system=DebianSystem(kernel="cloud"))) == "cloud"


@pytest.mark.parametrize(
    ("package", "part"),
    [
        ("linux-image-6.12.48+deb13-cloud-amd64", True),
        ("linux-modules-7.2.13+deb14-cloud-amd64", True),
        ("linux-binary-7.2.13+deb14-cloud-amd64", True),
        ("linux-image-unsigned-6.8.0-31-generic", True),
        ("linux-modules-extra-6.8.0-31-generic", True),
        ("linux-base", False),
        ("linux-initramfs-tool", False),
    ],
)
def test_a_kernels_parts_are_told_from_what_else_it_depends_on(package, part):
    assert bool(resolve._KERNEL_PART.fullmatch(package)) is part


def test_what_others_pre_depend_on_is_installed_first_with_its_own_dependencies():
    packages = {
        "server": {"Pre-Depends": "helper (>= 1.0) | other", "Depends": "plain"},
        "helper": {"Depends": "library, libc6 (>= 2)"},
        "library": {},
        "plain": {},
    }
    assert needed_first(packages) == {"helper", "library"}
    assert needed_first({"plain": {"Depends": "helper"}}) == set()


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with Debian's smallest tables of accounts."""
    etc = tmp_path / "root/etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nold:x:1000:1000::/home/old:/bin/sh\n"
    )
    (etc / "group").write_text("root:x:0:\nold:x:1000:\nshadow:x:0:\nvideo:x:44:\n")
    (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    return tmp_path / "root"


def user(**fields: object) -> dict:
    from microvm.model.codec import to_plain

    return to_plain(User(**fields), defaults=True)


def test_a_user_gets_the_next_free_ids_and_its_groups(root):
    accounts = Accounts.read(root)
    accounts.add("ann", user(groups=("video", "own"), password_hash="", sudo=True))
    assert accounts.passwd["ann"][2:4] == ["1001", "1001"]
    assert accounts.passwd["ann"][5] == "/home/ann"
    assert accounts.group["video"][3] == "ann"
    assert accounts.group["own"][3] == "ann"
    assert accounts.group["sudo"][3] == "ann"
    assert accounts.shadow["ann"][1] == ""


def test_a_password_is_locked_unless_one_is_given(root):
    accounts = Accounts.read(root)
    accounts.add("ann", user())
    assert accounts.shadow["ann"][1] == "!"


def test_a_uid_that_another_user_has_is_refused(root):
    with pytest.raises(MicroVMError, match="old has it"):
        Accounts.read(root).add("ann", user(uid=1000))


def test_owners_are_names_or_numbers_of_the_guest(root):
    accounts = Accounts.read(root)
    assert accounts.owner("old") == (1000, 1000)
    assert accounts.owner("old:video") == (1000, 44)
    assert accounts.owner("7:8") == (7, 8)
    with pytest.raises(MicroVMError, match="no user 'bob'"):
        accounts.owner("bob")


def test_a_masked_unit_is_a_link_and_a_written_one_is_enabled_when_it_can_be(tmp_path):
    text = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    units = {
        "a.service": Unit(text=text),
        "b.service": Unit(mask=True),
        "c.service": Unit(text="[Service]\n"),
        "d.service": Unit(dropin="[Service]\n", enable=False),
    }
    found = collected(DebianSystem(units=units), tmp_path)
    assert found["systemctl"] == [("enable", "a.service"), ("disable", "d.service")]
    assert found["links"]["/etc/systemd/system/b.service"] == "/dev/null"
    assert "/etc/systemd/system/d.service.d/declared.conf" in found["files"]


def test_a_declared_unit_is_never_masked_by_us(tmp_path):
    units = {"fstrim.timer": Unit(enable=True)}
    assert "/etc/systemd/system/fstrim.timer" in collected(DebianSystem(), tmp_path)["links"]
    found = collected(DebianSystem(units=units), tmp_path)
    assert "/etc/systemd/system/fstrim.timer" not in found["links"]


def test_a_repositorys_key_goes_into_a_guest_that_has_apt(tmp_path):
    (tmp_path / "own.asc").write_text("KEY")
    repository = Repository(url="http://own.test/r", key="own.asc")
    system = DebianSystem(repositories=(repository,))
    assert "/etc/apt/keyrings/own.asc" in collected(system, tmp_path, "apt")["files"]
    assert "/etc/apt/keyrings/own.asc" not in collected(system, tmp_path)["files"]


def test_an_archive_of_a_source_depends_on_its_contents_alone(tmp_path):
    digests = []
    for number in range(2):
        source = tmp_path / f"source{number}"
        source.mkdir()
        for name in ("b", "a") if number else ("a", "b"):
            (source / name).write_text(name)
            os.utime(source / name, (number, number))
        digests.append(configuration.archive(source, tmp_path / f"{number}.tar"))
    assert digests[0] == digests[1]


def test_a_path_in_the_guest_never_leads_out_of_its_root(root):
    (root / "away").symlink_to("../../../../etc")
    (root / "absolute").symlink_to("/etc")
    assert configuration._inside(root, "/absolute/x") == root / "etc/x"
    assert root in configuration._inside(root, "/away/x").parents


def test_logs_caches_and_identities_are_dropped_but_not_what_was_declared(tmp_path):
    layer = tmp_path / "layer"
    for name in (
        "var/log/apt/term.log", "var/log/own/keep", "var/cache/apt/x.bin", "etc/ssh/ssh_host_rsa",
        "etc/passwd-", "etc/passwd", "var/cache/debconf/config.dat", "usr/lib/py/__pycache__/a.pyc",
        "tmp/left",
    ):  # fmt: skip
        (layer / name).parent.mkdir(parents=True, exist_ok=True)
        (layer / name).write_text("x")
    (layer / "etc/machine-id").write_text("0123")
    tree.finish(layer, [], DATE, keep=["/var/log/own/keep"])
    left = {str(path.relative_to(layer)) for path in layer.rglob("*") if path.is_file()}
    assert left == {
        "var/log/own/keep", "etc/passwd", "etc/machine-id", "var/cache/debconf/config.dat",
    }  # fmt: skip
    assert (layer / "etc/machine-id").read_text() == ""


def test_times_are_not_later_than_the_locks_date_and_directories_have_it(tmp_path):
    layer = tmp_path / "layer"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc/new").write_text("")
    (layer / "etc/old").write_text("")
    os.utime(layer / "etc/old", (5, 5))
    tree.finish(layer, [], DATE)
    assert (layer / "etc/new").stat().st_mtime == DATE
    assert (layer / "etc/old").stat().st_mtime == 5
    assert (layer / "etc").stat().st_mtime == DATE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make whiteouts")
def test_an_opaque_directory_becomes_whiteouts_of_all_that_lay_below(tmp_path):
    lower, middle, upper = (tmp_path / name for name in ("lower", "middle", "upper"))
    (lower / "d/sub/deep").mkdir(parents=True)
    (lower / "d/sub/file").write_text("")
    (lower / "d/gone").write_text("")
    (middle / "d").mkdir(parents=True)
    os.mknod(middle / "d/gone", stat.S_IFCHR, os.makedev(0, 0))
    (upper / "d/sub").mkdir(parents=True)
    (upper / "d/sub/new").write_text("")
    try:
        os.setxattr(upper / "d", tree.OPAQUE, b"y")
    except OSError:
        pytest.skip("the file system has no user attributes")
    tree.finish(upper, [lower, middle], DATE)
    assert os.listxattr(upper / "d") == []
    whiteouts = {
        str(path.relative_to(upper))
        for path in upper.rglob("*")
        if stat.S_ISCHR(path.lstat().st_mode)
    }
    # `gone` was hidden already; the new `sub` may not show what the old one had.
    assert whiteouts == {"d/sub/deep", "d/sub/file"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device node")
def test_a_device_node_is_refused(tmp_path):
    (tmp_path / "layer/dev2").mkdir(parents=True)
    os.mknod(tmp_path / "layer/dev2/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(MicroVMError, match="/dev2/null"):
        tree.finish(tmp_path / "layer", [], DATE)


def test_package_lists_are_found_again_by_the_state_that_a_lock_names(tmp_path):
    lists = Lists(tmp_path / "x-lists")
    for number in range(KEPT + 2):
        lists.current.mkdir(exist_ok=True)
        (lists.current / "InRelease").unlink(missing_ok=True)
        (lists.current / "InRelease").write_text(str(number))
        lists.keep({"InRelease": str(number)})
        os.utime(lists._path({"InRelease": str(number)}), (number, number))
    newest = lists.find([{"InRelease": "unknown"}, {"InRelease": str(KEPT + 1)}])
    assert newest and (newest / "InRelease").read_text() == str(KEPT + 1)
    assert lists.find([{"InRelease": "0"}]) is None


def test_a_layer_without_an_overlay_asks_for_attributes_too():
    # /proc keeps none, whoever asks.
    with pytest.raises(HostError, match="the store's file system") as caught:
        inside.build_kernel({"packages": ()}, {"out": Path("/proc/self")}, lambda event: None)
    assert "user.* attributes" in caught.value.hint
    assert "--store" in caught.value.hint
