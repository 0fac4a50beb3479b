"""`microvm completion`."""

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

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

    whole = parser()
    functions = _word_functions(whole, args.shell)
    print(shtab.complete(whole, args.shell, preamble=_REFERENCES[args.shell] + functions))
    return 0


def _words(action: argparse.Action) -> Sequence[str]:
    """Return what an option takes, where that is a list of words."""
    if find := getattr(action, "words", None):
        found: Sequence[str] = find()
        return found
    return ()


def _word_functions(whole: ArgumentParser, shell: str) -> str:
    """Return functions that complete options with `words`, and let those options name them."""
    text = ""
    for action in _actions(whole):
        if words := _words(action):
            name = f"_microvm_{action.dest}"
            add = 'compgen -W "{}" -- "$1"' if shell == "bash" else "compadd {}"
            text += f"\n{name}() {{\n    {add.format(' '.join(words))}\n}}\n"
            action.complete = {shell: name}  # type: ignore[attr-defined]
    return text


def _actions(whole: ArgumentParser) -> Iterator[argparse.Action]:
    for action in whole._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)


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
    whole = parser()
    lines = ["complete -c microvm -f", *_fish_options(whole, "__fish_use_subcommand")]
    for verb, text in VERBS.items():
        lines.append(f"complete -c microvm -n __fish_use_subcommand -a {verb} -d {_quoted(text)}")
    for verb, sub in _subs(whole).items():
        lines += _fish_options(sub, f"__fish_seen_subcommand_from {verb}")
        for action, below in _subs(sub).items():
            lines += _fish_options(below, f"__fish_seen_subcommand_from {action}")
    return "\n".join(lines)


def _subs(whole: ArgumentParser) -> dict[str, ArgumentParser]:
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _fish_options(sub: ArgumentParser, seen: str) -> Iterator[str]:
    """Yield what completes the options of a parser where the condition `seen` holds."""
    for action in sub._actions:
        when = f"complete -c microvm -n {_quoted(seen)}"
        help_ = f" -d {_quoted(action.help or '')}"
        if action.option_strings:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in action.option_strings
            )
            words = _words(action)
            takes = " -r" if action.type is Path else " -x" if action.nargs != 0 else ""
            given = f" -a {_quoted(' '.join(words))}" if words else ""
            yield f"{when} {names}{takes}{given}{help_}"
        elif action.dest == "reference":
            yield f"{when} -a {_quoted(f'({_NAMES})')} -d MicroVM"
            yield f"{when} -a '(__fish_complete_directories)'"
        elif action.choices and sub.prog != "microvm":
            known = _quoted(f"not __fish_seen_subcommand_from {' '.join(action.choices)}")
            yield f"{when} -n {known} -a {_quoted(' '.join(action.choices))}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
