"""`nearcast fences`: check fences before they are used, ask why a position is inside, and walk a recorded track."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nearcast.clock import SystemClock
from nearcast.errors import InputError
from nearcast.hours import store_is_open, zone_named
from nearcast.world import Store
from offers.worldfile import WorldFile
from server.commands.replay import Moment
from server.commands.session import fail, opened_store, run

if TYPE_CHECKING:
    from geofence.index import FenceIndex
    from geofence.survey import Caution, Site, Standing
    from geofence.tracks import TrackFormat, TrackPoint
    from nearcast.moments import Transition

#: What else is told of a position: fences this near.
NEAR_M = 200.0
_MOST_NEAR = 12
MAX_TRACK_BYTES = 256 * 1024 * 1024
#: In one picture.
_MOST_STORES = 12
#: More displays than this are told in one line.
_MOST_DISPLAYS = 20
_FORMATS: Mapping[str, "TrackFormat"] = {".gpx": "gpx", ".csv": "csv", ".geojson": "geojson", ".json": "geojson"}


class Svg(click.ParamType[Path]):
    """The path of a picture to make."""

    name = "file.svg"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(value))
        if path.suffix.lower() != ".svg":
            self.fail(f"{path.name!r} must end in .svg: pictures are SVG, which browsers show and print", param, ctx)
        return path


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PICTURE = click.option("--picture", type=Svg(), help="Also draw a picture, an SVG file.")
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")


@click.group()
def fences() -> None:
    """Fences: check them, ask why a position is inside, and walk a recorded track through them."""


@fences.command()
@click.argument("files", type=_FILE, nargs=-1, required=True)
@_PICTURE
@click.option("--store", "stores", multiple=True, help="Tell and draw only the fences of this store. Repeatable.")
@_AS_JSON
def check(files: tuple[Path, ...], picture: Path | None, stores: tuple[str, ...], as_json: bool) -> None:
    """Check the fences of FILES (GeoJSON, or world files in YAML or JSON), together, and show what they become.

    Everything that is wrong is named at once, with file, feature, ring and vertex; then the exit code is 2. What is
    allowed, but looks like a slip, is a warning.
    """
    from geofence.displays import display_fences
    from geofence.survey import cautions_of
    from server.commands.fence_files import compile_all, read_all, reference_problems

    world, problems = read_all(files)
    displays = [fence for product in world.products for fence in display_fences(product)]
    # What can't be read may be what the rest refers to.
    problems += reference_problems(world, whole=not problems)
    sites, faults = compile_all([*world.fences, *displays])
    problems += faults
    if problems:
        if as_json:
            click.echo(msgspec.json.encode({"fences": [], "warnings": [], "problems": problems}))
        click.echo("\n".join(problems), err=True)
        sys.exit(2)
    cautions = cautions_of(sites, world.stores)
    if stores:
        sites = [site for site in sites if site.fence.store in stores]
        for store in set(stores) - {site.fence.store for site in sites}:
            fail(f"no fence belongs to the store {store!r}")
        told = {site.fence.id for site in sites}
        cautions = [caution for caution in cautions if caution.fence in told]
    if as_json:
        rows = [_summary(site) for site in sites]
        warnings = [caution._asdict() for caution in cautions]
        click.echo(msgspec.json.encode({"fences": rows, "warnings": warnings, "problems": []}))
    else:
        click.echo("\n".join(_check_report(sites, {fence.id for fence in displays}, cautions)))
    if picture is not None:
        _draw_covers(picture, sites, world.stores)


@fences.command(context_settings={"ignore_unknown_options": True})
@click.argument("lat", type=click.FloatRange(-90, 90))
@click.argument("lng", type=click.FloatRange(-180, 180))
@click.argument("files", type=_FILE, nargs=-1)
@click.option("--accuracy", type=click.FloatRange(0, 100_000), help="Radius of 68 % confidence of a fix there, in m.")
@click.option("--time", "at_ms", type=Moment(), help="When: 2026-05-01T09:00 (UTC), or 90m ago. Else now.")
@_AS_JSON
def at(
    lat: float, lng: float, files: tuple[Path, ...], accuracy: float | None, at_ms: int | None, as_json: bool
) -> None:
    """Say which fences contain the position LAT LNG, and why; and those within 200 m of it.

    The fences are those of FILES; without any, those of the configured store, as the server uses them.
    """
    if math.isnan(lat) or math.isnan(lng) or (accuracy is not None and math.isnan(accuracy)):
        raise click.UsageError("a position is given in degrees, and an accuracy in metres")
    world, index = _world(files)
    at_ms = SystemClock().now_ms() if at_ms is None else at_ms
    stores = {store.id: store for store in world.stores}
    answers = [
        _answer(site, standing, index, stores.get(site.fence.store), (lat, lng, accuracy), at_ms)
        for site, standing in _standings(index, lat, lng)
    ]
    if as_json:
        click.echo(msgspec.json.encode({"at_ms": at_ms, "fences": answers}))
    else:
        click.echo("\n".join(_at_report(answers, at_ms)))


@fences.command()
@click.argument("track", type=_FILE)
@click.argument("files", type=_FILE, nargs=-1)
@_PICTURE
@_AS_JSON
def replay(track: Path, files: tuple[Path, ...], picture: Path | None, as_json: bool) -> None:
    """Walk TRACK (.gpx, .csv or .geojson) through the fences, and tell each transition with its confidence.

    The fences are those of FILES; without any, those of the configured store. Time is the track's own: what the server
    does by timer happens between its points, and after the last one.
    """
    from geofence.walk import walk
    from server.commands.fence_files import in_steps

    points = _read_track(track)
    _, index = _world(files)
    transitions = [transition for step in walk(in_steps(points, "walking"), index) for transition in step]
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "points": len(points),
                    "stale_points": _stale(points),
                    "transitions": [_fields(transition) for transition in transitions],
                }
            )
        )
    else:
        click.echo("\n".join(_replay_report(points, transitions)))
    if picture is not None:
        _draw_track(picture, points, transitions, index)


def _world(files: Sequence[Path]) -> "tuple[WorldFile, FenceIndex]":
    """The world of the files, or of the configured store, and its fences with those of its displays."""
    from geofence.displays import display_fences
    from server.commands.fence_files import index_of, read_all

    if files:
        world, problems = read_all(files)
        if problems:
            fail("\n".join(problems))
    else:
        world = _stored_world()
    displays = [fence for product in world.products for fence in display_fences(product)]
    try:
        return world, index_of([*world.fences, *displays], world.stores)
    except InputError as error:
        fail(str(error))


def _stored_world() -> WorldFile:
    from server.world import WorldStore

    found: list[WorldFile] = []

    async def work() -> None:
        async with opened_store() as (_, redis, _):
            store = WorldStore(redis)
            await store.refresh()
            if store.problem is not None:
                raise InputError("broken_world", f"the stored world can't be used: {store.problem}")
            found.append(store.current.items)

    run(work())
    return found[0]


def _summary(site: "Site") -> dict[str, object]:
    fence = site.fence
    return {
        "id": fence.id,
        "store": fence.store,
        "kind": fence.kind,
        "parent": fence.parent,
        "shape": fence.geometry.__struct_config__.tag,
        "area_m2": round(site.area_m2, 2),
        "reach_m": round(site.shape.reach_m, 2),
        "cells": site.cells_by_resolution,
        "sure_share": round(site.sure_share, 4),
        "bytes": site.index_bytes,
    }


def _check_report(sites: "Sequence[Site]", displays: set[str], cautions: "Sequence[Caution]") -> Iterator[str]:
    shown = [site for site in sites if site.fence.id not in displays or len(displays) <= _MOST_DISPLAYS]
    rows: list[tuple[str, ...]] = [
        ("ID", "STORE", "KIND", "PARENT", "SHAPE", "AREA m²", "REACH m", "CELLS", "SURE", "BYTES")
    ]
    for site in shown:
        row = _summary(site)
        cells = " ".join(f"{resolution}:{count}" for resolution, count in site.cells_by_resolution.items())
        rows.append(
            (
                *(_clean(str(row[name] or "-")) for name in ("id", "store", "kind", "parent", "shape")),
                f"{site.area_m2:,.1f}",
                f"{site.shape.reach_m:,.1f}",
                cells,
                f"{site.sure_share:.0%}",
                f"{site.index_bytes:,}",
            )
        )
    yield from _table(rows, right={5, 6, 8, 9})
    if len(shown) < len(sites):
        yield f"and {len(sites) - len(shown):,} displays of products, each a small circle"
    yield ""
    count = sum(len(site.cells) for site in sites)
    yield f"fine: {len(sites):,} fences, {count:,} cells, about {sum(site.index_bytes for site in sites):,} bytes"
    for caution in cautions:
        yield f"warning: fence {_clean(caution.fence)!r}: {_clean(caution.detail)}"


def _draw_covers(file: Path, sites: "Sequence[Site]", stores: Iterable[Store]) -> None:
    from geofence.picture import cover_picture, panels_of

    by_store: dict[str, list[Site]] = {}
    for site in sites:
        by_store.setdefault(site.fence.store, []).append(site)
    if not by_store:
        fail("there is no fence to draw")
    names = {store.id: f"{store.name} ({store.id})" for store in stores}
    rows = [panels_of(names.get(store, store), own) for store, own in by_store.items()]
    if len(rows) > _MOST_STORES:
        click.echo(f"the picture has {_MOST_STORES} of {len(rows)} stores; --store chooses", err=True)
    _write(file, cover_picture(rows[:_MOST_STORES]))


def _standings(index: "FenceIndex", lat: float, lng: float) -> "list[tuple[Site, Standing]]":
    """The fences that hold the position, inner ones first, and those near it, nearest first."""
    from geofence.survey import compile_site, standing
    from server.commands.fence_files import in_steps

    found = []
    for fence in in_steps(index.fences, "looking"):
        if index.distance_m(fence.fence_id, lat, lng) <= NEAR_M:
            site = compile_site(fence)
            found.append((site, standing(site, lat, lng)))
    return sorted(found, key=lambda each: (0, each[0].shape.reach_m) if each[1].inside else (1, each[1].edge_m))


def _answer(
    site: "Site",
    standing: "Standing",
    index: "FenceIndex",
    store: Store | None,
    fix: tuple[float, float, float | None],
    at_ms: int,
) -> dict[str, Any]:
    fence, cell = site.fence, standing.cell
    rules = index.rules[fence.fence_id]
    lat, lng, accuracy = fix
    answer: dict[str, Any] = {
        "id": fence.id,
        "store": fence.store,
        "kind": fence.kind,
        "name": fence.name,
        "inside": standing.inside,
        "edge_m": round(standing.edge_m, 2),
        "reach_m": round(site.shape.reach_m, 2),
        "cell": None if cell is None else {"resolution": cell.resolution, "sure": cell.sure},
        "floor": rules.floor,
        "in_force": rules.in_force(at_ms),
        "fence_open": rules.is_open(at_ms, zone_named(store.time_zone) if store else None),
        "store_open": None if store is None else store_is_open(store, at_ms),
    }
    if accuracy is not None:
        answer["accuracy_m"] = accuracy
        answer["probability"] = round(index.probability(fence.fence_id, lat, lng, accuracy), 4)
    return answer


def _at_report(answers: Sequence[Mapping[str, Any]], at_ms: int) -> Iterator[str]:
    inside = [answer for answer in answers if answer["inside"]]
    near = [answer for answer in answers if not answer["inside"]]
    for answer in inside:
        yield f"inside  {_named(answer)}"
        yield f"        {_why(answer)}"
        if "probability" in answer:
            yield f"        {_chance(answer)}"
        yield f"        {_state(answer, at_ms)}"
    for answer in near[:_MOST_NEAR]:
        yield f"near    {_named(answer)}"
        chance = f"; probability {answer['probability']:.2f}" if "probability" in answer else ""
        yield f"        {_why(answer)}{chance}"
    if len(near) > _MOST_NEAR:
        yield f"and {len(near) - _MOST_NEAR:,} more within {NEAR_M:g} m; --json tells them all"
    if not answers:
        yield f"in no fence, and none within {NEAR_M:g} m"


def _named(answer: Mapping[str, Any]) -> str:
    name = f", {_clean(answer['name'])}" if answer["name"] else ""
    return f"{_clean(answer['id'])} ({answer['kind']} of {_clean(answer['store'])}{name})"


def _why(answer: Mapping[str, Any]) -> str:
    cell, edge = answer["cell"], f"{answer['edge_m']:,.1f} m from the edge"
    if cell is None:
        return f"in none of its cells: outside, {edge}"
    if cell["sure"]:
        return f"in a sure cell (resolution {cell['resolution']}): inside without an exact test, {edge}"
    side = "inside" if answer["inside"] else "outside"
    return f"in a boundary cell (resolution {cell['resolution']}): the exact test says {side}, {edge}"


def _chance(answer: Mapping[str, Any]) -> str:
    accuracy, reach = answer["accuracy_m"], answer["reach_m"]
    poor = f"; the fence reaches {reach:,.1f} m: a fix that poor alone fires nothing" if accuracy > reach else ""
    return f"probability of being inside, at an accuracy of {accuracy:g} m: {answer['probability']:.2f}{poor}"


def _state(answer: Mapping[str, Any], at_ms: int) -> str:
    states = ["in force" if answer["in_force"] else "NOT in force"]
    if answer["store_open"] is not None:
        states.append(f"store {'open' if answer['store_open'] else 'CLOSED'}")
    states.append(f"fence {'open' if answer['fence_open'] else 'CLOSED'}")
    states.append("any floor" if answer["floor"] is None else f"floor {answer['floor']}")
    return f"at {_time(at_ms)}: {', '.join(states)}"


def _read_track(file: Path) -> "list[TrackPoint]":
    from geofence.tracks import read_track

    form = _FORMATS.get(file.suffix.lower())
    if form is None:
        fail(f"{file}: a track is a .gpx, .csv or .geojson file")
    try:
        if file.stat().st_size > MAX_TRACK_BYTES:
            fail(f"{file}: a track has at most {MAX_TRACK_BYTES:,} bytes")
        return read_track(file.read_bytes(), form)
    except OSError as error:
        fail(f"{file} can't be read: {error.strerror}")
    except InputError as error:
        fail(f"{file}: {error}")


def _stale(points: "Sequence[TrackPoint]") -> int:
    """How many points are no newer than one before them: the tracker passes over those."""
    newest, stale = 0, 0
    for point in points:
        stale += point.at_ms <= newest
        newest = max(newest, point.at_ms)
    return stale


def _fields(transition: "Transition") -> dict[str, object]:
    return {
        "at_ms": transition.at_ms,
        "kind": transition.kind,
        "fence": transition.fence.id,
        "fence_kind": transition.fence.kind,
        "name": transition.fence.name,
        "store": transition.fence.store,
        "confidence": round(transition.confidence, 4),
        "reason": transition.reason,
    }


def _replay_report(points: "Sequence[TrackPoint]", transitions: "Sequence[Transition]") -> Iterator[str]:
    first, last = min(point.at_ms for point in points), max(point.at_ms for point in points)
    yield f"{len(points):,} points, {_time(first)} to {_time(last)}"
    if stale := _stale(points):
        yield f"{stale:,} of them are no newer than one before them, and say nothing"
    yield ""
    if not transitions:
        yield "no transitions"
        return
    rows = [("TIME", "KIND", "FENCE", "CONFIDENCE", "REASON")]
    rows += [
        (_time(each.at_ms), each.kind, _clean(each.fence.id), f"{each.confidence:.2f}", each.reason or "-")
        for each in transitions
    ]
    yield from _table(rows, right={3})


def _draw_track(
    file: Path, points: "Sequence[TrackPoint]", transitions: "Sequence[Transition]", index: "FenceIndex"
) -> None:
    from geofence.geometry import compile_geometry
    from geofence.survey import Site
    from geofence.track_picture import track_picture

    touched = {transition.fence.id for transition in transitions}
    sites = [
        Site(fence, compile_geometry(fence.geometry), ())
        for fence in index.fences
        if fence.kind != "product" or fence.id in touched
    ]
    _write(file, track_picture(points, transitions, sites))


def _write(file: Path, picture: str) -> None:
    try:
        file.write_text(picture, encoding="utf-8")
    except OSError as error:
        fail(f"{file} can't be written: {error.strerror}")


def _table(rows: Sequence[tuple[str, ...]], right: set[int]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _clean(text: str) -> str:
    """Names come from files: no control characters of theirs reach a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _time(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, tz=UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
