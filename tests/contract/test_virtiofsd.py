"""Both virtiofsds honour each option of a share, or the declaration is refused: none is ignored."""

import itertools
import subprocess
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from microvm.errors import SpecError
from microvm.hypervisors import hypervisor
from microvm.hypervisors.qemu import PROGRAM
from microvm.hypervisors.virtiofsd import PLACES, virtiofsd
from microvm.model.declaration import MicroVM
from microvm.model.devices import Share
from microvm.model.facts import Program
from microvm.model.options import VirtiofsdOptions
from microvm.model.system import DebianSystem
from microvm.projects import rules
from planned import facts, plan

FLAVOURS = {
    "rust": Program(path="/v", version=(1, 13, 2), flavour="rust"),
    "c": Program(path="/v", version=(7, 2, 22), flavour="c"),
}
SHARE = Share(tag="s", source="/srv/s", mount_point="/s")
GENERIC = DebianSystem(kernel="generic")  # it has 9p

SAMPLES = {
    "tag": ("other",), "source": ("/srv/other", "relative"), "socket": ("x.sock",),
    "uid_map": (("map:1:0:1",),), "gid_map": (("map:1:0:1",),), "dax_window_size": (9,),
    "extra_args": (("--one",), ("--one", "--two")), "thread_pool_size": (0, 3), "group": ("kvm",),
    "program": ("/opt/virtiofsd",),
}  # fmt: skip
"""Values of fields whose type does not list them."""

NOT_OURS = {"mount_point"}
"""Fields for the guest, which virtiofsd never hears of."""
ALREADY_SO = {
    ("c", "inode_file_handles"): {None, "never", "prefer"},
}
"""Values that ask for nothing that this virtiofsd would have to be told: it has no file handles."""


def values(cls, name):
    """Return every value that an option is tried with."""
    kind = typing.get_type_hints(cls)[name]
    options = [kind, *typing.get_args(kind)]
    listed = [
        value for option in options if typing.get_origin(option) is typing.Literal
        for value in typing.get_args(option)
    ]  # fmt: skip
    if type(None) in options:
        listed.append(None)
    return [True, False] if kind is bool else [*listed, *SAMPLES.get(name, ())]


def outcome(vm, program):
    """Return what becomes of a declaration: command lines and helpers, or where it is refused."""
    program = replace(program, path=vm.virtiofsd.program or program.path)
    vmm = Program(path="/q", version=(10, 0))
    known = facts("qemu", programs={PROGRAM: vmm, "virtiofsd": program})
    problems = [
        *hypervisor("qemu").check(vm, known), *rules.check_all({"vm": vm}, Path("/nosuch")),
    ]  # fmt: skip
    try:
        planned = plan(vm, known)
    except SpecError as error:
        problems += error.problems
    if problems:
        assert all(p.hint or "microvms.vm" in p.where for p in problems), (
            "refused without a way out"
        )
        return ("refused", frozenset(problem.where for problem in problems))
    return planned.argv, planned.helpers


def declared(cls, name, value):
    share, options = SHARE, VirtiofsdOptions()
    if cls is Share:
        share = replace(share, **{name: value})
    else:
        options = replace(options, **{name: value})
    return MicroVM(system=GENERIC, shares=(share,), virtiofsd=options)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (cls, field.name)
        for cls in (Share, VirtiofsdOptions)
        for field in fields(cls)
        if field.name not in NOT_OURS
    ],
)
def test_every_value_of_every_option_has_an_outcome_of_its_own(cls, name, flavour):
    tried = values(cls, name)
    assert tried, f"say in SAMPLES what to try {name} with"
    default = getattr(SHARE if cls is Share else VirtiofsdOptions(), name)
    tried += [] if default in tried else [default]
    silent = ALREADY_SO.get((flavour, name), set())
    program = FLAVOURS[flavour]
    found = {repr(value): outcome(declared(cls, name, value), program) for value in tried}
    accepted = {value for value, result in found.items() if result[0] != "refused"}
    for one, other in itertools.combinations(sorted(accepted), 2):
        if {one, other} <= {repr(value) for value in silent}:
            assert found[one] == found[other]
        else:
            assert found[one] != found[other], f"{one} and {other} come to the same"
    assert repr(default) in accepted


def test_what_the_c_one_lacks_is_refused_with_a_way_out():
    for cls, name, value in (
        (VirtiofsdOptions, "inode_file_handles", "mandatory"),
        (Share, "uid_map", ("map:1:0:1",)),
        (Share, "cache", "metadata"),
    ):
        kind, where = outcome(declared(cls, name, value), FLAVOURS["c"])
        assert kind == "refused"
        assert any(name in key for key in where)


def test_layers_from_a_user_namespace_have_no_file_handles():
    vm = replace(declared(VirtiofsdOptions, "inode_file_handles", "mandatory"), store_on_disk=False)
    assert outcome(vm, FLAVOURS["rust"])[0] == "refused"
    assert outcome(replace(vm, store_on_disk=True), FLAVOURS["rust"])[0] != "refused"


def test_a_rust_one_without_readonly_serves_layers_and_refuses_such_shares():
    old = Program(path="/v", version=(1, 10, 0), flavour="rust")
    assert outcome(declared(Share, "read_only", True), old)[0] == "refused"
    _, helpers = outcome(MicroVM(store_on_disk=False), old)
    assert all(helper.read_only and "--readonly" not in helper.argv for helper in helpers)


@pytest.mark.parametrize("name", ["a,cache=always", "back\\slash", "\\,\\054,", "two words"])
def test_the_c_one_reads_the_path_that_was_meant(name, tool, tmp_path):
    found = next((p for d in PLACES if (p := Path(d, "virtiofsd")).exists()), None)
    path = str(found or tool("virtiofsd"))
    told = subprocess.run([path, "--version"], capture_output=True, check=False, text=True)
    if "FUSE" not in told.stdout + told.stderr:
        pytest.skip("virtiofsd is not the C one")
    source = f"{tmp_path}/{name}"
    program = Program(path=path, version=(7, 2), flavour="c")
    argv = virtiofsd(program, SHARE, source, VirtiofsdOptions(), mapped=True)
    # It is not there: virtiofsd says which one it looked for.
    done = subprocess.run(
        [*argv, f"--socket-path={tmp_path}/sock"], capture_output=True, check=False, timeout=50
    )
    assert f'"{source}"' in done.stderr.decode()
