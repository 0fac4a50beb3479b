"""`microvm doctor`."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

import microvm
from microvm.cli import project_options


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    project_options.add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: Namespace) -> int:
    """Print what the host can do; 4 when something that every guest needs is missing."""
    findings = microvm.examine(project_options.store_of(args).path)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        marks = {"good": "ok  ", "lacking": "lack", "broken": "FAIL"}
        for finding in findings:
            print(f"{marks[finding.state]} {finding.topic}: {finding.text}")
            if finding.mend:
                print(f"       {finding.mend}")
    return 4 if any(finding.state == "broken" for finding in findings) else 0
