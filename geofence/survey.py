"""What can be said of fences before anybody walks through them: their size, their cover, and what looks like a slip.

For tools: nothing here is asked while events are matched. Areas are those of the sphere. They are compared on the
equal-area plane of longitude and sine of latitude; a fence that this plane tears apart (antimeridian, poles) is not.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import shapely

from geofence import cover
from geofence.geometry import compile_geometry
from geofence.rules import rules_of
from geofence.shapes import Disc, Shape
from geofence.sphere import EARTH_RADIUS_M, Floats, offset
from geofence.tracker import GPS_FLOOR_M
from nearcast.errors import InputError
from nearcast.world import Fence, Geometry, MultiPolygon, Polygon, Store

#: What a phone reaches under open sky: 5 m (gps.gov, "GPS accuracy": 4.9 m).
GOOD_GPS_M = 5.0
#: Overlaps of less than this share of the smaller one are how outlines are drawn, not a slip.
_NOTABLE_SHARE = 0.01
_CORNERS = 96
#: What the index keeps for each cell: the cell, whose it is, and about three buckets of the hash table.
_BYTES_PER_CELL = 8 + 4 + 3 * 4
_BYTES_PER_DISC = 3 * 8


#: A fence on the equal-area plane, in Earth radii.
Flat = shapely.Polygon | shapely.MultiPolygon


class Site(NamedTuple):
    """A fence, its compiled shape, and its cover."""

    fence: Fence
    shape: Shape
    cells: tuple[cover.Cell, ...]

    @property
    def area_m2(self) -> float:
        if isinstance(self.shape, Disc):
            half = min(self.shape.radius_m / EARTH_RADIUS_M, math.pi) / 2
            return 4 * math.pi * (EARTH_RADIUS_M * math.sin(half)) ** 2
        return math.pi * self.shape.reach_m**2

    @property
    def sure_share(self) -> float:
        """The share of the cover in which nothing needs the exact test."""
        whole = sum(_size(cell) for cell in self.cells)
        return sum(_size(cell) for cell in self.cells if cell.sure) / whole if whole else 0.0

    @property
    def cells_by_resolution(self) -> dict[int, int]:
        return dict(sorted(Counter(cell.resolution for cell in self.cells).items()))

    @property
    def index_bytes(self) -> int:
        """About how much of the index is this fence's: rows of its cells, and what the exact test needs."""
        exact = _BYTES_PER_DISC
        if not isinstance(self.shape, Disc):
            exact = self.shape.edges.nbytes + 16 * int(shapely.get_num_coordinates(self.shape.geometry))
        return len(self.cells) * _BYTES_PER_CELL + exact

    def rings(self) -> list[Floats]:
        """The outlines as rows of longitude and latitude, shells and holes; of a circle, many corners."""
        if isinstance(self.shape, Disc):
            turns = np.linspace(0, 2 * math.pi, _CORNERS + 1)
            lats, lngs = offset(self.shape.lat, self.shape.lng, turns, np.full(len(turns), self.shape.radius_m))
            return [np.column_stack((lngs, lats))]
        return [
            shapely.get_coordinates(ring)
            for part in shapely.get_parts(self.shape.geometry)
            for ring in shapely.get_rings(part)
        ]


class Caution(NamedTuple):
    """Something that is allowed, and probably not meant."""

    fence: str
    code: str
    detail: str


class Standing(NamedTuple):
    """How a position stands to a fence."""

    #: The cell of the cover that holds it, if one does.
    cell: cover.Cell | None
    inside: bool
    #: Metres to the edge, from either side.
    edge_m: float


def compile_site(fence: Fence) -> Site:
    """Raises `InputError` ("invalid_geometry")."""
    shape = compile_geometry(fence.geometry)
    return Site(fence, shape, tuple(cover.cover(shape)))


def geometry_problems(geometry: Geometry) -> list[InputError]:
    """Everything that is wrong with a geometry: each ring's own fault, or else what is wrong with all together."""
    try:
        compile_geometry(geometry)
    except InputError as error:
        return list(_ring_problems(geometry)) or [error]
    return []


