"""Places to test at, and oracles that share no code with what they check.

Circles: the angle between two unit vectors (`atan2`), in plain Python. Polygons: even-odd ray casting in exact
rational numbers, so that "on the edge" means on the edge.
"""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import shapely
import shapely.affinity
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from hypothesis import strategies as st

from geofence.sphere import EARTH_RADIUS_M, Floats
from nearcast.world import Circle, Fence, Geometry, MultiPolygon, Polygon

Ring = list[tuple[float, float]]

PENTAGONS: list[tuple[float, float]] = [h3.cell_to_latlng(cell) for cell in h3.get_pentagons(9)]
#: (latitude, longitude): a city, both sides of the antimeridian, all but at the poles, on the equator at 0.
SPOTS = [(48.2, 16.37), (-16.8, 179.999), (51.9, -179.9995), (89.99, 12.0), (-89.97, -179.99), (0.0, 0.0), *PENTAGONS]


def metres_between(lat: float, lng: float, other_lat: float, other_lng: float) -> float:
    a, b = _vector(lat, lng), _vector(other_lat, other_lng)
    cross = math.hypot(a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return EARTH_RADIUS_M * math.atan2(cross, sum(x * y for x, y in zip(a, b, strict=True)))


def _vector(lat: float, lng: float) -> tuple[float, float, float]:
    phi, lam = math.radians(lat), math.radians(lng)
    return math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)


def expected(geometry: Geometry, lat: float, lng: float) -> bool | None:
    """Whether the point is inside; None within a micrometre of a circle's edge, where rounding decides."""
    if isinstance(geometry, Circle):
        beyond = metres_between(geometry.center[1], geometry.center[0], lat, lng) - geometry.radius_m
        return None if abs(beyond) < 1e-6 else beyond < 0
    polygons = [geometry.coordinates] if isinstance(geometry, Polygon) else geometry.coordinates
    if abs(lat) == 90 and any(vertex[1] == lat for rings in polygons for ring in rings for vertex in ring):
        return True
    longitudes = [lng, -lng] if abs(lng) == 180 else [lng]
    return any(_in_polygon(rings, lat, x) for rings in polygons for x in longitudes)


def _in_polygon(rings: Sequence[Sequence[tuple[float, float]]], lat: float, lng: float) -> bool:
    x, y, odd = Fraction(lng), Fraction(lat), False
    for ring in rings:
        for (x1, y1), (x2, y2) in itertools.pairwise(ring):
            if max(y1, y2) < lat or min(y1, y2) > lat or max(x1, x2) < lng:
                continue
            side = (Fraction(x2) - Fraction(x1)) * (y - Fraction(y1)) - (Fraction(y2) - Fraction(y1)) * (
                x - Fraction(x1)
            )
            if side == 0 and min(x1, x2) <= lng <= max(x1, x2):
                return True
            if (y1 > lat) != (y2 > lat) and (side > 0) == (y2 > y1):
                odd = not odd
    return odd


def fence(geometry: Geometry, name: str = "f", **fields: object) -> Fence:
    return Fence(**{"id": name, "store": "s1", "kind": "store", "geometry": geometry, **fields})  # type: ignore[arg-type]


def shifted(lat: float, lng: float, north_m: float, east_m: float) -> tuple[float, float]:
    """A point some metres away, for short distances away from the poles."""
    degree = math.radians(EARTH_RADIUS_M)
    return lat + north_m / degree, lng + east_m / (degree * math.cos(math.radians(lat)))


def square(lat: float, lng: float, half_m: float) -> Polygon:
    """A square with sides of twice `half_m`."""
    corners = [shifted(lat, lng, n * half_m, e * half_m) for n, e in ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))]
    return Polygon([[(x, y) for y, x in corners]])


@st.composite
def spots(draw: st.DrawFn) -> tuple[float, float]:
    lat, lng = draw(st.sampled_from(SPOTS) | st.tuples(st.floats(-89.99, 89.99), st.floats(-179.999, 179.999)))
    return lat, lng


