"""How cloud-hypervisor's command line spells values, and how further arguments join ours.

Its parser (option_parser/src/lib.rs) splits at commas outside of double quotes and brackets.
"""

from collections.abc import Iterator, Sequence

from microvm.errors import Problem, SpecError
from microvm.model.facts import Program

SPECIAL = frozenset(',[]"')
QUOTED_BRACKETS_SINCE = (48,)
"""Until then brackets count inside of quotes too."""

MANY = frozenset({
    "--device", "--disk", "--fs", "--landlock-rules", "--memory-zone", "--net", "--numa",
    "--pci-segment", "--pmem", "--rate-limit-group", "--user-device", "--vdpa",
})  # fmt: skip
"""Options with any number of values. Said twice, the second replaces the first before 52."""

_JOINED = frozenset({"--balloon", "--cpus", "--memory", "--platform", "--rng", "--vsock"})
"""Options that are one list of `key=value`."""


def unsayable(text: str, program: Program | None, where: str) -> Iterator[Problem]:
    """Yield why the parser of a version, or of none, can't be given a value; `where`: its key."""
    brackets = program is not None and not program.has(QUOTED_BRACKETS_SINCE)
    if '"' in text or (brackets and ("[" in text or "]" in text)):
        message = f"cloud-hypervisor's command line can't name {text!r}"
        hint = "choose another name, without double quotes and brackets"
        yield Problem(where=where, message=message, hint=hint)


def value(text: str, program: Program, where: str) -> str:
    """Return a value as the parser wants it. Raises `SpecError`, naming the key `where`."""
    if problems := list(unsayable(text, program, where)):
        raise SpecError(problems)
    plain = not SPECIAL.intersection(text) and text == text.strip()
    return text if plain else f'"{text}"'


class Arguments:
    """The arguments of one command line: options in their order, each with its values."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._options: dict[str, list[str]] = {}
        self._rest: list[str] = []

    def add(self, option: str, *values: str) -> None:
        """Add an option, or further values of one that takes many."""
        self._options.setdefault(option, []).extend(values)

    def merge(self, extra: Sequence[str]) -> None:
        """Let further arguments join: values are added, keys and single values replaced."""
        for option, values in _options(extra):
            ours = self._options.get(option)
            if option in MANY:
                self.add(option, *values)
            elif ours is None:
                self._rest += [option, *values] if option else values
            elif option in _JOINED and ours and values:
                self._options[option] = [_joined(ours[0], values[0])]
            else:
                self._options[option] = values

    def get(self, option: str) -> tuple[str, ...]:
        """Return the values of an option."""
        return tuple(self._options.get(option, ()))

    def words(self) -> tuple[str, ...]:
        """Return the whole command line."""
        words = [self._program]
        for option, values in self._options.items():
            words += [option, *values]
        return (*words, *self._rest)


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option with the words up to the next one."""
    option, values = "", list[str]()
    for word in words:
        if word.startswith("-"):
            if option or values:
                yield option, values
            option, equals, first = word.partition("=")
            values = [first] if equals else []
        else:
            values.append(word)
    if option or values:
        yield option, values


def _joined(ours: str, theirs: str) -> str:
    pairs = {pair.partition("=")[0]: pair for text in (ours, theirs) for pair in split(text)}
    return ",".join(pairs.values())


def split(text: str) -> list[str]:
    """Return the parts of a list, split as cloud-hypervisor does."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
