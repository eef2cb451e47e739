"""Rings: the shape that holds every point within some metres of another shape, and the shape itself.

Around a disc that is a larger disc. Around an area it is the area with a corridor along each of its edges, right to
0.1 % of the width (see `corridors`). Near the poles it is what `distance_m` says, asked one point at a time: slow.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import shapely

from geofence.corridors import outline
from geofence.geometry import MAX_LINE_LATITUDE
from geofence.shapes import Area, CapTest, Disc, Shape
from geofence.sphere import EARTH_RADIUS_M, Bools, Boxes, Floats

#: More than `distance_m` is wrong by, as a share of the distance.
_SLACK = 0.01
_PAD_RAD = 1e-6 / EARTH_RADIUS_M


@dataclass(frozen=True, slots=True)
class Ring:
    """All points with `shape.distance_m(point) <= width_m`."""

    shape: Shape
    width_m: float

    @property
    def reach_m(self) -> float:
        return self.shape.reach_m + self.width_m

    def contain(self, lats: Floats, lngs: Floats) -> Bools:
        """Whether it contains each point."""
        return self._distances_m(lats, lngs) <= self.width_m

    def test_caps(self, lats: Floats, lngs: Floats, radius_rad: float) -> CapTest:
        """As of a `Shape`."""
        touching = self.shape.test_caps(lats, lngs, radius_rad + self.width_m * (1 + _SLACK) / EARTH_RADIUS_M).touching
        inside: Bools = np.zeros(len(lats), dtype=np.bool_)
        room_m = self.width_m * (1 - _SLACK) - (radius_rad + _PAD_RAD) * EARTH_RADIUS_M
        if room_m > 0:
            inside[touching] = self._distances_m(lats[touching], lngs[touching]) <= room_m
        return CapTest(inside, touching)

    def boxes(self) -> Boxes:
        """Rectangles that hold the ring."""
        reach = math.degrees(self.width_m * (1 + _SLACK) / EARTH_RADIUS_M + _PAD_RAD)
        found: list[tuple[float, float, float, float]] = []
        for west, south, east, north in zip(*(side.tolist() for side in self.shape.boxes()), strict=True):
            low, high = max(south - reach, -90.0), min(north + reach, 90.0)
            # As in `sphere.boxes_around`, at the latitude where it is widest.
            ratio = math.sin(math.radians(reach)) / max(math.cos(math.radians(max(-south, north))), 1e-12)
            half = math.degrees(math.asin(min(ratio, 1.0)))
            if low == -90.0 or high == 90.0 or east - west + 2 * half >= 360.0:
                found.append((-180.0, low, 180.0, high))
                continue
            found.append((max(west - half, -180.0), low, min(east + half, 180.0), high))
            if west - half < -180.0:
                found.append((west - half + 360.0, low, 180.0, high))
            if east + half > 180.0:
                found.append((-180.0, low, east + half - 360.0, high))
        return Boxes(*np.array(found, dtype=np.float64).T)

    def _distances_m(self, lats: Floats, lngs: Floats) -> Floats:
        points = zip(lats.tolist(), lngs.tolist(), strict=True)
        return np.array([self.shape.distance_m(lat, lng) for lat, lng in points], dtype=np.float64)


def ring_around(shape: Shape, width_m: float) -> Shape | Ring:
    """The shape that holds every point within `width_m` of `shape`."""
    if isinstance(shape, Disc):
        return Disc(shape.lat, shape.lng, shape.radius_m + width_m)
    _, south, _, north = shape.geometry.bounds
    if max(-south, north) + math.degrees(width_m / EARTH_RADIUS_M) > MAX_LINE_LATITUDE:
        return Ring(shape, width_m)
    outlines = [outline(shapely.get_coordinates(line).tolist(), width_m) for line in _lines(shape.geometry)]
    return Area(cast("shapely.Polygon | shapely.MultiPolygon", shapely.union_all([shape.geometry, *outlines])))


def _lines(geometry: shapely.Polygon | shapely.MultiPolygon) -> list[shapely.LinearRing]:
    return list(shapely.get_rings(shapely.get_parts(geometry)))
