"""`microvm store`."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

import microvm
from microvm.cli import project_options

_EPILOG = """\
examples:
  microvm store gc --dry-run         # what no machine, run or out-link needs
  microvm --store /mnt/store store verify
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_store(parser)
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "list the items"),
        ("gc", "delete what nothing refers to, and what killed builds left"),
        ("verify", "check that every item is whole"),
    ):
        sub = verbs.add_parser(name, help=text, description=f"{text.capitalize()}.")
        project_options.add_store(sub)
        sub.add_argument("--json", action="store_true", help="print JSON")
        if name == "gc":
            sub.add_argument("--dry-run", action="store_true", help="only tell what would go")


def main(args: Namespace) -> int:
    """Carry out one action on the store."""
    store = project_options.store_of(args)
    return {"list": _list, "gc": _collect, "verify": _verify}[args.action](store, args)


def _list(store: "microvm.Store", args: Namespace) -> int:
    names = store.names()
    if args.json:
        print(json.dumps(names, indent=1))
        return 0
    for name in names:
        print(name)
    return 0


def _collect(store: "microvm.Store", args: Namespace) -> int:
    found = store.collect(dry_run=args.dry_run)
    if args.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    for name in (*found.items, *found.abandoned):
        print(name)
    verb = "would free" if args.dry_run else "freed"
    print(f"{verb} {found.freed >> 20} MiB; {found.kept} items stay")
    return 0


def _verify(store: "microvm.Store", args: Namespace) -> int:
    found = store.verify()
    if args.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        for problem in found.problems:
            print(problem)
        left = (
            f"; {len(found.abandoned)} left by killed builds: microvm store gc"
            if found.abandoned
            else ""
        )
        print(f"{found.items} items, {len(found.problems)} problems{left}")
    return 1 if found.problems else 0
