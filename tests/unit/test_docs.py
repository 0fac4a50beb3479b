"""The handbook says what is there."""

import re
import shlex
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import microvm
from microvm import cli
from microvm.model.declaration import MicroVM

DOCS = Path(__file__).parents[2] / "docs"


def declared(annotation):
    """Return the dataclass in an annotation, if there is one."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return annotation
    return next(filter(None, map(declared, get_args(annotation))), None)


def is_option(path):
    current = MicroVM
    for part in path.split("."):
        if part == "N":
            continue
        hints = get_type_hints(current) if current else {}
        if part not in hints:
            return False
        current = declared(hints[part])
    return True


def rows(page, heading):
    section = (DOCS / page).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    return [[re.findall("`([^`]+)`", cell) for cell in row] for row in cells]


def test_options_that_the_page_about_microvm_nix_names_are_there():
    named = [row[1][0] for row in rows("microvm-nix.md", "Other names")]
    named += [row[0][0] for row in rows("microvm-nix.md", "Other defaults")]
    assert len(named) > 15
    assert [path for path in named if not is_option(path)] == []


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("how-to/*.md")))
def test_every_how_to_page_is_in_the_navigation(page):
    assert f"how-to/{page}" in (DOCS.parent / "mkdocs.yml").read_text()


def test_every_example_has_a_how_to_page():
    examples = {path.parent.name for path in (DOCS.parent / "examples").glob("*/microvm*")}
    assert {path.stem for path in DOCS.glob("how-to/*.md")} >= examples


def test_what_running_the_examples_leaves_behind_does_not_ship():
    build = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    left = [
        f"/{ignored.parent.relative_to(DOCS.parent)}/{name}"
        for ignored in (DOCS.parent / "examples").glob("*/.gitignore")
        for name in ignored.read_text().split()
    ]
    assert len(left) == 2
    assert {"microvm.lock", *left} == set(build["exclude"])


NETWORK = 'interfaces = [{ type = "user", id = "net0" }]\n'


def blocks(language):
    pages = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in pages
        for number, text in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        )
    ]


@pytest.mark.parametrize("text", blocks("toml"))
def test_declarations_in_the_handbook_are_valid(text, tmp_path):
    table = "[microvms.vm]\n" + ("" if "interfaces" in text else NETWORK)  # around a fragment
    whole = text if "[microvms." in text else table + text
    (tmp_path / "microvm.toml").write_text(whole)
    assert microvm.load(str(tmp_path)).problems == ()


@pytest.mark.parametrize("text", [b for b in blocks("python") if "microvms = " in b.values[0]])
def test_python_projects_in_the_handbook_are_valid(text, tmp_path):
    (tmp_path / "microvms.py").write_text(text)
    assert microvm.load(str(tmp_path)).problems == ()


@pytest.mark.parametrize("text", blocks("sh"))
def test_commands_in_the_handbook_have_options_that_there_are(text):
    for line in text.replace("&&", "\n").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["microvm"]:
            words = words[1 : words.index("--") if "--" in words else None]
            cli.parser().parse_args(words)
