"""`microvm build`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import microvm
from microvm.cli import progress, project_options

_EPILOG = """\
examples:
  microvm build web --out-link result
  ./result/bin/microvm-run           # starts it in the current directory
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_project(parser)
    project_options.add_store(parser)
    parser.add_argument(
        "--out-link",
        type=Path,
        metavar="PATH",
        help="make a link to the runner, which also keeps it",
    )


def main(args: Namespace) -> int:
    """Build a runner and print its path."""
    project = project_options.project_of(args)
    with progress.shown(progress.Steps()) as report:
        runner = microvm.build(
            project, store=project_options.store_of(args), out_link=args.out_link, progress=report
        )
    print(runner)
    return 0
