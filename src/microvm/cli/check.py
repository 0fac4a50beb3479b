"""`microvm check`."""

from argparse import ArgumentParser, Namespace

import microvm
from microvm.cli import project_options


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    project_options.add_project(parser)


def main(args: Namespace) -> int:
    """Check a project; print every problem or ok."""
    project = project_options.project_of(args)
    microvm.check(project)
    names = ", ".join(project.names)
    print(f"ok: {project.file}: {names}")
    return 0
