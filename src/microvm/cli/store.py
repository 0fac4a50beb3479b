"""`microvm store`."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

import microvm
from microvm.cli import progress, project_options
from microvm.store.downloads import KEPT_DAYS

_EPILOG = """\
examples:
  microvm store gc --dry-run         # what no machine, run or out-link needs
  microvm store gc --all             # keep no downloads either
  microvm --store /mnt/store store verify
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_store(parser)
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "list the items, and how much of the disk all takes"),
        (
            "gc",
            "delete what nothing refers to, what killed builds left, and packages and package "
            f"lists that no kept item was made of and no build used for {KEPT_DAYS} days",
        ),
        ("verify", "check that every item is whole"),
    ):
        sub = verbs.add_parser(name, help=text, description=f"{text.capitalize()}.")
        project_options.add_store(sub)
        sub.add_argument("--json", action="store_true", help="print JSON")
        if name == "gc":
            sub.add_argument("--dry-run", action="store_true", help="only tell what would go")
            sub.add_argument(
                "--all",
                action="store_true",
                help="also every downloaded package and package list, needed soon or not",
            )


def main(args: Namespace) -> int:
    """Carry out one action on the store."""
    store = project_options.store_of(args)
    return {"list": _list, "gc": _collect, "verify": _verify}[args.action](store, args)


def _list(store: "microvm.Store", args: Namespace) -> int:
    found = store.contents()
    if args.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    for name, size in found.items.items():
        print(f"{_mib(size):>12}  {name}")
    kinds = (
        ("items", len(found.items), sum(found.items.values())),
        ("downloaded packages", found.packages.count, found.packages.bytes),
        ("package lists", found.lists.count, found.lists.bytes),
        ("left by killed builds", found.abandoned.count, found.abandoned.bytes),
    )
    for kind, count, size in kinds:
        print(f"{_mib(size):>12}  in all: {count} {kind}")
    return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _collect(store: "microvm.Store", args: Namespace) -> int:
    with progress.shown(progress.Steps()) as report:
        found = store.collect(dry_run=args.dry_run, everything=args.all, progress=report)
    if args.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    for name in (*found.items, *found.abandoned):
        print(name)
    verb = "would free" if args.dry_run else "freed"
    downloads = f"{found.packages} downloaded packages and {found.lists} package lists"
    count = len(found.items) + len(found.abandoned)
    print(f"{verb} {_mib(found.freed)}: {count} of the above, {downloads}; {found.kept} items stay")
    return 0


def _verify(store: "microvm.Store", args: Namespace) -> int:
    with progress.shown(progress.Steps()) as report:
        found = store.verify(progress=report)
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
