"""Matching fixes with fences: the index against other ways to ask the same, in one process and the same run.

    python -m bench.geofence [--fences 100,1000,10000,100000] [--seconds 5]

Worlds of a retailer's fences (`city_fences`): of each store a circle around it, its outline with a courtyard, its
departments, half of them with a hole for a pillar, and circles for products. Batches of 1,000 fixes: 10 % within 150 m
of a store, half of those in it; the rest along the city's streets, near no store. The peers get ready arrays and take
turns with the index, round by round; a figure is the median over rounds, of processor time. The index is asked for
columns (`pairs`), as shapely answers; `match_us` is the same with a tuple made for each fix, as the engine asks.

* shapely: `STRtree.query(points, predicate="intersects")` over the same fences, circles as 64-gons; making the points
  counts, as the index gets bare coordinates too.
* h3: `latlng_to_cell` of every fix at the index's finest resolution, in a loop: the floor of any scheme that converts
  all fixes.
* Tile38, where `tile38-server` is on the PATH: INTERSECTS by its own protocol, pipelined; its processor time only, not
  that of the client.

`agreement` is the share of all fixes of the run for which the index names just the fences that the truth names:
shapely's answer for polygons, for circles the great-circle distance by unit vectors.

A change is one fence changed, one added and one removed. `longest_pause_ms` is by how much the slowest batch takes
longer than usual while another thread makes such changes.

The last line is one JSON object.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
import shapely
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

from bench.processes import usage
from bench.tile38 import Tile38
from geofence.cover import FINEST
from geofence.index import FenceIndex
from geofence.sphere import EARTH_RADIUS_M
from nearcast.world import Circle, Fence, FenceKind, Geometry, Polygon

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Row = dict[str, Any]

BATCH = 1_000
FENCES_PER_STORE = 20
LAT, LNG = 48.2, 16.37
_METRES_NORTH = math.radians(EARTH_RADIUS_M)
_METRES_EAST = _METRES_NORTH * math.cos(math.radians(LAT))
#: The city is a square of this many metres to each side of its centre, larger if it has more stores than that.
_HALF_CITY_M, _STORES = 12_000.0, 1_000
_STREET_EVERY_M, _STREET_ERROR_M = 110.0, 6.0
_NEAR_SHARE, _NEAR_M = 0.1, 150.0
_VICINITY_M, _HALF_STORE_M, _DEPARTMENT_M, _PRODUCT_M = 120.0, 40.0, 9.0, 0.9144
_ROUNDS = 8
#: Batches of each in a round.
_BATCHES = 30
_CHANGES = 10
#: Batches as small as an engine with little to do sees them.
_SMALL = (1, 10)


def city_fences(count: int, chance: Random) -> tuple[list[Fence], Floats]:
    """So many fences, twenty a store; and the stores' places in metres east and north of the centre."""
    stores = math.ceil(count / FENCES_PER_STORE)
    half, side = _half_city_m(stores), math.ceil(math.sqrt(stores))
    cell = 2 * half / side
    fences: list[Fence] = []
    places = []
    for number in range(stores):
        row, column = divmod(number, side)
        free = max(0.0, cell / 2 - _VICINITY_M - 20)
        east = (column + 0.5) * cell - half + chance.uniform(-free, free)
        north = (row + 0.5) * cell - half + chance.uniform(-free, free)
        places.append((east, north))
        fences += _fences_of(f"s{number}", east, north, chance.uniform(0, math.tau))
    return fences[:count], np.array(places)


