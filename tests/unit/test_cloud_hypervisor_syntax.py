"""How further arguments join those that cloud-hypervisor is started with."""

import pytest

from microvm.hypervisors.cloud_hypervisor_syntax import Arguments, split, value
from microvm.model.facts import Program


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("a=b", ["a=b"]),
        ("a=[1,2],b=3", ["a=[1,2]", "b=3"]),
        ("a=[0@[1,2],1@[3]],b", ["a=[0@[1,2],1@[3]]", "b"]),
        ('path="a,b [",x=y', ['path="a,b ["', "x=y"]),
    ],
)
def test_lists_are_split_where_the_program_splits_them(text, parts):
    assert split(text) == parts
    assert ",".join(parts) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [("a", "a"), ("a b", "a b"), ("a,b", '"a,b"'), (" a", '" a"'), ("[a", '"[a"'), ("ä=", "ä=")],
)
def test_values_are_quoted_only_where_they_must_be(text, written):
    assert value(text, Program(path="", version=(53,)), "") == written
    assert split(f"path={written},x=y") == [f"path={written}", "x=y"]


def merged(*extra):
    arguments = Arguments("vmm")
    arguments.add("--cpus", "boot=2")
    arguments.add("--disk", "path=a")
    arguments.add("--serial", "tty")
    arguments.add("--landlock")
    arguments.merge(extra)
    return list(arguments.words())


OURS = ["vmm", "--cpus", "boot=2", "--disk", "path=a", "--serial", "tty", "--landlock"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ((), OURS),
        (("-v", "-v"), [*OURS, "-v", "-v"]),
        (("odd", "--watchdog"), [*OURS, "odd", "--watchdog"]),
        (("--watchdog",), [*OURS, "--watchdog"]),
        (("--landlock",), OURS),
        (("--log-file", "x"), [*OURS, "--log-file", "x"]),
        (("--cpus", "max=4,boot=1"), [*OURS[:2], "boot=1,max=4", *OURS[3:]]),
        (("--cpus=boot=3",), [*OURS[:2], "boot=3", *OURS[3:]]),
        (("--serial", "null"), [*OURS[:6], "null", "--landlock"]),
        (("--disk", "path=b", "path=c"), [*OURS[:5], "path=b", "path=c", *OURS[5:]]),
        (("--disk", "path=b", "--disk", "path=c"), [*OURS[:5], "path=b", "path=c", *OURS[5:]]),
        (("--net", "tap=x", "--net=tap=y"), [*OURS, "--net", "tap=x", "tap=y"]),
    ],
)
def test_further_arguments_join_ours(extra, words):
    assert merged(*extra) == words
