"""`microvm lock`."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

import microvm
from microvm.cli import progress, project_options, tell

_EPILOG = """\
examples:
  microvm lock                       # resolve what is not locked yet
  microvm lock --update              # take the mirror's newest of everything
  microvm lock --update web --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_project(parser, overrides=False)
    project_options.add_store(parser)
    parser.add_argument(
        "--update",
        nargs="?",
        const=".",
        metavar="NAME",
        help="resolve again what is locked already; with NAME only that MicroVM",
    )
    parser.add_argument("--json", action="store_true", help="print the changes as JSON")


def main(args: Namespace) -> int:
    """Lock a project's MicroVMs, or the one that the reference names."""
    if args.update not in (None, ".") and args.reference == ".":
        args.reference = args.update  # a bare name is a reference; so is a whole one
        args.update = "."
    project = project_options.project_of(args)
    names = [project.selected] if project.selected else None
    if args.update not in (None, "."):
        project.get(args.update)
        names = [args.update]
    with progress.shown(progress.Steps()) as report:
        result = microvm.lock(
            project,
            names,
            update=args.update is not None,
            store=project_options.store_of(args),
            progress=report,
        )
    if args.json:
        print(
            json.dumps(
                {"file": str(result.file), "changes": [asdict(c) for c in result.changes]}, indent=1
            )
        )
        return 0
    for change in result.changes:
        print(change)
    count = len(result.changes)
    tell(f"{result.file}: {count or 'no'} change{'s' if count != 1 else ''}")
    return 0
