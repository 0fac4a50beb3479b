"""An option that means nothing without another one is refused when that one is missing: no two
declarations that differ lead to the same machine without a word.
"""

from pathlib import Path

import pytest

from microvm.model.declaration import HypervisorKind, MicroVM
from microvm.model.devices import Graphics, Volume
from microvm.model.system import DebianSystem, Repository
from microvm.projects import rules

LONE = [
    ({"deflate_on_oom": True}, {"balloon": True}, "deflate_on_oom"),
    ({"deflate_on_oom": False}, {"balloon": True}, "deflate_on_oom"),
    ({"store_proto": "9p"}, {"store_on_disk": False}, "store_proto"),
    ({"store_on_disk": False, "store_disk_type": "squashfs"}, {"store_on_disk": True}, "store_disk_type"),
    (
        {"store_on_disk": False, "store_disk_erofs_flags": ("-zlz4",)},
        {"store_on_disk": True}, "store_disk_erofs_flags",
    ),
    (
        {"store_disk_type": "squashfs", "store_disk_erofs_flags": ("-zlz4",)},
        {"store_disk_type": "erofs"}, "store_disk_erofs_flags",
    ),
    (
        {"store_disk_squashfs_flags": ("-comp", "gzip")},
        {"store_disk_type": "squashfs"}, "store_disk_squashfs_flags",
    ),
    *(
        ({"system": DebianSystem(security_mirror="http://s", **lone)}, {"system": DebianSystem(security_mirror="http://s")}, "system.security_mirror")
        for lone in ({"updates": False}, {"release": "sid"})
    ),
    (
        {"system": DebianSystem(repositories=(Repository(url="http://r", key="/etc/hostname", trusted=True),))},
        {"system": DebianSystem(repositories=(Repository(url="http://r", key="/etc/hostname"),))},
        "system.repositories.0.key",
    ),
    *(
        ({"graphics": Graphics(**{key: value})}, {"graphics": Graphics(enable=True, **{key: value})}, f"graphics.{key}")
        for key, value in (("backend", "headless"), ("socket", "x"), ("vulkan", "venus"), ("hostmem", "1G"))
    ),
]  # fmt: skip


def refused(**fields):
    found = []
    for kind in HypervisorKind:
        declared = {"vm": MicroVM(hypervisor=kind.value, **fields)}
        problems = rules.check_all(declared, Path("/nosuch"))
        assert all(problem.hint for problem in problems)
        found.append({problem.where.removeprefix("microvms.vm.") for problem in problems})
    assert all(places == found[0] for places in found), "the same on every hypervisor"
    return found[0]


@pytest.mark.parametrize(("fields", "needed", "where"), LONE)
def test_an_option_without_the_one_that_it_needs_is_refused(fields, needed, where):
    assert refused(**fields) == {where}
    assert refused(**{**fields, **needed}) == set()


@pytest.mark.parametrize(
    ("volume", "made"),
    [
        ({"image": "v", "auto_create": False}, {"image": "v", "size": 10}),
        ({"image": "/dev/vg/v"}, {"image": "v", "size": 10}),
    ],
)
def test_what_a_file_system_is_made_with_is_refused_where_none_is_made(volume, made):
    asked = {"label": "data", "mkfs_extra_args": ("-v",)}
    where = {f"volumes.0.{key}" for key in asked}
    assert refused(volumes=(Volume(**volume, **asked),)) == where
    assert refused(volumes=(Volume(**made, **asked),)) == set()
