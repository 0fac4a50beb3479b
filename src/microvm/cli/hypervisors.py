"""`microvm hypervisors`."""

import json
from argparse import ArgumentParser, Namespace

from microvm.hypervisors import hypervisor
from microvm.hypervisors.features import Feature
from microvm.model.declaration import HypervisorKind


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: Namespace) -> int:
    """Print who can do what."""
    table = {
        feature.value: {
            kind.value: hypervisor(kind).support(feature).available for kind in HypervisorKind
        }
        for feature in Feature
    }
    if args.json:
        print(json.dumps(table, indent=1))
        return 0
    kinds = [kind.value for kind in HypervisorKind]
    width = max(map(len, table))
    print(f"{'':{width}}  " + "  ".join(kinds))
    for feature, row in table.items():
        cells = (("yes" if row[kind] else "-").ljust(len(kind)) for kind in kinds)
        print(f"{feature:{width}}  " + "  ".join(cells).rstrip())
    return 0
