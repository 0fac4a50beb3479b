"""Options that several verbs share: which project, which fields are changed, which store."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import microvm


def add_project(parser: ArgumentParser, *, overrides: bool = True) -> None:
    """Declare the reference and what changes it."""
    parser.add_argument(
        "reference",
        nargs="?",
        default=".",
        metavar="REF",
        help="what to use (default: the project in this directory)",
    )
    parser.add_argument(
        "--trust", action="store_true", help="grant a foreign project what it asks of the host"
    )
    if overrides:
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change one field, such as mem=1024 or volumes.0.size=2048",
        )
        parser.add_argument(
            "--hypervisor",
            metavar="NAME",
            help="run on this hypervisor instead of the declared one",
        )


def add_store(parser: ArgumentParser) -> None:
    """Declare the store's place."""
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="where build results are kept (default: $MICROVM_STORE, else a fixed place)",
    )


def project_of(args: Namespace) -> "microvm.Project":
    """Load the project that the arguments name."""
    return microvm.load(
        args.reference,
        overrides=getattr(args, "set", ()),
        hypervisor=getattr(args, "hypervisor", None),
        trusted=args.trust,
    )


def store_of(args: Namespace) -> "microvm.Store":
    """Open the store that the arguments name."""
    return microvm.Store.open(args.store)
