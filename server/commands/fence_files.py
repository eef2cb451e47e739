"""Fences from files for tools: all that can be read of them, and everything that is wrong, at once."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from geofence.geojson import fences_from_geojson
from geofence.index import FenceIndex
from geofence.survey import Site, compile_site, cycles, geometry_problems
from nearcast.errors import InputError
from nearcast.hours import zone_named
from nearcast.world import Fence, MultiPolygon, Polygon, Product, Store
from offers.worldfile import WorldFile, check_references
from server.world_files import read_worlds

T = TypeVar("T")

#: With fewer, no progress bar.
MANY = 2_000


def read_all(files: Sequence[Path]) -> tuple[WorldFile, list[str]]:
    """The stores, fences and products of the files as far as they can be read, and all that is wrong with them."""
    worlds: list[WorldFile] = []
    problems: list[str] = []
    for file in files:
        try:
            worlds.append(read_worlds([file]))
        except InputError as error:
            if file.suffix != ".geojson":
                problems += str(error).splitlines()
                continue
            fences, faults = _features(file, error)
            worlds.append(WorldFile(fences=fences))
            problems += faults
    merged = WorldFile(
        stores=[item for each in worlds for item in each.stores],
        fences=[item for each in worlds for item in each.fences],
        products=[item for each in worlds for item in each.products],
    )
    return merged, problems


def _features(file: Path, first: InputError) -> tuple[list[Fence], list[str]]:
    """The good features of a GeoJSON file that has bad ones, and everything that is wrong with those."""
    try:
        features = json.loads(file.read_bytes())["features"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        features = None
    if not isinstance(features, list):
        return [], [str(first)]
    fences: list[Fence] = []
    problems: list[str] = []
    for number, feature in enumerate(features):
        try:
            fences += fences_from_geojson(msgspec.json.encode({"type": "FeatureCollection", "features": [feature]}))
        except InputError as error:
            faults = _rings(feature) if error.reason == "invalid_geometry" else []
            told = [(fault.detail, f"features[{number}], {fault.where}") for fault in faults] or [
                (error.detail, error.where.replace("features[0]", f"features[{number}]", 1))
            ]
            problems += [f"{detail} ({file}: {where})" for detail, where in told]
        except UnicodeEncodeError:
            problems.append(f"half a character (a lone surrogate) is in it ({file}: features[{number}])")
    return fences, problems or [str(first)]


def _rings(feature: dict[str, dict[str, object]]) -> list[InputError]:
    outline = {name: feature["geometry"].get(name) for name in ("type", "coordinates")}
    try:
        return geometry_problems(msgspec.convert(outline, Polygon | MultiPolygon))
    except msgspec.ValidationError:
        return []


def reference_problems(world: WorldFile, *, whole: bool) -> list[str]:
    """Ids given twice, circles of parents and, if the world is `whole`, references that lead nowhere.

    If no file describes stores (or products), all that are named are there.
    """
    problems = [*cycles(world.fences)]
    seen: set[str] = set()
    for fence in world.fences:
        if fence.id in seen:
            problems.append(f"two fences have the id {fence.id!r}")
        seen.add(fence.id)
    if not whole:
        return problems
    stores = world.stores or [
        Store(id=name, name=name, lat=0, lng=0) for name in dict.fromkeys(fence.store for fence in world.fences)
    ]
    products = world.products or [
        Product(sku=sku, name=sku, segment=sku)
        for sku in dict.fromkeys(fence.sku for fence in world.fences if fence.sku is not None)
    ]
    return [*problems, *check_references(WorldFile(stores=stores, fences=world.fences, products=products))]


def compile_all(fences: Sequence[Fence]) -> tuple[list[Site], list[str]]:
    """The fences with their covers, and what is wrong with those that can't have one."""
    sites: list[Site] = []
    problems: list[str] = []
    for fence in in_steps(fences, "covering fences"):
        try:
            sites.append(compile_site(fence))
        except InputError:
            problems += [
                f"{fault.detail} (fence {fence.id}, {fault.where})" for fault in geometry_problems(fence.geometry)
            ]
    return sites, problems


def index_of(fences: Sequence[Fence], stores: Sequence[Store]) -> FenceIndex:
    """The index, made with a progress bar if there are many fences. Raises `InputError`."""
    zones = {store.store_id: zone_named(store.time_zone) for store in stores}
    special_days = {store.store_id: store.special_days for store in stores if store.special_days}
    index = FenceIndex.build(fences[:MANY], zones=zones, special_days=special_days)
    for end in in_steps(range(2 * MANY, len(fences) + MANY, MANY), "building the index", many=1):
        index = FenceIndex.build(fences[:end], index, zones, special_days)
    return index


def in_steps(items: Sequence[T], doing: str, *, many: int = MANY) -> Iterator[T]:
    """The items, with a progress bar on stderr if there are many."""
    hidden = len(items) < many or not sys.stderr.isatty()
    with click.progressbar(items, label=doing, file=sys.stderr, hidden=hidden) as bar:
        yield from bar
