"""Plain tables become MicroVM objects; everything that is wrong is told at once, in our words."""

import difflib
import json
import reprlib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from microvm.errors import Problem
from microvm.model.declaration import MicroVM
from microvm.model.system import DebianSystem
from microvm.projects import keypath, partial
from microvm.projects.partial import Part

Where = tuple[str | int, ...]


@cache
def adapter() -> TypeAdapter[MicroVM]:
    """Return the validator of one MicroVM."""
    return TypeAdapter(MicroVM)


def validate(table: Mapping[str, Any], where: str) -> tuple[MicroVM | None, list[Problem]]:
    """Return the object, or every reason why there is none; `where` is the table's key path."""
    part, problems = valid_part(table, where)
    return (part.microvm if part and not problems else None), problems


def valid_part(table: Mapping[str, Any], where: str) -> tuple[Part | None, list[Problem]]:
    """Return the object, or what of it is valid, with every reason why that is not all."""
    try:
        return Part(_validated(table)), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_problem(detail, where) for detail in details]
    rest, left_out = partial.without(table, map(_location, details))
    try:
        return Part(_validated(rest), left_out), problems
    except ValidationError:
        return None, problems


def _validated(table: Mapping[str, Any]) -> MicroVM:
    """Raise `ValidationError`. JSON is validated strictly: lists and tables are its own types."""
    try:
        text = json.dumps(table) if _has_texts_as_keys(table) else ""
        return adapter().validate_json(text, strict=True)
    except ValidationError as error:
        if all(detail["type"] != "json_invalid" for detail in error.errors()):
            raise
    except (TypeError, ValueError, RecursionError):
        pass
    # A date, a lone surrogate, an object of a project's own: no JSON, and no value of the model.
    return adapter().validate_python(dict(table), strict=False)


def _has_texts_as_keys(value: Any) -> bool:
    """Return whether it has no other keys, which JSON would turn into texts."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_texts_as_keys(value[key]) for key in value)
    return not isinstance(value, list | tuple) or all(map(_has_texts_as_keys, value))


def _at(where: str, path: Where) -> str:
    return f"{where}.{keypath.join(_cut(str(part)) for part in path)}"


def _location(detail: ErrorDetails) -> Where:
    return _without_unions(part for part in detail["loc"] if part != "[key]")


def _problem(detail: ErrorDetails, where: str) -> Problem:
    location = list(_location(detail))
    message = _message(detail, location)
    return Problem(where=_at(where, tuple(location)), message=message, hint=_hint(detail, location))


def _without_unions(location: Iterable[str | int]) -> Where:
    """Drop the parts that name an arm of a union: `literal[...]`, `constrained-str`, a class."""
    arms = ("constrained-str", "str", "none")
    return tuple(
        part
        for part in location
        if not (
            isinstance(part, str) and (part.startswith(("literal[", "function-")) or part in arms)
        )
    )


def _message(detail: ErrorDetails, location: list[str | int]) -> str:
    kind, shown = detail["type"], _shown(detail["input"])
    context = detail.get("ctx", {})
    if kind in _TOLD:
        return _TOLD[kind].format(shown=shown, **context)
    match kind:
        case "unexpected_keyword_argument":
            return f"there is no option {_shown(location[-1])}"
        case "string_pattern_mismatch":
            return f"{shown} is not allowed; it must be {_says(str(context.get('pattern', '')))}"
        case "value_error":
            return f"{shown} is not allowed: {context.get('error')}"
        case _:
            return f"{shown} is not {_TYPES.get(kind.partition('_')[0], 'of the right type')}"


_TOLD = {
    "missing": "it is needed here",
    "missing_argument": "it is needed here",
    "missing_keyword_only_argument": "it is needed here",
    "literal_error": "{shown} is not allowed; it must be {expected}",
    "greater_than": "{shown} is too small: it must be more than {gt}",
    "greater_than_equal": "{shown} is too small: at least {ge}",
    "less_than_equal": "{shown} is too large: at most {le}",
    "string_too_long": "{shown} is too long: at most {max_length} characters",
    "string_unicode": "{shown} is not Unicode text",
}
"""Messages by pydantic's kind of error."""

_TYPES = {
    "int": "a whole number", "finite": "a whole number", "string": "a text",
    "bool": "true or false", "tuple": "a list", "dict": "a table", "dataclass": "a table",
}  # fmt: skip


class _Shown(reprlib.Repr):
    """Values in messages: short, whatever they are, also those that have no `repr`."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxdict = 3
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        """Return a number; one of more than 4300 digits has no decimal `repr` (int(3))."""
        return str(x) if x.bit_length() < 64 else f"a number of {x.bit_length()} bits"


def _shown(value: object) -> str:
    return _cut(_Shown().repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def _patterns() -> dict[str, str]:
    """Return what each pattern of the model allows, in words."""
    from microvm.model import constraints, devices, options, system

    found: dict[str, str] = {}

    def look(annotation: object) -> None:
        for item in getattr(annotation, "__metadata__", ()):
            if isinstance(item, constraints.Pattern):
                found[f"^(?:{item.regex})$"] = item.says
        for argument in typing.get_args(annotation):
            look(argument)

    modules = (constraints, devices, options, system)
    for module in modules:
        for value in vars(module).values():
            look(value)
            if isinstance(value, type) and is_dataclass(value):
                for hint in typing.get_type_hints(value, include_extras=True).values():
                    look(hint)
    for hint in typing.get_type_hints(MicroVM, include_extras=True).values():
        look(hint)
    return found


def _says(pattern: str) -> str:
    return _patterns().get(pattern, f"what matches {pattern}")


def _hint(detail: ErrorDetails, location: list[str | int]) -> str | None:
    """Name the nearest valid options for one that does not exist."""
    if detail["type"] == "unexpected_keyword_argument":
        return _nearest_option(_cut(str(location[-1])), _class_at(location[:-1]))
    if detail["type"] == "literal_error":
        allowed = [
            word.strip("'")
            for word in str(detail.get("ctx", {}).get("expected", ""))
            .replace(" or ", ", ")
            .split(", ")
        ]
        near = difflib.get_close_matches(_shown(detail["input"]).strip("'"), allowed, n=1)
        return f"did you mean {near[0]}?" if near else None
    return None


def _nearest_option(name: str, cls: Any) -> str:
    names = [f.name for f in fields(cls)]
    if cls is MicroVM and name in (f.name for f in fields(DebianSystem)):
        return f"it is an option of the guest's system: system.{name}"
    if cls is DebianSystem and name in (f.name for f in fields(MicroVM)):
        return f"it is an option of the MicroVM itself, beside `system`: {name}"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    best = [each for each in near if _likeness(name, each) > _likeness(name, near[0]) - 0.1]
    return f"did you mean {' or '.join(best)}?" if best else f"there are: {', '.join(names)}"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, other, one).ratio()


def _class_at(location: Iterable[str | int]) -> Any:
    """Return the dataclass that the model has at a key path."""
    current: Any = MicroVM
    for part in _without_unions(location):
        if isinstance(part, str) and is_dataclass(current):
            hints = typing.get_type_hints(current)
            if part in hints:
                current = _dataclass_in(hints[part]) or current
    return current


def _dataclass_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and is_dataclass(annotation):
        return annotation
    for argument in typing.get_args(annotation):
        if found := _dataclass_in(argument):
            return found
    return None
