"""`python -m bench`: measure, print the table, and after a whole run write docs/performance.md."""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from bench import report
from bench.bench import Bench
from bench.measure import Row

SUBJECTS = ("launch", "plan", "load", "build", "same", "boot")


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        choices=SUBJECTS,
        action="append",
        help="measure one subject (may be given several times); the page is left alone",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure once each; the page is left alone"
    )
    return parser.parse_args()


def main() -> None:
    """Run the subjects in a directory of their own, on disk as builds are."""
    args = arguments()
    load = [os.getloadavg()[0]]
    place = os.environ.get("TMPDIR", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="microvm-bench-", dir=place) as name:
        bench = Bench.start(Path(name), quick=args.quick)
        rows: list[Row] = []
        for subject in SUBJECTS:
            if args.only and subject not in args.only:
                continue
            for row in importlib.import_module(f"bench.{subject}").rows(bench):
                print(report.line(row), flush=True)
                rows.append(row)
        load.append(os.getloadavg()[0])
        clean(bench)
    page = report.page(rows, "make bench", load)
    if args.only or args.quick:
        sys.stderr.write("bench: a part or a quick look; docs/performance.md is left alone\n")
        print(page)
    else:
        report.PAGE.write_text(page)


def clean(bench: Bench) -> None:
    """Let the store delete its trees, which belong to sub-uids."""
    for link in bench.directory.iterdir():
        if link.is_symlink():
            link.unlink()
    bench.collect()


if __name__ == "__main__":
    main()
