"""The sphere: great-circle distance, caps, and the boxes around them.

Angles are degrees of latitude and longitude unless a name ends in `_rad`; lengths are metres on a sphere of the
Earth's mean radius. What takes arrays depends on one element at a time only, so that cutting a batch differently
can't change a result; `distance_m` and `box_around` are for single points, where arrays cost more than the sums.
Nothing here knows about fences.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The IUGG mean radius (2a + b) / 3 of WGS 84. The sphere is within 0.6 % of the ellipsoid everywhere.
EARTH_RADIUS_M = 6_371_008.8

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Boxes(NamedTuple):
    """Longitude/latitude rectangles, one per element; `west <= east`, so none crosses the antimeridian."""

    west: Floats
    south: Floats
    east: Floats
    north: Floats


def half_chord_squared(lat: Floats | float, lng: Floats | float, lats: Floats, lngs: Floats) -> Floats:
    """The haversine of the angle between two points: grows with their distance, and is exact for tiny ones."""
    lat_rad, lats_rad = np.radians(lat), np.radians(lats)
    across: Floats = np.sin(np.radians(wrap(lngs - lng)) / 2) ** 2
    along: Floats = np.sin((lats_rad - lat_rad) / 2) ** 2
    return along + np.cos(lat_rad) * np.cos(lats_rad) * across


def half_chord_squared_of(distance_m: float) -> float:
    """What `half_chord_squared` gives for two points this far apart."""
    return math.sin(min(distance_m / EARTH_RADIUS_M, math.pi) / 2) ** 2


def distances_m(lat: Floats | float, lng: Floats | float, lats: Floats, lngs: Floats) -> Floats:
    """Great-circle distances."""
    chord: Floats = np.sqrt(np.minimum(half_chord_squared(lat, lng, lats, lngs), 1.0))
    return 2 * EARTH_RADIUS_M * np.arcsin(chord)


def distance_m(lat: float, lng: float, other_lat: float, other_lng: float) -> float:
    """The great-circle distance of two points: `distances_m` for one pair, but for rounding."""
    lat_rad, other_rad = math.radians(lat), math.radians(other_lat)
    across = math.sin(math.radians(other_lng - lng) / 2)
    along = math.sin((other_rad - lat_rad) / 2)
    half_chord = along * along + math.cos(lat_rad) * math.cos(other_rad) * across * across
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(min(half_chord, 1.0)))


def wrap(degrees: Floats) -> Floats:
    """Differences of longitude, brought to -180..180; those that are there already stay exactly what they are."""
    turned: Floats = np.where(degrees > 180, degrees - 360, np.where(degrees < -180, degrees + 360, degrees))
    return turned


def boxes_around(lats: Floats, lngs: Floats, radius_rad: float) -> tuple[Boxes, Boxes]:
    """Rectangles that together hold all of each cap: its part on the map, and the part beyond the antimeridian.

    Where nothing lies beyond, the second is the same as the first. A cap that holds a pole gets all longitudes.
    """
    reach = math.degrees(radius_rad)
    south, north = np.maximum(lats - reach, -90.0), np.minimum(lats + reach, 90.0)
    polar = (lats + reach >= 90.0) | (lats - reach <= -90.0)
    # Meridians touch the cap where sin(half width) = sin(radius) / cos(latitude).
    ratio = math.sin(min(radius_rad, math.pi / 2)) / np.maximum(np.cos(np.radians(lats)), 1e-12)
    half = np.where(polar, 180.0, np.degrees(np.arcsin(np.minimum(ratio, 1.0))))
    west, east = np.where(polar, -180.0, lngs - half), np.where(polar, 180.0, lngs + half)
    first = Boxes(np.maximum(west, -180.0), south, np.minimum(east, 180.0), north)
    beyond_west, beyond_east = west < -180.0, east > 180.0
    second = Boxes(
        np.where(beyond_west, west + 360.0, np.where(beyond_east, -180.0, first.west)),
        south,
        np.where(beyond_west, 180.0, np.where(beyond_east, east - 360.0, first.east)),
        north,
    )
    return first, second


def box_around(lat: float, lng: float, radius_rad: float) -> tuple[float, float, float, float] | None:
    """West, south, east and north of the rectangle that holds a cap; None if it has a pole or the antimeridian."""
    reach = math.degrees(radius_rad)
    if abs(lat) + reach >= 90.0:
        return None
    # As in `boxes_around`. A cap without a pole is narrower than the ratio 1.
    half = math.degrees(math.asin(min(math.sin(radius_rad) / math.cos(math.radians(lat)), 1.0)))
    if abs(lng) + half >= 180.0:
        return None
    return lng - half, lat - reach, lng + half, lat + reach


def offset(lat: float, lng: float, bearings_rad: Floats, lengths_m: Floats) -> tuple[Floats, Floats]:
    """The points reached from one point along great circles; longitudes within -180..180."""
    arcs = lengths_m / EARTH_RADIUS_M
    sin_lat, cos_lat = math.sin(math.radians(lat)), math.cos(math.radians(lat))
    sin_to = np.clip(sin_lat * np.cos(arcs) + cos_lat * np.sin(arcs) * np.cos(bearings_rad), -1.0, 1.0)
    turn = np.arctan2(np.sin(bearings_rad) * np.sin(arcs) * cos_lat, np.cos(arcs) - sin_lat * sin_to)
    return np.degrees(np.arcsin(sin_to)), wrap(lng + np.degrees(turn))
