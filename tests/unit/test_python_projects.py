"""A `microvms.py` is a program: whatever it does, it declares MicroVMs or is told what is wrong."""

import signal
import subprocess
import sys

import pytest

import microvm
from microvm.errors import SpecError

VM = "from microvm import *\n"


@pytest.fixture
def project(tmp_path):
    def write(text):
        (tmp_path / "microvms.py").write_bytes(text.encode(errors="surrogatepass"))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\nimport sys\nsys.exit()\n", 3, "ends the program"),
        ("raise SystemExit('no')\n", 1, "ends the program"),
        ("\nraise GeneratorExit\n", 2, "GeneratorExit"),
        ("import asyncio\nraise asyncio.CancelledError\n", 2, "CancelledError"),
        ("def f(): f()\nf()\n", 1, "RecursionError"),
        ("class E(Exception):\n  def __str__(self): raise E\nraise E\n", 3, "str() failed"),
        ("raise ExceptionGroup('two', [ValueError('a')])\n", 1, "two"),
        ("x = (\n", 1, "never closed"),
        ("x = 1\n  y = 2\n", 2, "indent"),
        ("import nosuchmodule\n", 1, "nosuchmodule"),
        ("import sys\nsys.path = 5\nmicrovms = 1 / 0", 3, "division"),
        ("", None, "does not bind `microvms`"),
        ("microvms = [1]\n", None, "does not bind `microvms`"),
        ("microvms = {'a': 1}\n", None, "int is no MicroVM"),
        ("microvms = {'a': {'mem': 64}}\n", None, "dict is no MicroVM"),
        (f"{VM}microvms = {{1: MicroVM()}}\n", None, "names of MicroVMs are texts, not int"),
        (f"{VM}microvms = {{'a': MicroVM}}\n", None, "type is no MicroVM"),
        (f"{VM}defaults = 5\nmicrovms = {{'a': MicroVM()}}\n", None, "int is no MicroVM"),
        (f"{VM}microvms = {{'a': MicroVM(nosuch=1)}}\n", 2, "nosuch"),
        (
            f"{VM}x = {{}}\nx['x'] = x\nmicrovms = {{'a': MicroVM("
            "firecracker=FirecrackerOptions(extra_config=x))}\n",
            None,
            "RecursionError",
        ),
    ],
)
def test_what_a_project_does_instead_is_told(project, text, line, said):
    path = list(sys.path)
    with pytest.raises(SpecError) as caught:
        microvm.load(project(text))
    assert said in str(caught.value)
    assert caught.value.problems[0].line == line
    assert sys.path == path


def test_a_file_that_no_python_reads_is_told(project):
    for text in ("x = '\0'\n", "\ud800"):
        with pytest.raises(SpecError):
            microvm.load(project(text))


@pytest.mark.parametrize(
    ("fields", "where", "said"),
    [
        ("mem='x'", "mem", "'x' is not a whole number"),
        ("mem=object()", "mem", "is not a whole number"),
        ("mem=Shy()", "mem", "<Shy instance"),
        ("mem=10**5000", "mem", "a number of 16610 bits"),
        ("volumes=5", "volumes", "5 is not a list"),
        ("volumes=(5,)", "volumes.0", "5 is not a table"),
        ("volumes=(Volume(image=5, size=1),)", "volumes.0.image", "5 is not a text"),
        ("system=DebianSystem(hostname='\\udc80')", "system.hostname", "not Unicode text"),
        (
            "system=DebianSystem(files={'/a': File(text='\\udc80')})",
            "system.files.'/a'.text",
            "not Unicode",
        ),
        ("system=DebianSystem(files={5: File(text='')})", "system.files.5", "5 is not a text"),
        ("initrd_path=Path('x')", "initrd_path", "is not a text"),
    ],
)
def test_fields_of_wrong_types_are_told_as_in_toml(project, fields, where, said):
    text = (
        "from pathlib import Path\nfrom microvm import *\nfrom microvm.model.devices import Volume\n"
        "from microvm.model.system import File\n"
        "class Shy:\n    def __repr__(self): raise ValueError\n"
        f"microvms = {{'a': MicroVM({fields})}}\n"
    )
    found = microvm.load(project(text)).problems
    assert found[0].where == f"microvms.a.{where}"
    assert said in found[0].message


def test_what_a_project_prints_is_no_output_of_ours(project, capfd):
    text = f"{VM}print('hello')\nimport sys\nsys.stdout.write('x')\nmicrovms = {{'a': MicroVM()}}\n"
    assert microvm.load(project(text)).problems == ()
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == "hello\nx"


def test_a_project_may_import_its_neighbours(project, tmp_path):
    (tmp_path / "neighbour_of_a_project.py").write_text("SIZE = 77\n")
    text = f"from neighbour_of_a_project import SIZE\n{VM}microvms = {{'a': MicroVM(mem=SIZE)}}\n"
    assert microvm.load(project(text)).get("a").mem == 77


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_project_that_never_ends_is_ended_by_a_signal(project, number):
    text = "print('running', flush=True)\nwhile True: pass\n"
    words = [sys.executable, "-m", "microvm.cli", "check", project(text)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        try:
            assert command.stderr.readline() == b"running\n"
            command.send_signal(number)
            _, told = command.communicate(timeout=50)
        finally:
            command.kill()
    assert command.returncode == 128 + number
    assert b"Traceback" not in told


def test_defaults_hold_where_they_have_an_effect_as_in_toml(project):
    text = f"{VM}defaults = MicroVM(deflate_on_oom=True)\nmicrovms = {{'b': MicroVM()"
    found = microvm.load(project(f"{text}, 'a': MicroVM(balloon=True)}}\n"))
    assert [found.get(name).deflate_on_oom for name in "ab"] == [True, None]
    [problem] = microvm.load(project(f"{text}}}\n")).problems
    assert problem.where == "defaults.deflate_on_oom"
