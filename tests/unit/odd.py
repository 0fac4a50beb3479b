"""Declarations that nobody means: a valid one, and odd values for each of its fields."""

import math
from dataclasses import fields

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from microvm.model.codec import to_plain
from microvm.model.declaration import MicroVM
from microvm.projects.validation import validate

QUICK = settings(
    derandomize=True,
    deadline=None,
    database=None,
    # Shrinking takes longer than a test may; a failing example is small as it is.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

BASE = {
    "system": {
        "mirror": "http://localhost/debian",
        "users": {"bob": {"groups": ["adm"]}},
        "files": {"/etc/a": {"text": "a"}, "/etc/b": {"source": "file"}},
        "units": {"a.service": {"text": "[Install]\n"}},
        "repositories": [{"url": "http://localhost/r", "key": "file"}],
        "packages": ["less"],
        "run": ["true"],
    },
    "balloon": True,
    "kernel_params": ["debug"],
    "volumes": [
        {"image": "v.img", "size": 1, "mount_point": "/v"},
        {"image": "w.img", "size": 1},
    ],
    "shares": [
        {"tag": "s", "source": ".", "mount_point": "/s"},
        {"tag": "n", "source": ".", "mount_point": "/n", "proto": "9p"},
    ],
    "interfaces": [{"type": "user", "id": "n0"}, {"type": "tap", "id": "t0"}],
    "forward_ports": [{"host": {"port": 1}, "guest": {"port": 2}}],
    "credential_files": {"c": "file"},
    "qemu": {"machine_opts": {"hpet": "off"}},
}  # fmt: skip
"""A valid MicroVM of a project that has a file named `file`."""

WORDS = (
    "", "a", "x,y=z", "x,,y", "a=b", "a b", "a\tb", "a\nb", "a\n", "\n", "a\0b", "\0", "-x", "--", "..",
    "../../x", "/..", "/../../x", "/a/../../b", "a/..", ".", "./x", "/", "//", "/etc/passwd", "file", "/dev/vda",
    "/dev/x,file.driver=file", "/dev/shm/x", "~", "~root", "$(id)", ";id", "`id`", "a'b", 'a"b', '"', "\\", "a\\,b",
    "%s", "{0}", "é", "\u2028", "a\x85b", "\x7f", "\x1b[2J", "\U0001f600", "\uff41", "\udc80", "a" * 5000,
    "/" + "a" * 5000, "a/" * 2500, "é" * 200, "0", "-1", "true", "nan", "1:2:3", "::1", "999.9", "10.0.0.1",
    "127.0.0.1", "a:b", "/a:b", "host,migratable=on", "host,help", "on,server=off", "02:00:00:00:00:07", "00:00:00:00:00:00",
    "file:///x", "http://localhost/\x1b", "http://localhost/\nTrusted: yes", "/a/./b", "/a b,c=d", "a.service", "-x.service",
    "b.deb", "-o.deb", "less-", "less=1-", "console=ttyS1", 'foo="a', "microvm.layers=", "microvm.shell", "systemd.machine-id=1",
    "0" * 32, "current/x", "qmp.sock", "lock", "w.img", "w.img.layers", "/proc/x", "/usr", "/run", "/tmp/x", "256M", "9" * 300 + "M",
    "99999:0", "help", "dumpdtb",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 31, 32, 255, 256, 65535, 65536, 2**31, 2**32, 2**63, 2**64, 10**300, 10**4400, -(10**4400),
    0.0, 1.0, 1.5, -0.0, math.nan, math.inf, -math.inf, 1e308,
)  # fmt: skip


def nested(depth, wrap, value="x"):
    for _ in range(depth):
        value = wrap(value)
    return value


def values(numbers):
    return st.one_of(
        st.sampled_from(WORDS),
        st.text(max_size=8),
        st.sampled_from(numbers),
        st.booleans(),
        st.sampled_from(
            ([], {}, [[]], {"": 1}, {"x": {}}, [{}], [None], nested(300, lambda v: [v]), nested(300, lambda v: {"a": v}))
        ),
        st.lists(st.sampled_from(WORDS), max_size=3),
        st.dictionaries(st.sampled_from(WORDS), st.sampled_from((*WORDS, 1, math.nan)), max_size=2),
    )  # fmt: skip


ODD = values(NUMBERS)
JSON = st.one_of(values([number for number in NUMBERS if abs(number) != 10**4400]), st.none())
"""Without the numbers that Python does not spell in decimal digits."""


def leaves(plain):
    """Yield the key path of everything in a table, of inner tables and lists too."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for key, value in items:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in leaves(value))


def every_path():
    """Return the key path of every field of the model, at the first items of collections."""
    vm, found = validate(BASE, "microvms.vm")
    assert vm is not None, found
    inner = [*leaves(to_plain(vm, defaults=True))]
    assert {(f.name,) for f in fields(MicroVM)} <= set(inner)
    # Tables that are unset by default, and names that are keys.
    return [
        *inner,
        ("interfaces", 1, "macvtap", "link"), ("interfaces", 1, "macvtap", "mode"),
        ("devices", 0, "bus"), ("devices", 0, "path"), ("devices", 0, "qemu", "device_extra_args"),
        ("qemu", "pcie_root_ports", 0, "id"), ("qemu", "pcie_root_ports", 0, "chassis"),
        ("nosuch",), ("volumes", 0, "nosuch"), ("system", "users", "bob", "nosuch"),
        ("firecracker", "cpu", "x"), ("firecracker", "extra_config", "x"),
        ("qemu", "extra_args", 0), ("volumes", 0, "mkfs_extra_args", 0), ("shares", 0, "uid_map", 0),
        ("shares", 0, "extra_args", 0), ("virtiofsd", "extra_args", 0),
        ("system", "users", "bob", "ssh_authorized_keys", 0), ("system", "ssh_authorized_keys", 0),
        ("store_disk_erofs_flags", 0),
    ]  # fmt: skip


PATHS = every_path()
NAMED = [
    path for path in PATHS
    if path[-1] in ("users", "files", "units", "credential_files", "machine_opts")
]  # fmt: skip
"""Tables whose keys are names that a declaration chooses."""


def changed(plain, path, value):
    """Return the table with a value at a path; a path through nothing makes what it needs."""
    first, *rest = path
    if isinstance(plain, list) and isinstance(first, int):
        copy = list(plain)
        while len(copy) <= first:
            copy.append({})
    elif isinstance(plain, dict):
        copy = dict(plain)
    else:
        return value
    old = copy[first] if isinstance(copy, list) else copy.get(first)
    if rest and not isinstance(old, dict | list):
        old = [] if rest[0] == 0 else {}
    copy[first] = changed(old, rest, value) if rest else value
    return copy


def renamed(path, name):
    """Return the valid table with another name in one of its tables of named things."""
    table = BASE
    for key in path:
        table = table[key]
    first, *others = table.items()
    return changed(BASE, path, {name: first[1], **dict(others)})


@st.composite
def tables(draw):
    """A valid table of a MicroVM with a few fields that hold something odd."""
    table = BASE
    if draw(st.integers(0, 4)) == 0:
        table = renamed(draw(st.sampled_from(NAMED)), draw(st.sampled_from(WORDS)))
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        value = draw(ODD)
        table = changed(table, path, [value] if draw(st.integers(0, 3)) == 0 else value)
    return table


def toml(value):
    """Spell a value as TOML does, as far as it can."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    if isinstance(value, int):
        return hex(value) if value > 2**64 else "-1" if value < -(2**64) else str(value)
    if isinstance(value, str):
        return '"' + "".join(map(_character, value)) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return '"none"'


def _character(c):
    if c in '"\\' or ord(c) < 32 or 0x7F <= ord(c) < 0xA0:
        return f"\\u{ord(c):04x}"
    return "?" if 0xD800 <= ord(c) < 0xE000 else c
