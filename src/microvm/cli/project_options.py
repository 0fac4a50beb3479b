"""Options that several verbs share: which project, which fields are changed, which store."""

from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import microvm
from microvm.cli import STORE_HELP

COMPLETE_REFERENCE = {"bash": "_microvm_references", "zsh": "_microvm_references"}
"""Shell functions that `completion` defines."""


def add_project(parser: ArgumentParser, *, overrides: bool = True) -> None:
    """Declare the reference and what changes it."""
    reference: Any = parser.add_argument(
        "reference",
        nargs="?",
        default=".",
        metavar="REF",
        help="what to use (default: the project in this directory)",
    )
    reference.complete = COMPLETE_REFERENCE
    parser.add_argument(
        "--trust", action="store_true", help="grant a foreign project what it asks of the host"
    )
    if overrides:
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change one field, such as mem=1024 or volumes.0.size=2048; a part with dots in "
            'quotes: system.units."a.service".mask=true',
        )
        hypervisor: Any = parser.add_argument(
            "--hypervisor",
            metavar="NAME",
            help="run on this hypervisor instead of the declared one",
        )
        hypervisor.words = hypervisors


def hypervisors() -> list[str]:
    """Return the words for completion; the model is not loaded before somebody asks."""
    from microvm.model.declaration import HypervisorKind

    return list(HypervisorKind)


def add_store(parser: ArgumentParser) -> None:
    """Declare the store's place."""
    parser.add_argument(
        "--store",
        type=Path,
        # The one before the verb stays where there is none after it.
        default=SUPPRESS,
        metavar="DIR",
        help=STORE_HELP,
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
