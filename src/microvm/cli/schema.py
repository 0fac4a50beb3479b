"""`microvm schema`."""

import json
from argparse import ArgumentParser, Namespace

import microvm


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""


def main(args: Namespace) -> int:
    """Print the JSON Schema."""
    print(json.dumps(microvm.schema(), indent=1))
    return 0