def _fences_of(store: str, east: float, north: float, turn: float) -> list[Fence]:
    cos, sin = math.cos(turn), math.sin(turn)

    def at(x: float, y: float) -> tuple[float, float]:
        """Longitude and latitude of a place given in metres along the store's own axes."""
        return (
            LNG + (east + x * cos - y * sin) / _METRES_EAST,
            LAT + (north + x * sin + y * cos) / _METRES_NORTH,
        )

    def ring(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [at(x, y) for x, y in (*corners, corners[0])]

    def box(x: float, y: float, half: float) -> list[tuple[float, float]]:
        return ring([(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)])

    def fence(kind: FenceKind, name: str, geometry: Geometry, parent: str | None) -> Fence:
        return Fence(
            id=f"{store}-{name}",
            store=store,
            kind=kind,
            geometry=geometry,
            parent=parent and f"{store}-{parent}",
            sku=name if kind == "product" else None,
        )

    m = _HALF_STORE_M
    # An L with a bay window.
    outline = ring(
        [(-m, -m), (m, -m), (m, 0.2 * m), (0.4 * m, 0.2 * m), (0.4 * m, m), (0, m), (-0.2 * m, 1.1 * m), (-m, m)]
    )
    found = [
        fence("vicinity", "vicinity", Circle(at(0, 0), _VICINITY_M), None),
        fence("store", "store", Polygon([outline, box(-0.5 * m, 0.6 * m, 0.15 * m)]), "vicinity"),
    ]
    for n in range(6):
        x, y = -25.0 + 20.0 * (n % 3), -28.0 + 20.0 * (n // 3)
        rings = [box(x, y, _DEPARTMENT_M), *([box(x, y, 1.0)] if n % 2 else [])]
        found.append(fence("department", f"d{n}", Polygon(rings), "store"))
        for product in range(2):
            spot = at(x - 5 + 10 * product, y + 4)
            found.append(fence("product", f"p{2 * n + product}", Circle(spot, _PRODUCT_M), f"d{n}"))
    return found


def _half_city_m(stores: int) -> float:
    return _HALF_CITY_M * math.sqrt(max(1.0, stores / _STORES))


class Batch(NamedTuple):
    """Fixes as arrays, and as lists for those who take one at a time."""

    lats: Floats
    lngs: Floats
    pairs: list[tuple[float, float]]


class Traffic:
    """The city's fixes."""

    def __init__(self, stores: Floats, chance: np.random.Generator) -> None:
        self._stores = stores
        self._tree = shapely.STRtree([shapely.Point(place) for place in stores])
        self._half_m = _half_city_m(len(stores))
        self._chance = chance

    def batch(self, size: int = BATCH) -> Batch:
        near = round(size * _NEAR_SHARE)
        places = np.concatenate((self._near(near), self._streets(size - near)))
        self._chance.shuffle(places)
        lats, lngs = LAT + places[:, 1] / _METRES_NORTH, LNG + places[:, 0] / _METRES_EAST
        return Batch(lats, lngs, list(zip(lats.tolist(), lngs.tolist(), strict=True)))

    def _near(self, count: int) -> Floats:
        store = self._stores[self._chance.integers(len(self._stores), size=count)]
        turn = self._chance.uniform(0, math.tau, count)
        far = _NEAR_M * np.sqrt(self._chance.random(count))
        around = np.column_stack((np.cos(turn), np.sin(turn))) * far[:, None]
        within = self._chance.uniform(-_HALF_STORE_M, _HALF_STORE_M, (count, 2))
        places: Floats = store + np.where(self._chance.random(count)[:, None] < 0.5, around, within)
        return places

    def _streets(self, count: int) -> Floats:
        found = np.empty((0, 2))
        while len(found) < count:
            places = self._chance.uniform(-self._half_m, self._half_m, (2 * count, 2))
            along = self._chance.integers(2, size=len(places))
            rows = np.arange(len(places))
            street = np.round(places[rows, along] / _STREET_EVERY_M) * _STREET_EVERY_M
            places[rows, along] = street + self._chance.normal(0, _STREET_ERROR_M, len(places))
            close = self._tree.query(shapely.points(places), "dwithin", distance=_NEAR_M)[0]
            found = np.concatenate((found, np.delete(places, close, axis=0)))
        return found[:count]


class Truth:
    """Which fences hold a fix, by shapely's tree and by unit vectors: nothing of the index's code."""

    def __init__(self, fences: Sequence[Fence]) -> None:
        outlines = [_outline(fence.geometry) for fence in fences]
        self.tree = shapely.STRtree(outlines)
        circles = [(n, fence.geometry) for n, fence in enumerate(fences) if isinstance(fence.geometry, Circle)]
        self._circles = np.array([n for n, _ in circles], dtype=np.int64)
        self._is_circle = np.zeros(len(fences), dtype=np.bool_)
        self._is_circle[self._circles] = True
        self._centres = _vectors(*np.array([circle.center for _, circle in circles]).T[::-1])
        self._radii_m = np.array([circle.radius_m for _, circle in circles])
        boxes = shapely.bounds([outlines[n] for n, _ in circles])
        room = np.array([-1, -1, 1, 1]) * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)[:, None] * 0.01
        self._boxes = shapely.STRtree(shapely.box(*(boxes + room).T))

    def of(self, batch: Batch) -> Ints:
        """Pairs of fix and ordinal as one number each, sorted."""
        points = shapely.points(batch.lngs, batch.lats)
        fixes, ordinals = self.tree.query(points, predicate="intersects")
        drawn = ~self._is_circle[ordinals]
        near, circles = self._boxes.query(points)
        apart = np.linalg.norm(_vectors(batch.lats, batch.lngs)[near] - self._centres[circles], axis=1)
        held = 2 * EARTH_RADIUS_M * np.arcsin(apart / 2) <= self._radii_m[circles]
        pairs = np.concatenate(
            (
                fixes[drawn] << 32 | ordinals[drawn],
                near[held] << 32 | self._circles[circles[held]],
            )
        )
        return np.sort(pairs)


def _vectors(lats: Floats, lngs: Floats) -> Floats:
    phi, lam = np.radians(lats), np.radians(lngs)
    return np.column_stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)))


