"""The retailer's world from YAML or JSON: stores, fences, products, promotions and stock.

A file is accepted whole or not at all. Every problem found is reported (one an entry), with file, line, field and the
reason in plain words, so that one round of corrections is enough.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import msgspec

from nearcast.errors import InputError
from nearcast.world import Fence, Product, Promotion, Stock, Store
from offers.documents import Document, Path, UnreadableError, read_document
from offers.wording import in_plain_words, take_apart, written
from offers.worldfile import WorldFile, check_references

__all__ = ["InvalidWorldFile", "Problem", "WorldFile", "check_references", "load_world"]

Entry = TypeVar("Entry", Store, Fence, Product, Promotion, Stock)

#: How many problems the text of an error tells; a file can be wrong all over in one way.
MAX_TOLD = 50
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class Problem(NamedTuple):
    """One thing that is wrong: where (`file:line field.path`) and what."""

    where: str
    detail: str


class InvalidWorldFile(InputError):
    """`problems` has them all, in the order of the file; `detail` tells the first ones, `where` is the very first's."""

    def __init__(self, problems: list[Problem]) -> None:
        told = [f"{problem.where}: {problem.detail}" for problem in problems[:MAX_TOLD]]
        if len(problems) > MAX_TOLD:
            told.append(f"and {len(problems) - MAX_TOLD} more")
        detail = problems[0].detail if len(problems) == 1 else "\n".join(told)
        super().__init__("invalid_world_file", detail, problems[0].where)
        self.problems = problems
        self.args = ("\n".join(told),)


def load_world(text: str, source: str) -> WorldFile:
    """What `text` describes; `source` is the name (of a file) that errors give. Raises `InvalidWorldFile`.

    References to other entries are not checked: they may be in another file. See `check_references`.
    """
    try:
        document = read_document(text)
    except UnreadableError as error:
        raise InvalidWorldFile([Problem(f"{source}:{error.line}", error.detail)]) from None
    reader = _Reader(document, source)
    world = WorldFile(
        stores=reader.section("stores", Store, lambda store: store.id),
        fences=reader.section("fences", Fence, lambda fence: fence.id),
        products=reader.section("products", Product, lambda product: product.sku),
        promotions=reader.section("promotions", Promotion, lambda promotion: promotion.id),
        stock=reader.section("stock", Stock, lambda stock: f"{stock.store} / {stock.sku}"),
    )
    if reader.problems:
        raise InvalidWorldFile([problem for _, problem in sorted(reader.problems)])
    return world


class _Reader:
    """Reads one document, section by section, and gathers the problems by line."""

    def __init__(self, document: Document, source: str) -> None:
        self._document = document
        self._source = source
        self.problems: list[tuple[int, Problem]] = []
        for line, key in document.repeated_keys():
            self._note(line, (), f"`{key}` is given twice")
        self._sections: dict[object, object] = {}
        if isinstance(document.value, dict):
            self._sections = document.value
        elif document.value is not None:
            self._note(1, (), f"a file is a set of sections: {', '.join(WorldFile.__struct_fields__)}")
        for name in self._sections:
            if name not in WorldFile.__struct_fields__:
                known = ", ".join(WorldFile.__struct_fields__)
                self._note(document.line([str(name)]), (), f"`{name}` is not a section; the sections are {known}")

    def section(self, name: str, kind: type[Entry], key_of: Callable[[Entry], str]) -> list[Entry]:
        raw = self._sections.get(name)
        if raw is None:
            return []
        if not isinstance(raw, list):
            self._note(self._document.line([name]), (name,), "must be a list")
            return []
        entries: list[Entry] = []
        places: dict[str, int] = {}
        for index, value in enumerate(raw):
            try:
                entry = msgspec.convert(value, kind)
                # What can't be written as JSON could be accepted here and break whoever stores it.
                msgspec.json.encode(entry)
            except msgspec.ValidationError as error:
                self._explain((name, index), value, kind, str(error))
                continue
            except UnicodeEncodeError:
                place = (name, index)
                self._note(self._document.line(place), place, "has half a character in it (a lone surrogate)")
                continue
            key = key_of(entry)
            if key in places:
                first = self._document.line((name, places[key]))
                line = self._document.line((name, index))
                self._note(line, (name, index), f"{key!r} is already defined in line {first}")
                continue
            places[key] = index
            entries.append(entry)
        return entries

    def _explain(self, place: Path, value: object, kind: type, message: str) -> None:
        words, inner, about_key = take_apart(message)
        if "..." in inner:
            inner = _name_the_key(inner, value, kind, message)
        path = place + inner
        line = self._document.line(path)
        if unknown := _UNKNOWN_FIELD.fullmatch(words):
            line = self._document.line((*path, unknown[1]))
        detail = in_plain_words(words, kind, inner)
        self._note(line, path, f"a name in here {detail}" if about_key else detail)

    def _note(self, line: int, path: Path, detail: str) -> None:
        where = f"{self._source}:{line} {written(path)}".rstrip()
        self.problems.append((line, Problem(where, detail)))


def _name_the_key(path: Path, value: object, kind: type, message: str) -> Path:
    """msgspec writes "..." for the key of a mapping: find the key that alone gives the same message."""
    at = path.index("...")
    mapping = value
    for part in path[:at]:
        mapping = cast("dict[str | int, object]", mapping)[part]
    for key in cast("dict[str, object]", mapping):
        try:
            msgspec.convert(_only(value, path[:at], key), kind)
        except msgspec.ValidationError as error:
            if str(error) == message:
                return (*path[:at], key, *path[at + 1 :])
    return path[:at]


def _only(value: object, path: Path, key: str) -> object:
    """A copy of `value` whose mapping at `path` has just this key."""
    fields = cast("dict[str | int, object]", value)
    if not path:
        return {key: fields[key]}
    return {**fields, path[0]: _only(fields[path[0]], path[1:], key)}
