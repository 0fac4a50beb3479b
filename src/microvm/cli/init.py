"""`microvm init`."""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import microvm
from microvm.cli import tell

_EPILOG = """\
examples:
  microvm init demo && microvm run ./demo
  microvm init --template job .
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where (default: here)",
    )
    template: Any = parser.add_argument(
        "--template", default="default", metavar="NAME", help="default, job, python or web"
    )
    template.words = _templates


def _templates() -> tuple[str, ...]:
    from microvm.projects.init import TEMPLATES

    return TEMPLATES


def main(args: Namespace) -> int:
    """Write a project."""
    for path in microvm.init(args.directory, args.template):
        print(path)
    tell(f"next: {_next(args.template, args.directory)}")
    return 0


def _next(template: str, directory: Path) -> str:
    """Return the command to type now."""
    place = str(directory) if directory.is_absolute() else f"./{directory}"
    here = directory == Path()
    if template == "python":  # it has several
        return f"microvm run {'' if here else f'{place}#'}worker-1"
    words = ["microvm run", *(["--ephemeral"] if template == "job" else [])]
    words += [] if here else [shlex.quote(place)]
    return " ".join([*words, *(["-- make"] if template == "job" else [])])
