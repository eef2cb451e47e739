"""JSON Schema of promotions and world files, for editors that check, explain and complete while one types.

What a field means stands in `nearcast/world.py` once: in the `#:` comment above it, or in its struct's docstring.
"""

import ast
import inspect
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from nearcast import world

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(kind: type, title: str) -> dict[str, Any]:
    """The schema of a struct of the world's vocabulary, every field with its description."""
    schema = msgspec.json.schema(kind)
    meanings = field_meanings()
    definitions = cast("dict[str, dict[str, Any]]", schema["$defs"])
    for name, definition in definitions.items():
        struct = getattr(world, name, kind)
        if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)):
            continue
        definition["description"] = _one_line(inspect.getdoc(struct) or "")
        for field in msgspec.structs.fields(struct):
            owners = (each.__name__ for each in struct.__mro__)
            meaning = next((meanings[owner, field.name] for owner in owners if (owner, field.name) in meanings), "")
            described = definition["properties"][field.encode_name]
            if meaning:
                described["description"] = meaning
            if isinstance(described.get("default"), dict):
                # Of a set of fields each says its own.
                del described["default"]
    triggers = ", ".join(f"{name} ({meaning})" if meaning else name for name, meaning in _trigger_meanings())
    for definition in definitions.values():
        if "trigger" in definition.get("properties", {}):
            definition["properties"]["trigger"]["description"] += f" {triggers}."
    # The end of the text is `\Z` in Python; in the dialect of JSON Schema that would be the letter.
    return cast("dict[str, Any]", _in_ecmascript({"$schema": _DIALECT, "title": title, **schema}))


def _in_ecmascript(value: Any) -> Any:
    match value:
        case dict():
            return {
                key: item.replace(r"\Z", "$") if key == "pattern" and isinstance(item, str) else _in_ecmascript(item)
                for key, item in value.items()
            }
        case list():
            return [_in_ecmascript(item) for item in value]
    return value


def field_meanings() -> dict[tuple[str, str], str]:
    """By struct and field: what the comment above the field says."""
    source = inspect.getsource(world)
    lines = [line.strip() for line in source.splitlines()]
    found: dict[tuple[str, str], str] = {}
    for struct in ast.parse(source).body:
        for field in struct.body if isinstance(struct, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                first = last = field.lineno - 1
                while lines[first - 1].startswith("#:"):
                    first -= 1
                if first < last:
                    words = (line.removeprefix("#:") for line in lines[first:last])
                    found[cast("ast.ClassDef", struct).name, field.target.id] = _one_line(" ".join(words))
    return found


def _trigger_meanings() -> Iterator[tuple[str, str]]:
    """Each trigger and the comment behind it."""
    lines = inspect.getsource(world).split("Trigger = Literal[\n", 1)[1].split("\n]", 1)[0].splitlines()
    for line in lines:
        name, _, meaning = line.partition("#")
        yield name.strip(' ",'), meaning.strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
