"""`microvm run`."""

import math
import select
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import deque
from contextlib import suppress

import microvm
from microvm.cli import progress, project_options

STUCK_S = 2.0
KEPT = 20
"""Messages that are kept for a job whose machine fails: the last ones."""
_EPILOG = """\
Without a command the guest's console is on this terminal; Ctrl-] then q ends it.
With one, the guest runs it as its only job: its output, input and exit status are
those of this command; 125 means that the machine itself failed, 124 the time limit.

examples:
  microvm run examples#hello
  microvm run web --set mem=2048 --timeout 600
  microvm run --ephemeral ./box -- make test
  tar c src | microvm run box -- tar xC /tmp
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    parser.usage = "microvm run [options] [REF] [-- COMMAND...]"
    project_options.add_project(parser)
    project_options.add_store(parser)
    parser.add_argument(
        "--ephemeral", action="store_true", help="throw volumes and other state away at the end"
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="end it after this time"
    )
    parser.add_argument(
        "--boot-timeout",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="time until the guest is up (default 300)",
    )
    parser.add_argument(
        "--stop-timeout",
        type=_seconds,
        default=90.0,
        metavar="SECONDS",
        help="time for a clean shutdown, before the guest is killed (default 90)",
    )
    parser.add_argument("--until-up", action="store_true", help="shut the guest down once it is up")
    parser.add_argument(
        "--reset-root", action="store_true", help="make a root volume anew; its contents are lost"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentTypeError(f"{text!r} is no time: a number of seconds above 0")
    return seconds


def main(args: Namespace) -> int:
    """Build and run."""
    project = project_options.project_of(args)
    kept: deque[str] = deque(maxlen=KEPT)
    options = microvm.Options(
        job=args.command or None,
        reset_root=args.reset_root,
        timeout_s=args.timeout,
        up_timeout_s=args.boot_timeout,
        stop_timeout_s=args.stop_timeout,
        until_up=args.until_up,
        # A job's standard error is the job's, unless the machine itself fails.
        say=kept.append if args.command else _say,
    )
    steps = progress.Steps()
    store = project_options.store_of(args)
    microvm.check_host(project, store=store)
    with progress.shown(steps) as report:
        microvm.build(project, store=store, progress=report)
    if args.until_up and steps.times:
        took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in steps.times.items())
        _say(f"built in {sum(steps.times.values()):.1f} s: {took}")
    began = time.monotonic()
    outcome = microvm.run(project, store=store, options=options, ephemeral=args.ephemeral)
    if outcome.own if args.command else outcome.exit_code == 0:
        if args.until_up:
            _say(f"{outcome.reason}, {time.monotonic() - began:.1f} s after its start")
        return outcome.exit_code
    for text in kept:
        _say(text)
    hint = f"\n  {outcome.hint}" if outcome.hint else ""
    _say(f"{outcome.reason}{hint}{outcome.console}")
    return outcome.exit_code


def _say(text: str) -> None:
    end = "\r\n" if sys.stderr.isatty() else "\n"
    with suppress(OSError):  # a terminal that has gone
        if not select.select([], [sys.stderr], [], STUCK_S)[1]:
            return  # nobody empties the pipe, which may be that of the job's output
        print(f"microvm: {text}", file=sys.stderr, end=end, flush=True)
