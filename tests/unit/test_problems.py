"""Every problem of a project at once, each with its place and what to do."""

import subprocess

import pytest

import microvm
from microvm.projects import keypath


@pytest.fixture
def problems(tmp_path):
    """Write a project and return its problems as lines without the file's directory."""

    def find(text, **options):
        (tmp_path / "microvm.toml").write_text(text)
        found = microvm.load(str(tmp_path), **options).problems
        return [str(problem).replace(f"{tmp_path}/", "") for problem in found]

    return find


def test_rules_are_checked_too_where_types_are_wrong(problems):
    found = problems("""[microvms.web]
mem = "lots"
[[microvms.web.volumes]]
image = 5
[[microvms.web.volumes]]
image = "a.img"
[[microvms.web.interfaces]]
type = "macvtap"
id = "net0"
[microvms.web.system.files."/etc/app.conf"]
text = "one"
source = "two"
""")
    assert found[0] == "microvm.toml:2: microvms.web.mem: 'lots' is not a whole number"
    assert found[1] == "microvm.toml:4: microvms.web.volumes.0.image: 5 is not a text"
    assert found[2].startswith("microvm.toml:5: microvms.web.volumes.1.size: it is needed")
    # Two rules about one interface: what the option lacks, and what the hypervisor can't.
    assert any(each.startswith("microvm.toml:7: microvms.web.interfaces.0") for each in found)
    assert found[-1].startswith("microvm.toml:10: microvms.web.system.files.'/etc/app.conf': it ")


def test_nothing_untrue_is_told_of_what_was_left_out(problems):
    found = problems("""[microvms.web]
hypervisor = "qemo"
interfaces = [{ type = "usr", id = "net0" }]
forward_ports = [{ host.port = 80, guest.port = 80 }]
hotplug_mem = -1
hotplugged_mem = 5
balloon = "yes"
deflate_on_oom = true
virtiofsd.thread_pool_size = 4
shares = [{ tag = "a", source = ".", mount_point = 5 }]
[microvms.web.system]
autologin = "me"
users.me.uid = "5"
network = true
run = [5]
""")
    assert [each.splitlines()[0].split(": ")[1] for each in found] == [
        "microvms.web.hypervisor", "microvms.web.interfaces.0.type", "microvms.web.hotplug_mem",
        "microvms.web.balloon", "microvms.web.shares.0.mount_point",
        "microvms.web.system.users.me.uid", "microvms.web.system.run.0",
    ]  # fmt: skip


def test_a_problem_of_the_defaults_is_told_once_and_there(problems):
    found = problems("""[defaults]
mem = "lots"
system.packages = ["Bad", "less"]
[microvms.a]
[microvms.b]
system.packages = ["less", "Worse"]
""")
    assert [each.split(": ")[:2] for each in found] == [
        ["microvm.toml:2", "defaults.mem"],
        ["microvm.toml:3", "defaults.system.packages.0"],
        ["microvm.toml:6", "microvms.b.system.packages.1"],
    ]


SHARED = """[defaults]
deflate_on_oom = true
virtiofsd.thread_pool_size = 4
[microvms.a]
balloon = true
[microvms.b]
shares = [{ tag = "s", source = ".", mount_point = "/s" }]
"""


def test_a_default_holds_where_it_has_an_effect(tmp_path):
    (tmp_path / "microvm.toml").write_text(SHARED)
    found = microvm.load(str(tmp_path))
    assert found.problems == ()
    a, b = found.get("a"), found.get("b")
    assert (a.deflate_on_oom, a.virtiofsd.thread_pool_size) == (True, None)
    assert (b.deflate_on_oom, b.virtiofsd.thread_pool_size) == (None, 4)


def test_a_default_without_effect_in_any_microvm_is_told_once_and_there(problems):
    found = problems("[defaults]\nmem = 256\ndeflate_on_oom = true\n[microvms.a]\n[microvms.b]\n")
    assert [each.split(": ")[:2] for each in found] == [
        ["microvm.toml:3", "defaults.deflate_on_oom"]
    ]


def test_what_a_microvm_or_a_change_says_itself_is_no_default(problems):
    [found] = problems(f"{SHARED}deflate_on_oom = true\n")
    assert found.startswith("microvm.toml:8: microvms.b.deflate_on_oom: it has no effect without")
    [found] = problems(SHARED, overrides=["virtiofsd.thread_pool_size=4"])
    assert found.startswith("--set virtiofsd.thread_pool_size=4: microvms.a.virtiofsd.thread_pool")


