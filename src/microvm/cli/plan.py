"""`microvm plan`."""

import json
import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

import microvm
from microvm.cli import progress, project_options

_EPILOG = """\
examples:
  microvm plan web                   # the command, ready to paste
  microvm plan --set vcpu=4 --json web
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_project(parser)
    project_options.add_store(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def main(args: Namespace) -> int:
    """Print the plan."""
    project = project_options.project_of(args)
    with progress.shown(progress.Steps()) as report:
        plan = microvm.plan(project, store=project_options.store_of(args), progress=report)
    if args.json:
        print(json.dumps(asdict(plan), indent=1))
        return 0
    for note in plan.notes:
        print(f"# {note}")
    for volume in plan.volumes:
        print(f"volume {volume.image}: {volume.size_mib} MiB {volume.fs_type} {volume.uuid}")
    for tap in plan.taps:
        print(f"tap {tap.name}{f' on {tap.bridge}' if tap.bridge else ''}")
    for macvtap in plan.macvtaps:
        print(f"macvtap {macvtap.name} on {macvtap.link}, {macvtap.mode}, {macvtap.mac}")
    for one in plan.opened:
        print(f"# descriptor {one.number}: a queue of {one.name}")
    for helper in plan.helpers:
        print(f"helper {helper.name}: {shlex.join(helper.argv)}")
    if plan.credentials:
        print(f"disk {plan.credentials.image}: {', '.join(sorted(plan.credentials.files))}")
    for path, text in plan.files.items():
        print(f"file {path}:\n{text}")
    print(_wrapped(plan.argv))
    return 0


def _wrapped(argv: tuple[str, ...]) -> str:
    """Return a command with each option on a line of its own, to paste into a shell."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(f"    {shlex.quote(word)}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)