def _ring_problems(geometry: Geometry) -> Iterator[InputError]:
    if not isinstance(geometry, Polygon | MultiPolygon):
        return
    polygons = [geometry.coordinates] if isinstance(geometry, Polygon) else geometry.coordinates
    for number, rings in enumerate(polygons):
        place = "" if isinstance(geometry, Polygon) else f"polygon {number}, "
        for ring_number, ring in enumerate(rings):
            try:
                compile_geometry(Polygon([ring]))
            except InputError as error:
                where = error.where.replace("ring 0", f"{place}ring {ring_number}", 1)
                yield InputError(error.reason, error.detail, where)


def standing(site: Site, lat: float, lng: float) -> Standing:
    """Where a position stands, and which cell says so."""
    lats, lngs = np.array([lat]), np.array([lng])
    keys = cover.finest_keys(lats, lngs)
    cell = next((cell for cell in site.cells if cover.ancestors(keys, cell.resolution)[0] == cell.key), None)
    inside = bool(site.shape.contain(lats, lngs)[0])
    return Standing(cell, inside, abs(site.shape.depth_m(lat, lng)))


def cautions_of(sites: Sequence[Site], stores: Sequence[Store]) -> list[Caution]:
    """What looks like a slip, fence by fence; `sites` have no cycle of parents and no id twice."""
    by_id = {site.fence.id: site for site in sites}
    flat = {site.fence.id: _flat(site) for site in sites}
    found = [
        *_too_small(sites, by_id),
        *_overlapping(sites, by_id, flat),
        *_sticking_out(sites, flat),
        *_displays_outside(sites),
        *_stores_elsewhere(sites, stores),
    ]
    order = {site.fence.id: number for number, site in enumerate(sites)}
    return sorted(found, key=lambda caution: order.get(caution.fence, len(order)))


def ancestors_of(fence: Fence, by_id: Mapping[str, Site]) -> list[Fence]:
    """The fences around it, inner ones first, as far as they are there."""
    found: list[Fence] = []
    while fence.parent is not None and fence.parent in by_id:
        fence = by_id[fence.parent].fence
        found.append(fence)
    return found


def _too_small(sites: Sequence[Site], by_id: Mapping[str, Site]) -> Iterator[Caution]:
    for site in sites:
        fence, reach_m = site.fence, site.shape.reach_m
        proven = fence.beacons or fence.access_points or fence.codes
        if fence.kind != "product" and not proven and reach_m < GOOD_GPS_M:
            never = reach_m < GPS_FLOOR_M
            yield Caution(
                fence.id,
                "smaller_than_gps",
                f"its reach is {reach_m:.1f} m; a phone's satellite fix is good to {GOOD_GPS_M:.0f} m at best, so "
                + ("none ever enters it" if never else "few ever enter it")
                + " (beacons, Wi-Fi and codes do)",
            )
        margin_m = rules_of(fence, ancestors_of(fence, by_id)).exit_margin_m
        if margin_m > reach_m:
            yield Caution(
                fence.id,
                "margin_larger_than_fence",
                f"its exit margin of {margin_m:g} m is larger than its reach of {reach_m:.1f} m: whoever was in it "
                "leaves it late",
            )


def _overlapping(
    sites: Sequence[Site], by_id: Mapping[str, Site], flat: Mapping[str, Flat | None]
) -> Iterator[Caution]:
    groups: dict[tuple[str, str | None, str], list[tuple[Fence, Flat]]] = {}
    for site in sites:
        fence, outline = site.fence, flat[site.fence.id]
        if fence.kind != "product" and outline is not None:
            groups.setdefault((fence.store, fence.parent, fence.kind), []).append((fence, outline))
    for group in groups.values():
        outlines = [outline for _, outline in group]
        one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
        for first, second in sorted(zip(one.tolist(), other.tolist(), strict=True)):
            if first >= second:
                continue
            pair = group[first][0], group[second][0]
            floors = {rules_of(fence, ancestors_of(fence, by_id)).floor for fence in pair}
            if None not in floors and len(floors) == 2:
                continue
            a, b = outlines[first], outlines[second]
            common, smaller = shapely.intersection(a, b).area, min(a.area, b.area)
            if common > _NOTABLE_SHARE * smaller:
                yield Caution(
                    pair[1].id,
                    "overlapping_siblings",
                    f"it and {pair[0].id!r} have {_m2(common)} in common ({common / smaller:.0%} of the "
                    "smaller): whoever is there is in both",
                )


