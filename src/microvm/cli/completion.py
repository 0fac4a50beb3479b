"""`microvm completion`."""

import argparse
from argparse import ArgumentParser, Namespace

from microvm.cli import VERBS, parser


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")


def main(args: Namespace) -> int:
    """Print a completion script."""
    if args.shell == "fish":
        print(_fish())
        return 0
    import shtab

    print(shtab.complete(parser(), args.shell))
    return 0


def _fish() -> str:
    """Return a script for fish, which shtab does not write: verbs, then each verb's options."""
    lines = ["complete -c microvm -f"]
    for verb, text in VERBS.items():
        lines.append(f"complete -c microvm -n __fish_use_subcommand -a {verb} -d '{_quoted(text)}'")
    subs = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for verb, sub in subs.choices.items():
        lines += [_option(verb, action) for action in sub._actions if action.option_strings]
    return "\n".join(lines)


def _option(verb: str, action: argparse.Action) -> str:
    names = " ".join(
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
        for name in action.option_strings
    )
    takes = " -r" if action.nargs != 0 else ""
    condition = f"'__fish_seen_subcommand_from {verb}'"
    return f"complete -c microvm -n {condition} {names}{takes} -d '{_quoted(action.help or '')}'"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
