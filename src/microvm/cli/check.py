"""`microvm check`."""

from argparse import ArgumentParser, Namespace

import microvm
from microvm.cli import project_options

_EPILOG = """\
examples:
  microvm check                      # the project in this directory
  microvm check ./vms#web --set mem=2048
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_project(parser)


def main(args: Namespace) -> int:
    """Check a project; print every problem or ok."""
    project = project_options.project_of(args)
    microvm.check(project)
    names = ", ".join(project.names)
    print(f"ok: {project.file}: {names}")
    return 0
