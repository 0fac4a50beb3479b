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
    # What was changed for once is the one that was meant; the others were checked as they stand.
    one = project.selected if project.overridden else None
    names = ", ".join([one] if one else project.names)
    print(f"ok: {project.file}: {names}")
    return 0