def _sticking_out(sites: Sequence[Site], flat: Mapping[str, Flat | None]) -> Iterator[Caution]:
    for site in sites:
        own, parent = flat[site.fence.id], flat.get(site.fence.parent or "")
        if own is None or parent is None:
            continue
        beyond = own.area - shapely.intersection(own, parent).area
        if beyond > _NOTABLE_SHARE * own.area:
            yield Caution(
                site.fence.id,
                "outside_of_parent",
                f"{_m2(beyond)} ({beyond / own.area:.0%}) of it lie outside of its parent {site.fence.parent!r}: "
                "whoever is there counts as in both",
            )


def _displays_outside(sites: Sequence[Site]) -> Iterator[Caution]:
    houses: dict[str, list[Site]] = {}
    for site in sites:
        if site.fence.kind == "store":
            houses.setdefault(site.fence.store, []).append(site)
    for site in sites:
        if site.fence.kind != "product" or site.fence.store not in houses or not isinstance(site.shape, Disc):
            continue
        away_m = min(house.shape.distance_m(site.shape.lat, site.shape.lng) for house in houses[site.fence.store])
        if away_m > 0:
            yield Caution(
                site.fence.id,
                "display_outside_of_store",
                f"the product stands {_metres(away_m)} outside of its store {site.fence.store!r}",
            )


def _stores_elsewhere(sites: Sequence[Site], stores: Sequence[Store]) -> Iterator[Caution]:
    by_store: dict[str, list[Site]] = {}
    for site in sites:
        by_store.setdefault(site.fence.store, []).append(site)
    for store in stores:
        own = by_store.get(store.id)
        if not own:
            continue
        away_m = min(site.shape.distance_m(store.lat, store.lng) for site in own)
        if away_m > 0:
            yield Caution(
                own[0].fence.id,
                "store_elsewhere",
                f"the store {store.id!r} itself is {_metres(away_m)} away from its nearest fence: are latitude and "
                "longitude the right way round?",
            )


def _flat(site: Site) -> Flat | None:
    rings = site.rings()
    if max(np.ptp(ring[:, 0]) for ring in rings) > 180 or max(np.abs(ring[:, 1]).max() for ring in rings) >= 90:
        return None
    whole = shapely.Polygon(rings[0]) if isinstance(site.shape, Disc) else site.shape.geometry
    return shapely.transform(whole, _to_equal_area)


def _to_equal_area(points: Floats) -> Floats:
    return np.column_stack((np.radians(points[:, 0]), np.sin(np.radians(points[:, 1]))))


def cycles(fences: Sequence[Fence]) -> Iterator[str]:
    """One sentence for each fence that is its own ancestor."""
    parents = {fence.id: fence.parent for fence in fences}
    for fence in fences:
        above, passed = fence.parent, set[str]()
        while above is not None and above != fence.id and above not in passed:
            passed.add(above)
            above = parents.get(above)
        if above == fence.id:
            yield f"fence {fence.id!r} is its own ancestor"


def _size(cell: cover.Cell) -> float:
    return float(7.0**-cell.resolution)


def _m2(area: float) -> str:
    return f"{area * EARTH_RADIUS_M**2:,.0f} m²"


def _metres(length_m: float) -> str:
    return (
        f"{length_m / 1000:,.0f} km"
        if length_m >= 10_000
        else f"{length_m:,.0f} m"
        if length_m >= 10
        else f"{length_m:.1f} m"
    )
