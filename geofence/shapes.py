"""Compiled geometry: what a fence's area can be asked, exactly and many points at a time.

A `Disc` is a great-circle disc. An `Area` is a GeoJSON (multi)polygon: its edges are straight lines of longitude and
latitude. For both, a point on the edge is inside. -180 and 180 are the same meridian, and a pole is one point
whatever its longitude. Shapes are made by `geometry.compile_geometry`, which has checked what they are made from.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from geofence.sphere import (
    EARTH_RADIUS_M,
    Bools,
    Boxes,
    Floats,
    box_around,
    boxes_around,
    distance_m,
    distances_m,
    half_chord_squared,
    half_chord_squared_of,
    wrap,
)

Geometries = NDArray[np.object_]

# Boxes are widened by this much (a micrometre), which is far more than the rounding of the sums that made them.
_PAD_RAD = 1e-6 / EARTH_RADIUS_M
#: Of so many edges, the nearest is found without arrays.
_FEW_EDGES = 16
#: From this latitude on, "locally flat" is wrong enough to matter: the nearest point of an edge is searched for.
_POLAR_LATITUDE = 80.0
_SEARCH_STEPS = 17
_SEARCH_ROUNDS = 8


class CapTest(NamedTuple):
    """For each cap: is all of it surely inside the shape; can any of it be? Errs towards "no" and "yes"."""

    inside: Bools
    touching: Bools


@dataclass(frozen=True, slots=True)
class Disc:
    """All points within `radius_m` of the centre."""

    lat: float
    lng: float
    radius_m: float

    @property
    def reach_m(self) -> float:
        """The size to hold against a fix's accuracy: the radius."""
        return self.radius_m

    @property
    def limit(self) -> float:
        return half_chord_squared_of(self.radius_m)

    def contain(self, lats: Floats, lngs: Floats) -> Bools:
        return discs_contain(self.lat, self.lng, self.limit, lats, lngs)

    def test_caps(self, lats: Floats, lngs: Floats, radius_rad: float) -> CapTest:
        return discs_test_caps(self.lat, self.lng, self.radius_m, lats, lngs, radius_rad)

    def distance_m(self, lat: float, lng: float) -> float:
        """Metres from the point to the disc; 0 inside."""
        return max(-self.depth_m(lat, lng), 0.0)

    def depth_m(self, lat: float, lng: float) -> float:
        """Metres from the point to the edge; below 0 outside."""
        return self.radius_m - distance_m(self.lat, self.lng, lat, lng)

    def boxes(self) -> Boxes:
        """Rectangles that hold the disc."""
        first, second = boxes_around(
            np.array([self.lat]), np.array([self.lng]), self.radius_m / EARTH_RADIUS_M + _PAD_RAD
        )
        return Boxes(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


@dataclass(frozen=True, slots=True)
class Area:
    """A valid, prepared shapely Polygon or MultiPolygon in longitude and latitude."""

    geometry: shapely.Polygon | shapely.MultiPolygon
    reach_m: float = field(init=False)
    holds_north_pole: bool = field(init=False)
    holds_south_pole: bool = field(init=False)
    #: Edges as rows (lng, lat, change of lng, change of lat).
    edges: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shapely.prepare(self.geometry)
        _, south, _, north = self.geometry.bounds
        # The size to hold against a fix's accuracy: the radius of the disc of the same area. Longitude and the sine
        # of latitude are an equal-area map of the sphere.
        flat = shapely.transform(self.geometry, _to_equal_area)
        object.__setattr__(self, "reach_m", EARTH_RADIUS_M * math.sqrt(flat.area / math.pi))
        object.__setattr__(self, "holds_north_pole", north == 90.0)
        object.__setattr__(self, "holds_south_pole", south == -90.0)
        object.__setattr__(self, "edges", _edges_of(self.geometry))

    def contain(self, lats: Floats, lngs: Floats) -> Bools:
        return areas_contain(self.geometry, self.holds_north_pole, self.holds_south_pole, lats, lngs)

    def test_caps(self, lats: Floats, lngs: Floats, radius_rad: float) -> CapTest:
        geometries = np.full(len(lats), self.geometry, dtype=np.object_)
        return areas_test_caps(geometries, lats, lngs, radius_rad)

    def surely_holds(self, lat: float, lng: float, radius_m: float) -> bool:
        """Whether all of a cap is inside. Errs towards "no": it asks for the box around the cap. For single caps."""
        box = box_around(lat, lng, radius_m / EARTH_RADIUS_M + _PAD_RAD)
        return box is not None and bool(shapely.covers(self.geometry, shapely.box(*box)))

    def distance_m(self, lat: float, lng: float) -> float:
        """Metres from the point to the area; 0 inside.

        The nearest point of each edge is found on the plane that touches the Earth at the given point, and then
        measured on the sphere: within 0.1 % as far as 1 km away. Near the poles it is searched for on the sphere.
        """
        return max(-self.depth_m(lat, lng), 0.0)

    def depth_m(self, lat: float, lng: float) -> float:
        """Metres from the point to the nearest edge, measured as `distance_m` does; below 0 outside."""
        if abs(lng) == 180.0 or abs(lat) == 90.0:
            inside = bool(self.contain(np.array([lat]), np.array([lng]))[0])
        else:
            inside = bool(shapely.intersects_xy(self.geometry, lng, lat))
        return self._to_edge_m(lat, lng) if inside else -self._to_edge_m(lat, lng)

    def _to_edge_m(self, lat: float, lng: float) -> float:
        if abs(lat) >= _POLAR_LATITUDE:
            return _search_nearest_m(self.edges, lat, lng)
        nearest = _nearest_of_few if len(self.edges) <= _FEW_EDGES else _nearest_of_many
        edge_lng, edge_lat = nearest(self.edges, lat, lng)
        return distance_m(lat, lng, edge_lat, edge_lng)

    def boxes(self) -> Boxes:
        """Rectangles that hold each polygon, with the antimeridian under its other name and the poles."""
        bounds = shapely.bounds(shapely.get_parts(self.geometry))
        extra = []
        for west, south, east, north in bounds.tolist():
            if west == -180.0:
                extra.append((180.0, south, 180.0, north))
            if east == 180.0:
                extra.append((-180.0, south, -180.0, north))
        if self.holds_north_pole:
            extra.append((-180.0, 90.0, 180.0, 90.0))
        if self.holds_south_pole:
            extra.append((-180.0, -90.0, 180.0, -90.0))
        return Boxes(*np.array([*bounds.tolist(), *extra], dtype=np.float64).T)


Shape = Disc | Area


def discs_contain(lat: Floats | float, lng: Floats | float, limit: Floats | float, lats: Floats, lngs: Floats) -> Bools:
    """Whether disc i (or the one disc) contains point i; `limit` is `Disc.limit`."""
    contained: Bools = half_chord_squared(lat, lng, lats, lngs) <= limit
    return contained


def areas_contain(
    geometry: Geometries | shapely.Geometry, north: Bools | bool, south: Bools | bool, lats: Floats, lngs: Floats
) -> Bools:
    """Whether area i (or the one area) contains point i. `north` and `south`: whether it holds that pole."""
    contained: Bools = shapely.intersects_xy(geometry, lngs, lats)
    if np.any(np.abs(lngs) == 180.0):
        contained |= shapely.intersects_xy(geometry, np.where(np.abs(lngs) == 180.0, -lngs, lngs), lats)
    contained |= (north & (lats == 90.0)) | (south & (lats == -90.0))
    return contained


def discs_test_caps(
    lat: Floats | float, lng: Floats | float, radius_m: Floats | float, lats: Floats, lngs: Floats, radius_rad: float
) -> CapTest:
    """What disc i (or the one disc) says to a cap around point i."""
    apart = distances_m(lat, lng, lats, lngs)
    slack = (radius_rad + _PAD_RAD) * EARTH_RADIUS_M
    return CapTest(apart + slack <= radius_m, apart - slack <= radius_m)


def areas_test_caps(geometries: Geometries, lats: Floats, lngs: Floats, radius_rad: float) -> CapTest:
    """What area i says to a cap around point i."""
    first, second = boxes_around(lats, lngs, radius_rad + _PAD_RAD)
    boxes = _polygons(first)
    touching: Bools = shapely.intersects(geometries, boxes)
    inside: Bools = np.zeros(len(lats), dtype=np.bool_)
    inside[touching] = shapely.covers(geometries[touching], boxes[touching])
    split = np.flatnonzero(first.west != second.west)
    if split.size:
        beyond = _polygons(Boxes(*(side[split] for side in second)))
        touching[split] |= shapely.intersects(geometries[split], beyond)
        inside[split] &= shapely.covers(geometries[split], beyond)
    return CapTest(inside, touching)


def _polygons(boxes: Boxes) -> Geometries:
    polygons: Geometries = shapely.box(boxes.west, boxes.south, boxes.east, boxes.north)
    return polygons


def _to_equal_area(points: Floats) -> Floats:
    return np.column_stack((np.radians(points[:, 0]), np.sin(np.radians(points[:, 1]))))


def _edges_of(geometry: shapely.Geometry) -> Floats:
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring_of = shapely.get_coordinates(rings, return_index=True)
    edges = np.hstack((points[:-1], np.diff(points, axis=0)))
    # Between two rings there is none; and a vertex given twice makes one without length, which has no direction to
    # project on.
    found: Floats = edges[(ring_of[1:] == ring_of[:-1]) & edges[:, 2:].any(axis=1)]
    return found


def _nearest_of_many(edges: Floats, lat: float, lng: float) -> tuple[float, float]:
    """The point (longitude, latitude) of the edges that is nearest to a point, on the plane that touches there.

    An edge spans 180 degrees at most: its start, taken the short way round, shows the side on which it passes near.
    """
    scale = math.cos(math.radians(lat))
    x, y = wrap(edges[:, 0] - lng), edges[:, 1] - lat
    dx, dy = edges[:, 2] * scale, edges[:, 3]
    share = np.clip(-(x * scale * dx + y * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    nearest = np.argmin((x * scale + share * dx) ** 2 + (y + share * dy) ** 2)
    edge, along = edges[nearest], share[nearest]
    return float(edge[0] + along * edge[2]), float(edge[1] + along * edge[3])


def _nearest_of_few(edges: Floats, lat: float, lng: float) -> tuple[float, float]:
    """`_nearest_of_many` without arrays, which cost more than the sums of a few edges."""
    scale = math.cos(math.radians(lat))
    least, found = math.inf, (lng, lat)
    for start_lng, start_lat, change_lng, change_lat in edges.tolist():
        x = start_lng - lng
        if abs(x) > 180.0:
            x -= math.copysign(360.0, x)
        x, y, dx, dy = x * scale, start_lat - lat, change_lng * scale, change_lat
        share = min(max(-(x * dx + y * dy) / (dx * dx + dy * dy), 0.0), 1.0)
        apart = (x + share * dx) ** 2 + (y + share * dy) ** 2
        if apart < least:
            least, found = apart, (start_lng + share * change_lng, start_lat + share * change_lat)
    return found


def _search_nearest_m(edges: Floats, lat: float, lng: float) -> float:
    low, high = np.zeros(len(edges)), np.ones(len(edges))
    rows = np.arange(len(edges))
    best = math.inf
    for _ in range(_SEARCH_ROUNDS):
        shares = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, _SEARCH_STEPS)
        lats = edges[:, 1, None] + shares * edges[:, 3, None]
        lngs = (edges[:, 0, None] + shares * edges[:, 2, None] + 540.0) % 360.0 - 180.0
        apart = distances_m(lat, lng, lats, lngs)
        nearest = np.argmin(apart, axis=1)
        best = min(best, float(apart.min()))
        low = shares[rows, np.maximum(nearest - 1, 0)]
        high = shares[rows, np.minimum(nearest + 1, _SEARCH_STEPS - 1)]
    return best
