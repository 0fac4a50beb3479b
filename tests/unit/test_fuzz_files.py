"""Files and words from outside, damaged in odd ways: read as they mean it, or refused clearly."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import BASE, JSON, ODD, PATHS, QUICK, WORDS, changed, leaves, nested, tables, toml

import microvm
from microvm.errors import MicroVMError, SpecError, StateError
from microvm.hypervisors import hypervisor
from microvm.hypervisors.qemu import PROGRAM
from microvm.launch.planning import RUNNER_FILE, load_runner
from microvm.model.codec import to_plain
from microvm.model.facts import Accelerator, Facts, Program
from microvm.model.guest import (
    GuestSystem,
    Layer,
    LockedLayer,
    LockedPackage,
    SystemLock,
)
from microvm.model.runner import Runner
from microvm.projects import lockfile, reference
from microvm.projects.validation import validate


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "file").write_text("text")
    return directory


def loaded(directory, text, **options):
    """Return the valid project of a text, or None when it was refused in our words."""
    (directory / "microvm.toml").write_bytes(text.encode(errors="surrogateescape"))
    try:
        project = microvm.load(str(directory), **options)
        microvm.check(project)
    except SpecError as error:
        assert error.problems
        told = "\n".join(map(str, error.problems))
        assert not any(word in told for word in ("pydantic", "Input should", "set_int_max_str"))
        return None
    return project


@settings(QUICK, max_examples=150)
@given(table=tables())
def test_any_table_in_a_file_means_what_it_means_as_a_table(home, table):
    project = loaded(home, f"[microvms]\nvm = {toml(table)}\n")
    if project is not None:
        assert project.get("vm") == validate(project_table(table), "vm")[0]


def project_table(table):
    """Return a table as its TOML spelling is read."""
    import tomllib

    return tomllib.loads(f"x = {toml(table)}")["x"]


TEXT = f'[defaults]\nmem = 64\nsystem.packages = ["less"]\n[microvms.a]\n{toml(BASE)[1:-1].replace(", ", " ")}\n'
PIECES = (
    "[", "]", "[[", "{", "}", '"', "'", '"""', "'''", "=", ".", ",", "#", "\n", "\r", "\\", "\\ud800", "\\x", "\0", "\ufeff",
    "[microvms.a]\n", "[microvms.a.b]\n", "[[microvms]]\n", "[defaults.system]\n", "defaults = 1\n", "microvms = []\n",
    "1e400", "0x" + "f" * 5000, "9" * 5000, "nan", "2024-13-45", "99:99", "true", "a.b.c", "\u2028", "\udcff",
)  # fmt: skip


@st.composite
def texts(draw):
    """A valid file that somebody edited badly."""
    text = draw(st.sampled_from((TEXT, "[microvms.a]\nmem = 64\n", "")))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=5), st.just("")))
        text = text[:start] + piece + text[start + draw(st.integers(0, 12)) :]
    return text


@settings(QUICK, max_examples=400)
@given(text=texts())
def test_any_text_is_refused_in_our_words_or_read(home, text):
    loaded(home, text)


@settings(QUICK, max_examples=150)
@given(
    text=st.one_of(
        st.builds(lambda k, v: f"{k} = {toml(v)}\n", st.sampled_from(("microvms", "defaults", "microvms.a", "x")), ODD),
        st.builds(lambda k, v: f"[microvms.{toml(k)}]\nmem = {toml(v)}\n", st.sampled_from(WORDS), ODD),
        st.builds(lambda v: f"[defaults]\nsystem = {toml(v)}\n[microvms.a]\nmem = 64\n", ODD),
    )
)  # fmt: skip
def test_a_file_may_hold_anything_where_its_tables_should_be(home, text):
    loaded(home, text)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 3000 + "]" * 3000,
        "microvms.a" + ".x" * 3000 + " = 1",
        "[" + "x." * 3000 + "x]",
        "microvms.a.firecracker.extra_config = " + "{x=" * 50 + "1" + "}" * 50,
        "[" + " " * 50000,
        "[microvms.a]\nmem = " + "9" * 5000,
    ],
    ids=lambda text: text[:30],
)
def test_what_is_too_deep_or_too_long_to_be_read_is_refused_at_once(home, text):
    assert loaded(home, text) is None


@settings(QUICK, max_examples=400)
@given(
    key=st.one_of(
        st.sampled_from([".".join(map(str, path)) for path in PATHS]), st.sampled_from(WORDS)
    ),
    value=st.one_of(st.sampled_from(WORDS), ODD.map(toml)),
)
def test_any_override_is_refused_in_our_words_or_done(home, key, value):
    loaded(home, f"microvms.vm = {toml(BASE)}\n", overrides=[f"{key}={value}"])


@settings(QUICK, max_examples=300)
@given(
    text=st.one_of(
        st.sampled_from(WORDS),
        st.builds("#".join, st.tuples(st.sampled_from((*WORDS, "examples")), st.sampled_from(WORDS))),
        st.builds("git+{}?ref={}#{}".format, *(st.sampled_from((*WORDS, "https://h/r")),) * 3),
        st.text(max_size=12),
    )
)  # fmt: skip
def test_any_reference_is_refused_in_our_words_or_means_a_project(home, text):
    try:
        parsed = reference.parse(text)
        if parsed.git_url is None:
            microvm.load(text)
    except SpecError as error:
        assert all(problem.message for problem in error.problems)
        return
    assert parsed.git_ref is None or not parsed.git_ref.startswith("-")


