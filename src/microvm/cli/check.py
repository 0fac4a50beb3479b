"""`microvm check`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import microvm
from microvm.cli import project_options
from microvm.errors import HostError, Problem, SpecError

_EPILOG = """\
examples:
  microvm check                      # the project in this directory
  microvm check ./vms#web --set mem=2048
  microvm check --host               # and whether this host can run them
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_project(parser)
    parser.add_argument(
        "--host",
        action="store_true",
        help="check too whether this host can run them: programs and their versions, KVM, devices",
    )
    project_options.add_store(parser)


def main(args: Namespace) -> int:
    """Check a project; print every problem or ok."""
    project = project_options.project_of(args)
    microvm.check(project)
    # What was changed for once is the one that was meant; the others were checked as they stand.
    one = project.selected if project.overridden or args.host else None
    names = [one] if one else list(project.names)
    if args.host:
        _check_host(project, names, project_options.store_of(args))
    print(f"ok: {project.file}: {', '.join(names)}")
    return 0


def _check_host(project: microvm.Project, names: Sequence[str], store: microvm.Store) -> None:
    """Raise everything that keeps this host from running MicroVMs, as one error."""
    problems: list[Problem] = []
    lacks: dict[str, HostError] = {}
    for name in names:
        try:
            microvm.check_host(project, name, store=store)
        except SpecError as error:
            problems += error.problems
        except HostError as error:
            lacks[name] = error
    shown = [Problem(where=name, message=e.message, hint=e.hint) for name, e in lacks.items()]
    if problems:
        raise SpecError([*problems, *shown])
    if len(names) == 1 and lacks:
        raise lacks[names[0]]
    if shown:
        told = "\n".join(map(str, shown))
        raise HostError(f"this host lacks what {len(shown)} of {len(names)} need:\n{told}")
