"""Validation errors in plain words: what msgspec found, said to somebody who writes YAML and not Python.

Files, the HTTP API, the catalogue topics and the settings say it with these words.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from offers.documents import Path

_PLACE = re.compile(r"(.*) - at (`key` in )?`\$(.*)`", re.DOTALL)
_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]")
_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a set of fields",
    "null": "empty",
    "date": "a date",
    "datetime": "a date and time",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def explained(message: str, kind: object) -> tuple[str, str]:
    """A whole message of msgspec about a value of type `kind`: the path that it is about, written out, and the words.

    Entries of a mapping go by "..." in the path.
    """
    words, path, about_key = take_apart(message)
    detail = in_plain_words(words, kind, path)
    return written(path), f"a name in here {detail}" if about_key else detail


def take_apart(message: str) -> tuple[str, Path, bool]:
    """msgspec's message as words, the path they are about, and whether they are about a key in there."""
    found = _PLACE.fullmatch(message)
    if found is None:
        return message, (), False
    path = tuple(field or (int(index) if index else dots) for field, index, dots in _PART.findall(found[3]))
    return found[1], path, found[2] is not None


def written(path: Iterable[str | int]) -> str:
    """A path as people write it: `promotions[0].words.en`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def in_plain_words(message: str, kind: object, path: Sequence[str | int]) -> str:
    """`message` is msgspec's, without its " - at ..." part; `path` is the place in a value of type `kind`."""
    for pattern, say in _SAYINGS:
        if found := pattern.fullmatch(message):
            return say(found, _choices(kind, path))
    return message


def _types(names: str) -> str:
    return " or ".join(_TYPES.get(name, name) for name in names.split(" | "))


def _wrong_type(found: re.Match[str], _: list[str]) -> str:
    quote = (
        "; put it in quotes" if found[1] == "str" and found[2] in ("int", "float", "bool", "date", "datetime") else ""
    )
    return f"must be {_types(found[1])}, not {_types(found[2])}{quote}"


def _bound(found: re.Match[str], _: list[str]) -> str:
    return f"must be {_BOUNDS[found[1]]} {float(found[2]):g}"


def _characters(found: re.Match[str], _: list[str]) -> str:
    return "must not be empty" if found[1] == ">= 1" else f"must have {_amount(found[1])} characters"


def _entries(found: re.Match[str], _: list[str]) -> str:
    return "must not be empty" if found[1] == ">= 1" else f"must have {_amount(found[1])} entries"


def _amount(bound: str) -> str:
    sign, _, number = bound.rpartition(" ")
    return f"{_BOUNDS[sign]} {number}" if sign else f"exactly {number}"


def _unknown_field(found: re.Match[str], choices: list[str]) -> str:
    return f"`{found[1]}` is not a field here; the fields are {', '.join(choices)}"


def _not_a_choice(found: re.Match[str], choices: list[str]) -> str:
    return f"{found[1]} is not one of {', '.join(choices)}"


_SAYINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], list[str]], str]], ...] = (
    (re.compile(r"Expected `array` of length ([<>=]*? ?\d+)(?:, got \d+)?"), _entries),
    (re.compile(r"Expected `([^`]+)`, got `([^`]+)`"), _wrong_type),
    (re.compile(r"Expected `(?:int|float)[^`]*` ([<>]=?) (\S+)"), _bound),
    (re.compile(r"Expected `str`"), lambda _, __: "must be text; put it in quotes"),
    (re.compile(r"Expected `str[^`]*` of length ([<>=]+ \d+)"), _characters),
    (re.compile(r"Expected `str[^`]*` matching regex .*"), lambda _, __: "must have no control characters or braces"),
    (re.compile(r"Invalid RFC3339 encoded date"), lambda _, __: "must be a day of the calendar, as 2026-12-24"),
    (re.compile(r"Object missing required field `(\w+)`"), lambda found, _: f"`{found[1]}` is missing"),
    (re.compile(r"Object contains unknown field `(.*)`", re.DOTALL), _unknown_field),
    (re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL), _not_a_choice),
)


def _choices(kind: object, path: Sequence[str | int]) -> list[str]:
    """What could stand at `path`: the fields of a struct, the values of an enumeration, the tags of a union."""
    info = msgspec.inspect.type_info(kind)
    for part in path:
        if isinstance(info, msgspec.inspect.UnionType):
            return [str(member.tag) for member in info.types if isinstance(member, msgspec.inspect.StructType)]
        info = _without_null(_step(info, part))
    match info:
        case msgspec.inspect.StructType():
            return [field.encode_name for field in info.fields]
        case msgspec.inspect.LiteralType():
            return [str(value) for value in info.values]
    return []


def _step(info: msgspec.inspect.Type, part: str | int) -> msgspec.inspect.Type:
    match info:
        case msgspec.inspect.StructType():
            return next((field.type for field in info.fields if field.encode_name == part), info)
        case msgspec.inspect.ListType():
            return info.item_type
        case msgspec.inspect.DictType():
            return info.value_type
    return info


def _without_null(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    if isinstance(info, msgspec.inspect.UnionType):
        rest = [member for member in info.types if not isinstance(member, msgspec.inspect.NoneType)]
        return rest[0] if len(rest) == 1 else info
    return info