LOCK = SystemLock(
    request="r", date=1, mirrors={"m": "1"}, sources="Types: deb\n", kernel_release="6.1",
    layers=tuple(
        LockedLayer(
            name=name,
            packages=(LockedPackage(
                name=name, version="1:1-1", architecture="all", sha256="0" * 64, size=1, url="http://m/a.deb",
            ),),
        )
        for name in lockfile.LAYERS
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def lock_table(home):
    lockfile.write(home / "lock", {"vm": LOCK})
    assert lockfile.read(home / "lock") == {"vm": LOCK}
    return json.loads((home / "lock").read_text())


def read_lock(file):
    """Read a lock that may be damaged; what is read is what was written anew."""
    try:
        locks = lockfile.read(file)
    except StateError as error:
        assert str(file) in error.message and error.hint
        assert not any(word in error.message for word in ("object is", "NoneType", "unhashable"))
        return
    for lock in locks.values():
        packages = [package for layer in lock.layers for package in layer.packages]
        assert all(len(package.sha256) == 64 for package in packages)
        assert all(package.url[:1] in "hfc" for package in packages)
    lockfile.write(file, locks)
    assert lockfile.read(file) == locks


@settings(QUICK, max_examples=400)
@given(data=st.data())
def test_a_lock_that_is_damaged_somewhere_is_one_clear_error(home, lock_table, data):
    table = lock_table
    for path in data.draw(st.lists(st.sampled_from([*leaves(lock_table)]), min_size=1, max_size=2)):
        table = changed(table, path, data.draw(JSON))
    (home / "odd.lock").write_text(json.dumps(table))
    read_lock(home / "odd.lock")


@settings(QUICK, max_examples=200)
@given(data=st.data())
def test_a_lock_that_was_cut_or_merged_badly_is_one_clear_error(home, lock_table, data):
    text = json.dumps(lock_table, indent=1)
    start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 60))
    piece = data.draw(st.one_of(st.sampled_from((*PIECES, "<<<<<<< HEAD\n")), st.text(max_size=4)))
    whole = text[:start] + piece + text[start + length :]
    (home / "odd.lock").write_bytes(whole.encode(errors="surrogateescape"))
    read_lock(home / "odd.lock")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sha256",), "../../../etc/x"), (("url",), "-oDir=/"), (("url",), "http://m/a b"),
        (("name",), "--x"), (("version",), "1\n2"), (("size",), -1), (("size",), True),
    ],
)  # fmt: skip
def test_a_lock_hands_no_argument_to_apt_and_no_path_to_the_store(home, lock_table, path, value):
    key = next(iter(lock_table["packages"]))
    table = changed(lock_table, ("packages", key, *path), value)
    (home / "odd.lock").write_text(json.dumps(table))
    with pytest.raises(StateError, match="is damaged: .*" + path[0]):
        lockfile.read(home / "odd.lock")


@pytest.mark.parametrize("text", ["", "[" * 5000, "null", "[]", "{}", '{"schema": 2}', "\udcff"])
def test_what_is_no_lock_at_all_is_one_clear_error(home, text):
    (home / "odd.lock").write_bytes(os.fsencode(text))
    with pytest.raises(StateError, match=r"odd\.lock"):
        lockfile.read(home / "odd.lock")


@pytest.fixture(scope="module")
def runner_table():
    vm, _ = validate(changed(BASE, ("shares",), []), "vm")
    system = GuestSystem(
        name="s", source="debian", description="d", architecture="x86_64", kernel="k",
        kernel_release="1", initrd="k", features=("9p",), kernel_params=("quiet",),
        layers=(Layer(name="base", tree="t", image="i", kind="erofs", uuid="u"),),
    )  # fmt: skip
    return to_plain(Runner(schema=1, name="vm", microvm=vm, system=system))


@settings(QUICK, max_examples=400)
@given(data=st.data())
def test_a_damaged_runner_is_one_clear_error(home, runner_table, data):
    table = runner_table
    for path in data.draw(st.lists(st.sampled_from([*leaves(table)]), min_size=1, max_size=2)):
        table = changed(table, path, data.draw(JSON))
    file = home / RUNNER_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table))
    try:
        runner = load_runner(home)
    except StateError as error:
        assert str(home) in error.message
        return
    facts = Facts(
        accelerator=Accelerator(kind="kvm", reason=""), programs={PROGRAM: Program(path="/q", version=(10,))},
        state_dir="/state", project_dir="/project", store_dir="/store", machine_id="1" * 32,
    )  # fmt: skip
    try:
        backend = hypervisor(runner.microvm.hypervisor)
        backend.check(runner.microvm, facts)
        if not runner.microvm.shares and runner.microvm.store_on_disk:
            backend.plan(runner, facts)
    except MicroVMError as error:
        assert error.message


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"schema": 1}', '{"schema": {}}', "[" * 5000]
)
def test_what_is_no_runner_at_all_is_one_clear_error(home, text):
    file = home / RUNNER_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    with pytest.raises(StateError, match=r"runner\.json"):
        load_runner(home)


def test_values_nested_deeply_by_hand_are_refused(home):
    deep = nested(200, lambda value: {"x": value})
    vm, found = validate({"firecracker": {"extra_config": deep}}, "vm")
    assert vm is None
    assert "nested deeper" in found[0].message
