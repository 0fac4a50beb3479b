"""The command line: one module per verb, each a client of `import microvm`."""

import argparse
import errno
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import FrameType

from microvm.errors import MicroVMError, SpecError, printable
from microvm.host import standard

VERBS = {
    "init": "start a project from a template",
    "check": "tell everything that is wrong with a project",
    "schema": "print the JSON Schema of microvm.toml",
    "lock": "resolve packages to exact versions, or update them",
    "plan": "print what running would execute, and start nothing",
    "build": "build a runner and print its path",
    "run": "build and run in the foreground, or run one command",
    "store": "list, verify and clean the build results",
    "hypervisors": "show what each hypervisor can do, or install its program",
    "doctor": "explain what this host can do, and how to mend what it lacks",
    "completion": "print a completion script for bash, zsh or fish",
}

HUNG_UP = 128 + signal.SIGHUP
STORE_HELP = (
    "where build results are kept (default: $MICROVM_STORE, else /var/lib/microvm/store as root, "
    "~/.local/share/microvm/store otherwise)"
)

_EPILOG = """\
references:
  PROJECT#NAME       MicroVM NAME of the project in directory PROJECT
  NAME               MicroVM NAME of the project in this directory
  ./DIR              the only MicroVM of the project in DIR
  git+https://HOST/REPO?ref=REF#NAME
  examples#hello     one of the examples that ship with this program
  (nothing)          the only MicroVM of the project in this directory

exit status:
  0 done, 1 failed, 2 wrong usage, 3 wrong declaration, 4 the host lacks something,
  5 something is in another state than this needs, 124 a time limit is over,
  128+N ended by signal N (130: Ctrl-C);
  run -- COMMAND: the command's own, and 125 for every failure of ours

examples:
  microvm run examples#hello
  microvm init demo && microvm run ./demo
  microvm run --ephemeral examples#build-box -- make
"""


class _Overview(argparse.RawDescriptionHelpFormatter):
    """Keeps a verb and its help on one line; Python before 3.13 forgets the verbs' indent."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, VERBS)) + 4


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; with `only`, the other verbs are named but their modules not loaded."""
    top = argparse.ArgumentParser(
        prog="microvm",
        description="Declare, build and run MicroVMs.",
        epilog=_EPILOG,
        formatter_class=_Overview,
    )
    top.add_argument("--version", action="version", version=f"microvm {_version()}")
    top.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help=STORE_HELP,
    )
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", title="commands", required=True)
    for verb, text in VERBS.items():
        sub = verbs.add_parser(
            verb,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if only in (None, verb):
            importlib.import_module(f"microvm.cli.{verb}").arguments(sub)
    return top


def _version() -> str:
    import microvm

    return microvm.__version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    standard.complete()
    try:
        return _main(argv)
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    finally:
        _let_go()


def _let_go() -> None:
    """Drop what nobody can take any more: Python would end with 120 because of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    # What follows `--` is a command of the guest and none of argparse's business.
    mark = given.index("--") if "--" in given else len(given)
    words, command = given[:mark], tuple(given[mark + 1 :])
    try:
        args, unknown = parser(_verb(words)).parse_known_args(words)
    except SystemExit as exit:
        # A job's own statuses must not be mistaken for ours.
        if exit.code:
            return 125 if command else int(exit.code)
        return _helped()
    except OSError as error:
        if not {"-h", "--help", "--version"}.isdisjoint(words):
            return _unhelped(error)
        # What is wrong with the words goes nowhere.
        return HUNG_UP if _terminal_has_gone() else 125 if command else 2
    if unknown:
        tell(f"{args.verb}: unrecognized arguments: {' '.join(unknown)}")
        _line(f"  {_meant(args, unknown, command)}")
        return 125 if command else 2
    if mark < len(given) and (args.verb != "run" or not command):
        tell("-- is followed by a command" if not command else f"{args.verb} takes no command")
        return 2
    args.command = command
    return _carry_out(args)


def _helped() -> int:
    """Return the status of --help and --version, whose words argparse has left in the buffer."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unhelped(error)
    return 0


def _unhelped(error: OSError) -> int:
    if error.errno == errno.EPIPE:
        return 0
    if error.errno == errno.EIO and _terminal_has_gone():
        return HUNG_UP
    tell(f"could not write standard output: {error.strerror}")
    return 1


def _meant(args: argparse.Namespace, unknown: Sequence[str], command: Sequence[str]) -> str:
    if args.verb == "run" and not command and not unknown[0].startswith("-"):
        told = shlex.join([args.reference, "--", *unknown])
        return f"a command for the guest stands after --: microvm run {told}"
    return f"microvm {args.verb} --help    # tells what it takes"


def _verb(words: Sequence[str]) -> str:
    """Return the verb, or an empty text when only the list of verbs is wanted."""
    rest = iter(words)
    for word in rest:
        if word == "--store":
            next(rest, None)
        elif not word.startswith("-"):
            return word if word in VERBS else ""
    return ""


def _carry_out(args: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's word counts
            signal.signal(number, _ended)
    try:
        status: int = importlib.import_module(f"microvm.cli.{args.verb}").main(args)
        sys.stdout.flush()
    except SpecError as error:
        count = len(error.problems)
        tell(f"{count} problem{'s' if count != 1 else ''}:")
        for problem, following in zip_longest(error.problems, error.problems[1:]):
            # A hint that several have in common is said once, after the last of them.
            same = following is not None and following.hint == problem.hint
            _line(str(replace(problem, hint=None) if same else problem))
        return _failed(args, error)
    except MicroVMError as error:
        tell(str(error))
        if error.hint:
            _line(f"  {error.hint}")
        return _failed(args, error)
    except BrokenPipeError:
        return 141
    except OSError as error:
        return _unwritten(args, error)
    return status


def _unwritten(args: argparse.Namespace, error: OSError) -> int:
    """Return the status where standard output takes nothing; raise the error where it does."""
    if error.errno == errno.EIO and _terminal_has_gone():
        return HUNG_UP
    if error.errno != errno.ENOSPC or error.filename:
        raise error
    tell(f"could not write standard output: {error.strerror}")
    return 125 if args.command else 1


def _terminal_has_gone() -> bool:
    """Return whether nothing at all can be written: the other end of the terminal is closed."""
    try:
        os.write(1, b"")
    except OSError:
        return True
    return False


class _Ended(SystemExit):
    """A signal told us to end; unlike `sys.exit` in a project's file."""


def _ended(number: int, frame: FrameType | None) -> None:
    """Unwind, so that what was begun is cleared away."""
    raise _Ended(128 + number)


def _failed(args: argparse.Namespace, error: MicroVMError) -> int:
    """Return the status of a failure; a job's own statuses must not be mistaken for ours."""
    return 125 if args.command else error.exit_code


def tell(text: str) -> None:
    """Say something to people, on standard error; nobody has to be there."""
    _line(f"microvm: {printable(text)}")


def _line(text: str) -> None:
    with suppress(OSError):  # the terminal has gone; the exit status tells
        print(text, file=sys.stderr, flush=True)