def _outline(geometry: Geometry) -> shapely.Geometry:
    if isinstance(geometry, Circle):
        lng, lat = geometry.center
        turns = np.arange(64) * (math.tau / 64)
        east, north = np.cos(turns) * geometry.radius_m, np.sin(turns) * geometry.radius_m
        return shapely.Polygon(np.column_stack((lng + east / _METRES_EAST, lat + north / _METRES_NORTH)))
    if isinstance(geometry, Polygon):
        return shapely.Polygon(geometry.coordinates[0], geometry.coordinates[1:])
    raise TypeError(f"the benchmark's city has no {type(geometry).__name__}")


def one_world(count: int, seconds: float, tile38: Path | None) -> Row:
    """Cost per fix of everyone in a world of so many fences, in microseconds; agreement; build; memory."""
    fences, stores = city_fences(count, Random(7))
    row: Row = {"fences": len(fences)}
    before = _resident_bytes()
    started = time.process_time()
    index = FenceIndex.build(fences)
    row["build_s"] = time.process_time() - started
    row["bytes_per_fence"] = (_resident_bytes() - before) / len(fences)
    match, pairs = index.match, index.pairs
    traffic, truth = Traffic(stores, np.random.default_rng(7)), Truth(fences)
    contenders: dict[str, Callable[[Batch], object]] = {
        "index": lambda batch: pairs(batch.lats, batch.lngs),
        "match": lambda batch: match(batch.lats, batch.lngs),
        "strtree": lambda batch: truth.tree.query(shapely.points(batch.lngs, batch.lats), predicate="intersects"),
        "h3": lambda batch: [h3.latlng_to_cell(lat, lng, FINEST) for lat, lng in batch.pairs],
    }
    for call in contenders.values():  # the first calls fill caches
        call(traffic.batch())
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    fixes = wrong = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(costs["index"]) < _ROUNDS:
        batches = [traffic.batch() for _ in range(_BATCHES)]
        # In turns at being first: making the traffic has filled the processor's caches with other things.
        turn = len(costs["index"]) % len(contenders)
        for name, call in [*contenders.items(), *contenders.items()][turn : turn + len(contenders)]:
            costs[name].append(_cost_us(call, batches))
        for batch in batches:
            wrong += _wrong(match(batch.lats, batch.lngs), truth.of(batch))
        fixes += len(batches) * BATCH
    row |= {f"{name}_us": statistics.median(cost) for name, cost in costs.items()}
    row["match_vs_strtree"] = statistics.median(p / i for p, i in zip(costs["strtree"], costs["match"], strict=True))
    for peer in ("strtree", "h3"):
        row[f"vs_{peer}"] = statistics.median(p / i for p, i in zip(costs[peer], costs["index"], strict=True))
    for size in _SMALL:
        row[f"batch_of_{size}_us"] = size * _cost_us(contenders["match"], _cut(traffic.batch(), size))
    row |= {"fixes": fixes, "agreement": 1 - wrong / fixes}
    if tile38 is not None:
        with Tile38(tile38) as server:
            server.fill((fence.id, shapely.to_geojson(_outline(fence.geometry))) for fence in fences)
            row["tile38_us"] = server.cost_us([pair for _ in range(10) for pair in traffic.batch().pairs])
            row["vs_tile38"] = row["tile38_us"] / row["index_us"]
    return row | changes(index, fences, traffic)


