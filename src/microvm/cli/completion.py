"""`microvm completion`."""

import argparse
from argparse import ArgumentParser, Namespace

from microvm.cli import VERBS, parser

_EPILOG = """\
examples:
  microvm completion bash >~/.local/share/bash-completion/completions/microvm
  microvm completion zsh >~/.zfunc/_microvm     # a directory of $fpath
  microvm completion fish >~/.config/fish/completions/microvm.fish
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")


def main(args: Namespace) -> int:
    """Print a completion script."""
    if args.shell == "fish":
        print(_fish())
        return 0
    import shtab

    print(shtab.complete(parser(), args.shell, preamble=_REFERENCES[args.shell]))
    return 0


_NAMES = r"sed -n 's/^ *\[microvms\.\([a-z0-9-]*\)[].].*/\1/p' microvm.toml 2>/dev/null | sort -u"
"""Prints the names in this directory's project; asking `microvm` itself would be felt."""

_REFERENCES = {
    "bash": f"""
_microvm_references() {{
    compgen -W "$({_NAMES})" -- "$1"
    compgen -d -- "$1"
}}
""",
    "zsh": f"""
_microvm_references() {{
    local -a names=(${{(f)"$({_NAMES})"}})
    compadd -a names
    _files -/
}}
""",
}


def _fish() -> str:
    """Return a script for fish, which shtab does not write: verbs, then each verb's options."""
    lines = ["complete -c microvm -f"]
    for verb, text in VERBS.items():
        lines.append(f"complete -c microvm -n __fish_use_subcommand -a {verb} -d '{_quoted(text)}'")
    subs = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for verb, sub in subs.choices.items():
        lines += [_option(verb, action) for action in sub._actions if action.option_strings]
        if any(action.dest == "reference" for action in sub._actions):
            lines.append(
                f"complete -c microvm -n {_seen(verb)} -a '({_quoted(_NAMES)})' -d MicroVM"
            )
            lines.append(f"complete -c microvm -n {_seen(verb)} -a '(__fish_complete_directories)'")
    return "\n".join(lines)


def _option(verb: str, action: argparse.Action) -> str:
    names = " ".join(
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
        for name in action.option_strings
    )
    takes = " -r" if action.nargs != 0 else ""
    return f"complete -c microvm -n {_seen(verb)} {names}{takes} -d '{_quoted(action.help or '')}'"


def _seen(verb: str) -> str:
    return f"'__fish_seen_subcommand_from {verb}'"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
