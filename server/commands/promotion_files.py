"""Promotions from files for tools: all that can be read of them, and everything that is wrong or odd, with its line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from channels.sms import MAX_CHARACTERS, segments
from channels.templates import ORDINARY, check_words, render
from nearcast.errors import InputError
from nearcast.world import Promotion
from offers.documents import Document, UnreadableError, read_document
from offers.loading import InvalidWorldFile, load_world
from offers.remarks import promotion_remarks
from offers.wording import written
from offers.worldfile import Finding, WorldFile, check_references, promotion_references
from server.world_files import read_worlds

_PLACE = re.compile(r"(.*?):(\d+)(?: (.*))?", re.DOTALL)
#: About what the link to the message's page takes of an SMS.
_LINK = "https://shop.example/m/" + "x" * 85


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem or a remark, and where; `line` counts from 1, 0: it is about the files as a whole."""

    file: str = ""
    line: int = 0
    field: str = ""
    promotion: str = ""
    detail: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line} {self.field}".rstrip() if self.line else self.file
        return f"{place}: {self.detail}" if place else self.detail


class Checked(NamedTuple):
    """What files hold together, and what there is to say of it."""

    world: WorldFile
    problems: list[Told]
    remarks: list[Told]
    #: What only more files could tell, one sentence each.
    unchecked: list[str]


class _File(NamedTuple):
    name: str
    document: Document
    world: WorldFile


def check_files(files: Sequence[Path], *, now_ms: int, personal_prices: bool) -> Checked:
    """Read and check the files together."""
    read: list[_File] = []
    problems: list[Told] = []
    for file in files:
        found, faults = _read(file)
        problems += faults
        read += found
    # What can't be read may be what the rest refers to.
    whole = not problems
    world = merged([file.world for file in read])
    places = _Places(read)
    problems += places.twice()
    # The second one is looked at once it has an id of its own.
    first = {promotion.id: promotion for promotion in reversed(world.promotions)}
    world = msgspec.structs.replace(world, promotions=list(reversed(first.values())))
    for promotion in world.promotions:
        for fault in check_words(promotion):
            field, _, detail = fault.partition(": ")
            problems.append(places.told(Finding(promotion.id, tuple(field.split(".")), detail)))
    unchecked: list[str] = []
    if whole:
        missing, unchecked = _references(world)
        problems += map(places.told, missing)
        if world.stores and world.products:
            others = msgspec.structs.replace(world, promotions=[])
            problems += [Told(detail=detail) for detail in check_references(others)]
    remarks = promotion_remarks(world, now_ms=now_ms, personal_prices=personal_prices)
    remarks += [found for promotion in world.promotions for found in _sms_remarks(promotion)]
    order = [str(file) for file in files]

    def place(told: Told) -> tuple[int, int]:
        # What is about the files as a whole comes last.
        return (order.index(told.file) if told.file else len(order)), told.line

    return Checked(world, sorted(problems, key=place), sorted(map(places.told, remarks), key=place), unchecked)


def merged(worlds: Sequence[WorldFile]) -> WorldFile:
    """Several files as one world."""
    return WorldFile(
        stores=[item for each in worlds for item in each.stores],
        fences=[item for each in worlds for item in each.fences],
        products=[item for each in worlds for item in each.products],
        promotions=[item for each in worlds for item in each.promotions],
        stock=[item for each in worlds for item in each.stock],
    )


def _read(file: Path) -> tuple[list[_File], list[Told]]:
    """The file if it can be read; else what is wrong with it."""
    name = str(file)
    if file.suffix == ".geojson":
        try:
            return [_File(name, read_document("{}"), read_worlds([file]))], []
        except InputError as error:
            return [], [Told(file=name, detail=str(error))]
    try:
        text = file.read_text(encoding="utf-8")
        return [_File(name, read_document(text), load_world(text, name))], []
    except (OSError, UnicodeDecodeError) as error:
        return [], [Told(file=name, detail=f"can't be read: {error}")]
    except UnreadableError as error:
        return [], [Told(file=name, line=error.line, detail=error.detail)]
    except InvalidWorldFile as error:
        return [], [_placed(name, problem.where, problem.detail) for problem in error.problems]


def _placed(name: str, where: str, detail: str) -> Told:
    found = _PLACE.fullmatch(where.removeprefix(name))
    if found is None:
        return Told(file=name, detail=detail)
    return Told(file=name, line=int(found[2]), field=found[3] or "", detail=detail)


class _Places:
    """Where each promotion stands."""

    def __init__(self, files: Sequence[_File]) -> None:
        self._files = files
        self._at: dict[str, list[tuple[int, int]]] = {}
        for number, file in enumerate(files):
            for index, promotion in enumerate(file.world.promotions):
                self._at.setdefault(promotion.id, []).append((number, index))

    def told(self, found: Finding, which: int = 0) -> Told:
        number, index = self._at[found.promotion][which]
        file, path = self._files[number], ("promotions", index, *found.path)
        line = file.document.line(path)
        return Told(file=file.name, line=line, field=written(path), promotion=found.promotion, detail=found.detail)

    def twice(self) -> Iterator[Told]:
        """Within a file the loader has said so already."""
        for name, places in self._at.items():
            first = self.told(Finding(name, (), ""))
            for which in range(1, len(places)):
                yield self.told(Finding(name, (), f"{name!r} is already defined in {first.file}:{first.line}"), which)


def _references(world: WorldFile) -> tuple[list[Finding], list[str]]:
    """References that lead nowhere; and those to things of a kind that no file describes, which may be elsewhere."""
    described = {"stores": world.stores, "fences": world.fences, "skus": world.products, "segments": world.products}
    promotions = {promotion.id: promotion for promotion in world.promotions}
    problems: list[Finding] = []
    elsewhere: dict[str, set[str]] = {}
    for found in promotion_references(world):
        part, field, number = found.path
        if described[str(field)]:
            problems.append(found)
        else:
            names = getattr(getattr(promotions[found.promotion], str(part)), str(field))
            elsewhere.setdefault(str(field), set()).add(names[number])
    return problems, [
        f"no file describes the {kind} {', '.join(sorted(names)[:5])}"
        + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for kind, names in elsewhere.items()
    ]


def _sms_remarks(promotion: Promotion) -> Iterator[Finding]:
    """Texts that take more than one SMS, or are cut, with names of ordinary length."""
    if "sms" not in promotion.channels:
        return
    for locale in promotion.words:
        try:
            texts = render(promotion, locale, ORDINARY)
        except InputError:
            continue
        text = f"{texts.title}. {texts.body}".strip()
        whole = segments(f"{text} {_LINK}")
        if len(text) + 1 + len(_LINK) > MAX_CHARACTERS:
            said = f"too long for SMS: with the link, what is beyond {MAX_CHARACTERS} characters is cut off"
        elif segments(text).count > 1:
            said = f"longer than one SMS: with the link it takes {whole.count} ({whole.encoding})"
        else:
            continue
        yield Finding(promotion.id, ("words", locale), said)
