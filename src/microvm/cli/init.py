"""`microvm init`."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

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
    parser.add_argument(
        "--template", default="default", metavar="NAME", help="default, web, job or python"
    )


def main(args: Namespace) -> int:
    """Write a project."""
    for path in microvm.init(args.directory, args.template):
        print(path)
    where = "" if args.directory == Path() else f" ./{args.directory}"
    print(f"microvm: next: microvm run{where}", file=sys.stderr)
    return 0