def _cost_us(call: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
    """Processor time for a fix."""
    started = time.process_time()
    for batch in batches:
        call(batch)
    return (time.process_time() - started) / sum(len(batch.lats) for batch in batches) * 1e6


def _cut(batch: Batch, size: int) -> list[Batch]:
    parts = [slice(start, start + size) for start in range(0, len(batch.lats), size)]
    return [Batch(batch.lats[part], batch.lngs[part], batch.pairs[part]) for part in parts]


def _wrong(found: Sequence[tuple[int, ...]], pairs: Ints) -> int:
    """How many fixes got another answer than the truth."""
    given = np.array(
        [fix << 32 | ordinal for fix, ordinals in enumerate(found) for ordinal in ordinals], dtype=np.int64
    )
    return len(np.unique(np.setxor1d(given, pairs) >> 32))


def changes(index: FenceIndex, fences: Sequence[Fence], traffic: Traffic) -> Row:
    """What a change costs, and how it holds up a thread that matches."""
    chance = Random(7)
    batches = [traffic.batch() for _ in range(20)]
    pauses: list[float] = []
    usual: list[float] = []
    costs: list[float] = []
    done = threading.Event()

    def change() -> None:
        current, items = index, list(fences)
        for number in range(_CHANGES):
            at, other, gone = (chance.randrange(len(items)) for _ in range(3))
            items[at] = msgspec.structs.replace(items[at], geometry=items[other].geometry)
            items.insert(other, msgspec.structs.replace(items[at], id=f"new{number}"))
            del items[gone]
            started = time.thread_time()
            current = FenceIndex.build(items, current)
            costs.append(time.thread_time() - started)
        done.set()

    def timed(into: list[float]) -> None:
        for batch in batches:
            started = time.perf_counter()
            index.match(batch.lats, batch.lngs)
            into.append(time.perf_counter() - started)

    timed(usual)
    changing = threading.Thread(target=change)
    changing.start()
    while not done.is_set():
        timed(pauses)
    changing.join()
    return {
        "change_ms": statistics.median(costs) * 1e3,
        "longest_pause_ms": (max(pauses, default=0.0) - statistics.median(usual)) * 1e3,
    }


def _resident_bytes() -> int:
    """What is in use, without what was given back and kept for later (glibc; elsewhere with it)."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return usage(os.getpid()).rss_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fences", default="100,1000,10000,100000", help="how many, by world")
    parser.add_argument("--seconds", type=float, default=5.0, help="at least so long in each world")
    arguments = parser.parse_args()
    found = shutil.which("tile38-server")
    if found is None:
        print("Tile38: left out, there is no tile38-server on the PATH", file=sys.stderr)
    columns = (
        *(
            "fences",
            "index_us",
            "match_us",
            "strtree_us",
            "h3_us",
            "vs_strtree",
            "vs_h3",
            "agreement",
            "batch_of_1_us",
            "batch_of_10_us",
        ),
        *("build_s", "bytes_per_fence", "change_ms", "longest_pause_ms"),
    )
    print(" ".join(f"{name:>{max(len(name), 9)}}" for name in columns), flush=True)
    rows = []
    for count in (int(text) for text in arguments.fences.split(",")):
        row = one_world(count, arguments.seconds, Path(found) if found else None)
        print(" ".join(f"{_text(row[name]):>{max(len(name), 9)}}" for name in columns), flush=True)
        rows.append(row)
    print(json.dumps(summary(rows)))


def summary(rows: Sequence[Row]) -> Row:
    """The figures of the smallest and of the largest world, and of all."""
    small, large = rows[0], rows[-1]
    sizes = {row["fences"]: row for row in rows}

    def at(fences: int, name: str) -> Any:
        return sizes[fences].get(name) if fences in sizes else None

    row = {
        "bench": "geofence",
        "points_per_s": round(1e6 / large["index_us"]),
        "vs_strtree_100": at(100, "vs_strtree"),
        "vs_strtree_100k": at(100_000, "vs_strtree"),
        "match_vs_strtree_100": at(100, "match_vs_strtree"),
        "match_vs_strtree_100k": at(100_000, "match_vs_strtree"),
        "vs_h3_floor": min(row["vs_h3"] for row in rows),
        "vs_tile38": large.get("vs_tile38"),
        "growth_100_to_100k": large["index_us"] / small["index_us"]
        if at(100, "fences") and at(100_000, "fences")
        else None,
        "agreement": min(row["agreement"] for row in rows),
        "bytes_per_fence": large["bytes_per_fence"],
        "build_s_100k": at(100_000, "build_s"),
        "change_ms": large["change_ms"],
        "longest_pause_ms": max(row["longest_pause_ms"] for row in rows),
        "worlds": rows,
    }
    return {name: value if name == "worlds" else _rounded(name, value) for name, value in row.items()}


def _rounded(name: str, value: Any) -> Any:
    # Rounding must not turn a disagreement into none.
    return round(value, 3) if isinstance(value, float) and name != "agreement" else value


def _text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
