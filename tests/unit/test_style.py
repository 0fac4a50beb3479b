"""What no linter checks: sizes, completeness of docstrings and annotations, who may print."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import microvm

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src/microvm").rglob("*.py"))
SHOWN = [str(path.relative_to(ROOT)) for path in SOURCES]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def tree(name):
    return ast.parse((ROOT / name).read_text())


def public(node, prefix=""):
    """Yield every public class and function of a module with its dotted name."""
    for child in node.body:
        if isinstance(child, FUNCTION | ast.ClassDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


def test_no_two_test_modules_share_a_name():
    # pytest imports them by their base name, and a whole run would stop at the second.
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not [name for name, count in Counter(names).items() if count > 1]


@pytest.mark.parametrize("name", SHOWN)
def test_a_module_fits_into_one_head(name):
    assert len((ROOT / name).read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", SHOWN)
def test_functions_are_short(name):
    for node in ast.walk(tree(name)):
        if isinstance(node, FUNCTION):
            count = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
            assert count <= 40, f"{node.name} has {count} statements"


@pytest.mark.parametrize("name", SHOWN)
def test_everything_public_has_a_docstring(name):
    module = tree(name)
    assert ast.get_docstring(module), "the module has none"
    missing = [where for where, node in public(module) if not ast.get_docstring(node)]
    assert not missing


@pytest.mark.parametrize("name", SHOWN)
def test_everything_is_annotated(name):
    for node in ast.walk(tree(name)):
        if not isinstance(node, FUNCTION):
            continue
        assert node.returns is not None, f"{node.name} says not what it returns"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{node.name}: {bare}"


@pytest.mark.parametrize("name", [name for name in SHOWN if "/cli/" not in name])
def test_only_the_command_line_prints_and_exits(name):
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit"), f"line {node.lineno}"


def test_every_declared_field_has_a_docstring():
    for path in (ROOT / "src/microvm/model").glob("*.py"):
        for where, node in public(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or "__pydantic_config__" not in ast.unparse(node):
                continue
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if not isinstance(field, ast.AnnAssign):
                    continue
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert told, f"{where}.{ast.unparse(field.target)} of {path.name}"


def test_the_public_names_are_sorted_and_all_there():
    assert microvm.__all__ == sorted(microvm.__all__)
    for name in microvm.__all__:
        assert getattr(microvm, name) is not None
    typed = (ROOT / "src/microvm/__init__.pyi").read_text()
    assert set(re.findall(r" as (\w+)$", typed, re.MULTILINE)) == set(microvm.__all__)


def test_nothing_names_a_persons_or_a_machines_path():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("git does not list the files of this tree")
    personal = re.compile(r"/root/\.(?:pyenv|cargo)|/Users/|/w[o]rk/|/tmp/\w+/\w+/\w+")
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file() or name == "tests/unit/test_style.py":
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            assert not personal.search(line), f"{name}:{number}: {line}"
