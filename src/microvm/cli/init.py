"""`microvm init`."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import microvm

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
    where = "" if args.directory == Path() else f" ./{args.directory}"
    print(f"microvm: next: microvm run{where}", file=sys.stderr)
    return 0