def test_a_default_that_a_change_leaves_without_effect_is_no_problem(problems):
    text = "[defaults]\ndeflate_on_oom = true\n[microvms.a]\nballoon = true\n"
    assert problems(text, overrides=["balloon=false"]) == []


def test_defaults_whose_need_is_a_default_too_go_together(tmp_path):
    (tmp_path / "microvm.toml").write_text("""[defaults]
store_disk_type = "squashfs"
store_disk_squashfs_flags = ["-comp", "gzip"]
system.units."a.service".text = "[Unit]"
system.units."a.service".enable = true
[microvms.images]
[microvms.trees]
store_on_disk = false
system.units."a.service".mask = true
""")
    found = microvm.load(str(tmp_path))
    assert found.problems == ()
    assert found.get("images").store_disk_squashfs_flags == ("-comp", "gzip")
    assert found.get("trees").store_disk_squashfs_flags is None
    assert found.get("trees").system.units["a.service"] == microvm.Unit(mask=True)


def test_nothing_is_told_of_a_default_while_a_microvm_is_not_valid(problems):
    found = problems("""[defaults]
virtiofsd.thread_pool_size = 4
[microvms.a]
[microvms.b]
shares = [{ tag = "s", source = ".", mount_point = 5 }]
""")
    assert [each.split(": ")[1] for each in found] == ["microvms.b.shares.0.mount_point"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('mem = "512"', "'512' is not a whole number"),
        ("vcpu = 1.0", "1.0 is not a whole number"),
        ("vcpu = true", "True is not a whole number"),
        ('balloon = "yes"', "'yes' is not true or false"),
        ("balloon = 1", "1 is not true or false"),
        ("system.hostname = 2020-01-01", "is not a text"),
        ('system.packages = "less"', "'less' is not a list"),
        ("system = 5", "5 is not a table"),
    ],
)
def test_no_value_is_taken_for_another(problems, line, said):
    [found] = problems(f"[microvms.web]\n{line}\n")
    assert said in found
    assert found.startswith("microvm.toml:2: microvms.web.")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("packages = []", "it is an option of the guest's system: system.packages"),
        ("system.mem = 512", "it is an option of the MicroVM itself, beside `system`: mem"),
        ("memory = 512", "did you mean mem?"),
        ("forwardPorts = []", "did you mean forward_ports?"),
        ("system.releas = 'sid'", "did you mean release?"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest_one(problems, line, hint):
    [found] = problems(f"[microvms.web]\n{line}\n")
    assert found.endswith(f"\n    {hint}")


def test_what_was_set_on_the_command_line_is_not_looked_for_in_the_file(problems):
    text = "[microvms.web]\nmem = 512\nsystem.releas = 'x'\n"
    found = problems(text, overrides=["mem=lots", "memory=5", "vcpu.x=1"])
    assert {each.splitlines()[0] for each in found[:3]} == {
        "--set mem=lots: microvms.web.mem: 'lots' is not a whole number",
        "--set memory=5: microvms.web.memory: there is no option 'memory'",
        "--set vcpu.x=1: microvms.web.vcpu: {'x': 1} is not a whole number",
    }
    assert found[3].startswith("microvm.toml:3: ")


@pytest.mark.parametrize(("place", "named"), [(".", "db"), ("{0}", "{0}#db"), ("{0}#", "{0}#db")])
def test_where_it_is_not_clear_which_one_is_meant_a_reference_that_works_is_named(
    tmp_path, monkeypatch, place, named
):
    (tmp_path / "microvm.toml").write_text("[microvms.db]\n[microvms.web]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(microvm.SpecError) as raised:
        microvm.load(place.format(tmp_path)).pick()
    assert str(raised.value).endswith(f"name one, such as {named.format(tmp_path)}")


def test_a_name_that_is_none_is_answered_with_one_that_is(problems):
    [found] = problems("[microvms.'My Web']\n")
    assert found.startswith("microvm.toml:1: microvms.'My Web': 'My Web' is no name")
    assert found.endswith("did you mean my-web?")


@pytest.mark.parametrize("parts", [("a", "0"), ("files", "/etc/x.conf", "text"), ("it's", "b")])
def test_a_key_path_survives_being_text(parts):
    assert keypath.split(keypath.join(parts)) == parts


def test_a_hint_that_problems_have_in_common_is_said_once(microvm_cli, tmp_path):
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        (tmp_path / "microvm.toml").write_text(
            '[microvms.a]\nshares = [{ tag = "h", source = "/etc", mount_point = "/h" }]\n'
            'qemu.extra_args = ["-S"]\nmem = 1\n'
        )
        identity = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    ran = microvm_cli("check", f"git+file://{tmp_path}")
    assert ran.returncode == 3
    assert ran.stderr.count("outside the project") == 1
    assert ran.stderr.count("adds arguments") == 1
    assert ran.stderr.count("--trust") == 1


def test_what_is_there_twice_is_told_once_and_in_words(problems):
    found = problems("""[microvms.web]
interfaces = [{ type = "user", id = "net0" }]
forward_ports = [{ host.port = 80, guest.port = 80 }, { host.port = 80, guest.port = 81 }]
devices = [{ bus = "pci", path = "0000:03:00.0" }, { bus = "pci", path = "0000:03:00.0" }]
[[microvms.web.shares]]
tag = "src"
source = "."
mount_point = "/src"
[[microvms.web.shares]]
tag = "src"
source = "."
mount_point = "/other"
""")
    assert [each.partition(": microvms.web.")[2] for each in found] == [
        "forward_ports.1.host: the forwarded port 127.0.0.1:80/tcp is that of forward_ports.0.host too",
        "devices.1.path: the device 0000:03:00.0 is that of devices.0.path too",
        "shares.1.tag: the tag src is that of shares.0.tag too",
    ]


def test_a_port_at_all_addresses_is_that_port_at_each(problems):
    ports = "host.address = '{}', host.port = 80, guest.port = 80, proto = '{}'".format
    forwarded = ", ".join(
        f"{{ {ports(*end)} }}"
        for end in [
            ("127.0.0.1", "tcp"), ("127.0.0.2", "tcp"), ("0.0.0.0", "udp"), ("0.0.0.0", "tcp")
        ]
    )  # fmt: skip
    user = "interfaces = [{ type = 'user', id = 'net0' }]"
    [found] = problems(f"[microvms.web]\n{user}\nforward_ports = [{forwarded}]\n")
    assert "forward_ports.3.host: the forwarded port 0.0.0.0:80/tcp" in found
    assert "that of forward_ports.0.host too" in found


SHARE = "tag = 's', source = '.', mount_point = '/s'"
MACVTAP = "type = 'macvtap', macvtap.link = 'eth0'"
FORWARD = (
    "forward_ports = [{ %shost.port = 80, guest.port = 8080 }]\n"
    "interfaces = [{ type = 'user', id = 'net0' }]"
)


@pytest.mark.parametrize(
    ("one", "other", "where", "said"),
    [
        ("socket = '/run/v'", "socket = '/run//v'", "socket", "the socket /run/v"),
        (
            f"shares = [{{ {SHARE}, socket = '/run/s' }}]", "socket = '/run/s'", "shares.0.socket",
            "the socket /run/s",
        ),
        (
            "volumes = [{ image = '/srv/x', size = 9 }]",
            "volumes = [{ image = '/srv/x', auto_create = false, read_only = true }]",
            "volumes.0.image", "the image /srv/x",
        ),
        ("vsock.cid = 7", "vsock.cid = 7", "vsock.cid", "the CID 7"),
        (
            f"machine_id = '{'1' * 32}'", "machine_id = '11111111-1111-1111-1111-111111111111'",
            "machine_id", f"the machine-id {'1' * 32}",
        ),
        (
            "interfaces = [{ type = 'tap', id = 't0' }]",
            f"interfaces = [{{ id = 't0', {MACVTAP} }}]", "interfaces.0.id", "the interface t0",
        ),
        (
            f"interfaces = [{{ id = 'm0', {MACVTAP}, macvtap.mode = 'passthru' }}]",
            f"interfaces = [{{ id = 'm1', {MACVTAP} }}]",
            "interfaces.0.macvtap.link", "the parent interface eth0",
        ),
        (
            "devices = [{ bus = 'pci', path = '0000:03:00.0' }]",
            "devices = [{ bus = 'pci', path = '0000:03:00.0' }]",
            "devices.0.path", "the device 0000:03:00.0",
        ),
        (FORWARD % "", FORWARD % "", "forward_ports.0.host", "the forwarded port 127.0.0.1:80/tcp"),
        (
            FORWARD % "", FORWARD % "host.address = '0.0.0.0', ",
            "forward_ports.0.host", "the forwarded port 0.0.0.0:80/tcp",
        ),
        (
            FORWARD % "host.address = '0.0.0.0', ", FORWARD % "host.address = '0.0.0.0', ",
            "forward_ports.0.host", "the forwarded port 0.0.0.0:80/tcp",
        ),
    ],
)  # fmt: skip
def test_what_only_one_machine_can_have_is_told_of_two(problems, one, other, where, said):
    found = problems(f"[microvms.a]\n{one}\n[microvms.b]\n{other}\n")
    told = [line for line in found if f"{said} is that of microvms.a.{where} too" in line]
    assert len(told) == 1
    line = 3 + len(one.splitlines())
    assert told[0].startswith(f"microvm.toml:{line}: microvms.b.")
    assert problems(f"[microvms.a]\n{one}\n") == problems(f"[microvms.a]\n{other}\n") == []


def test_a_cid_that_the_host_does_not_know_may_be_that_of_many(problems):
    text = "[microvms.{}]\nvsock.cid = 7\nhypervisor = '{}'\n"
    for kind in ("firecracker", "cloud-hypervisor"):
        assert problems(text.format("a", kind) + text.format("b", kind)) == []


def test_what_all_machines_have_from_the_defaults_is_told_once_and_there(problems):
    [found] = problems("[defaults]\nsocket = '/run/v'\n[microvms.a]\n[microvms.b]\n[microvms.c]\n")
    assert found.startswith("microvm.toml:2: defaults.socket: the socket /run/v is that of microv")


def test_machines_may_share_what_they_only_read_and_have_what_is_relative(problems):
    shared = """[defaults]
socket = "vmm.sock"
[microvms.a]
[microvms.b]
"""
    for name in ("a", "b"):
        shared = shared.replace(
            f"[microvms.{name}]\n",
            f"""[microvms.{name}]
volumes = [
  {{ image = "/srv/data", auto_create = false, read_only = true }},
  {{ image = "own.img", size = 9 }},
]
interfaces = [{{ id = "{name}0", {MACVTAP} }}]
shares = [{{ {SHARE}, socket = "s.sock" }}]
""",
        )
    assert problems(shared) == []


def test_a_change_is_of_all_microvms_where_none_is_named(tmp_path):
    (tmp_path / "microvm.toml").write_text("[microvms.a]\n[microvms.b]\nmem = 64\n")
    everyone = microvm.load(str(tmp_path), overrides=["mem=512"]).microvms
    assert [everyone[name].mem for name in "ab"] == [512, 512]
    one = microvm.load(f"{tmp_path}#a", overrides=["mem=512"]).microvms
    assert [one[name].mem for name in "ab"] == [512, 64]


def test_only_raw_images_are_made_and_measured(problems):
    found = problems("""[microvms.web]
[[microvms.web.volumes]]
image = "a.qcow2"
size = 64
image_type = "qcow2"
[[microvms.web.volumes]]
image = "b.qcow2"
image_type = "qcow2"
auto_create = false
""")
    assert [each.split(": ")[1] for each in found] == [
        "microvms.web.volumes.0.auto_create", "microvms.web.volumes.0.size",
    ]  # fmt: skip
    assert "qemu-img convert -f raw -O qcow2 RAW a.qcow2" in found[0]


@pytest.mark.parametrize("name", ["credentials.img", "firecracker.json", "power.key", ".start.in"])
def test_a_volume_is_none_of_our_own_files(problems, name):
    [found] = problems(f"[microvms.web]\nvolumes = [{{ image = '{name}', size = 64 }}]\n")
    assert f"{name}: such names in the state directory are our own" in found


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("map:1000:0:1", True), ("squash-guest:0:1000:65536", True), ("forbid-guest:0:2", True),
        ("nonsense", False), ("guest:1:2", False), ("forbid-guest:1:0:2", False), ("map:1:0:x", False),
    ],
)  # fmt: skip
def test_a_translation_of_ids_is_one_that_virtiofsd_takes(problems, text, good):
    found = problems(
        f'[microvms.web]\nshares = [{{ tag = "s", source = ".", mount_point = "/s", uid_map = ["{text}"] }}]\n'
    )
    assert [each.partition(": microvms.web.")[2][:22] for each in found] == (
        [] if good else ["shares.0.uid_map.0: '" + text[0]]
    )