@st.composite
def circles(draw: st.DrawFn, spot: tuple[float, float]) -> Circle:
    radius_m = draw(st.sampled_from([0.9144, 5.0, 100.0, 2_500.0, 100_000.0]) | st.floats(0.1, 50_000))
    return Circle(center=(spot[1], spot[0]), radius_m=radius_m)


@st.composite
def polygons(draw: st.DrawFn, spot: tuple[float, float]) -> Polygon | MultiPolygon:
    """A star-shaped outline, perhaps with a hole, perhaps a sliver, split where it crosses the antimeridian."""
    lat, lng = spot
    corners = draw(st.integers(3, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height = min(draw(st.sampled_from([2e-5, 5e-4, 0.01, 0.5])), (89.999 - abs(lat)) * 0.9)
    width = min(height / math.cos(math.radians(lat)), 40.0) * draw(st.sampled_from([1.0, 1.0, 1e-4]))
    turns = 2 * math.pi * (np.arange(corners) + rng.uniform(0, 0.45, corners)) / corners
    radii = rng.uniform(0.3, 1.0, corners)
    shell = np.column_stack((lng + width * radii * np.cos(turns), lat + height * radii * np.sin(turns)))
    hole = (shell - (lng, lat)) * 0.4 + (lng, lat)
    whole = shapely.Polygon(shell, [hole] if draw(st.booleans()) else [])
    parts = []
    for shift in (-360.0, 0.0, 360.0):
        moved = shapely.affinity.translate(whole, xoff=shift)
        parts += [
            part
            for part in shapely.get_parts(moved.intersection(shapely.box(-180, -90, 180, 90)))
            if part.geom_type == "Polygon" and part.is_valid and part.area > 0
        ]
    return _as_geojson(parts)


def _as_geojson(parts: list[shapely.Polygon]) -> Polygon | MultiPolygon:
    rings = [
        [[(float(x), float(y)) for x, y in shapely.get_coordinates(ring)] for ring in shapely.get_rings(part)]
        for part in parts
    ]
    return Polygon(rings[0]) if len(rings) == 1 else MultiPolygon(rings)


def points_around(geometry: Geometry, rng: np.random.Generator, count: int = 40) -> tuple[Floats, Floats]:
    """Points in, near and far from the geometry, on its edges and corners and the next number beside them."""
    lats, lngs = [], []
    if isinstance(geometry, Circle):
        lng, lat = geometry.center
        for share in (*rng.uniform(0, 1.3, count), *(1 + rng.uniform(-1, 1, count) * 1e-4), 0.0, 3.0):
            bearing, arc = rng.uniform(0, 2 * math.pi), share * geometry.radius_m / EARTH_RADIUS_M
            phi = math.radians(lat)
            sin_to = math.sin(phi) * math.cos(arc) + math.cos(phi) * math.sin(arc) * math.cos(bearing)
            turn = math.atan2(math.sin(bearing) * math.sin(arc) * math.cos(phi), math.cos(arc) - math.sin(phi) * sin_to)
            lats.append(math.degrees(math.asin(max(-1.0, min(1.0, sin_to)))))
            lngs.append(lng + math.degrees(turn))
    else:
        parts = [geometry.coordinates] if isinstance(geometry, Polygon) else geometry.coordinates
        for rings in parts:
            points = np.concatenate([np.array(ring) for ring in rings])
            low, high = points.min(axis=0), points.max(axis=0)
            spread = low + (high - low) * rng.uniform(-0.1, 1.1, (count, 2))
            shares = rng.uniform(0, 1, (len(points) - 1, 1))
            along = points[:-1] + shares * np.diff(points, axis=0)
            near = np.nextafter(along, along + rng.choice([-1.0, 1.0], along.shape))
            everything = np.concatenate((spread, points, along, near))
            lngs += everything[:, 0].tolist()
            lats += everything[:, 1].tolist()
    wrapped = [x - 360 if x > 180 else x + 360 if x < -180 else x for x in lngs]
    return np.clip(np.array(lats), -90.0, 90.0), np.array(wrapped)
