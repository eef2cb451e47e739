"""The exact test of many pairs of shape and position together: columns of shapes by their number."""

import math
from collections.abc import Sequence

import numpy as np
import shapely

from geofence.cells import Numbers
from geofence.rings import Ring
from geofence.shapes import Area, Disc, Geometries, Shape, areas_contain
from geofence.sphere import EARTH_RADIUS_M, Bools, Floats, box_around, wrap

_HALF_RADIANS = math.radians(1.0) / 2


class ExactTest:
    """Immutable."""

    __slots__ = ("_areas", "_discs", "_is_disc", "_poles", "_rings", "_two_names", "_wraps")

    def __init__(self, shapes: Sequence[Shape | Ring]) -> None:
        self._rings = {number: shape for number, shape in enumerate(shapes) if isinstance(shape, Ring)}
        self._is_disc: Bools = np.array([isinstance(shape, Disc) for shape in shapes], dtype=np.bool_)
        # A row for each shape: what a test needs of it lies together in memory.
        self._discs: Floats = np.array([_disc(shape) for shape in shapes], dtype=np.float64).reshape(-1, 4)
        self._areas: Geometries = np.array(
            [shape.geometry if isinstance(shape, Area) else None for shape in shapes], dtype=np.object_
        )
        poles = [
            (shape.holds_north_pole, shape.holds_south_pole) if isinstance(shape, Area) else (False, False)
            for shape in shapes
        ]
        self._poles: Bools = np.array(poles, dtype=np.bool_).reshape(-1, 2)
        #: Whether an area has points with more than one name: at a pole or on the antimeridian.
        self._two_names = any(_has_two_names(shape) for shape in shapes)
        #: Whether a disc reaches over the antimeridian.
        self._wraps = any(map(_crosses, shapes))

    def extended(self, shapes: Sequence[Shape | Ring]) -> "ExactTest":
        """The test with more shapes, numbered on."""
        more, both = ExactTest(shapes), ExactTest(())
        first = len(self._is_disc)
        both._rings = self._rings | {first + number: ring for number, ring in more._rings.items()}
        both._is_disc = np.concatenate((self._is_disc, more._is_disc))
        both._discs = np.concatenate((self._discs, more._discs))
        both._areas = np.concatenate((self._areas, more._areas))
        both._poles = np.concatenate((self._poles, more._poles))
        both._two_names = self._two_names or more._two_names
        both._wraps = self._wraps or more._wraps
        return both

    def contain(self, numbers: Numbers, lats: Floats, lngs: Floats) -> Bools:
        """Whether shape `numbers[i]` contains position i."""
        result: Bools = np.zeros(len(numbers), dtype=np.bool_)
        of_discs = self._is_disc[numbers]
        (on,) = of_discs.nonzero()
        if on.size:
            result[on] = self._discs_contain(numbers[on], lats[on], lngs[on])
        (on,) = (~of_discs).nonzero()
        if on.size:
            result[on] = self._areas_contain(numbers[on], lats[on], lngs[on])
        return result

    def _discs_contain(self, numbers: Numbers, lats: Floats, lngs: Floats) -> Bools:
        """`shapes.discs_contain`, to the bit, with what belongs to the discs worked out before."""
        lat_rad, lng, cos_lat, limit = self._discs[numbers].T
        apart = lngs - lng
        if self._wraps:
            apart = wrap(apart)
        lats_rad = np.radians(lats)
        across = np.sin(apart * _HALF_RADIANS) ** 2
        along = np.sin((lats_rad - lat_rad) * 0.5) ** 2
        contained: Bools = along + cos_lat * np.cos(lats_rad) * across <= limit
        return contained

    def _areas_contain(self, numbers: Numbers, lats: Floats, lngs: Floats) -> Bools:
        areas = self._areas[numbers]
        if self._two_names:
            north, south = self._poles[numbers].T
            result = areas_contain(areas, north, south, lats, lngs)
        else:
            result = shapely.intersects_xy(areas, lngs, lats)
        if self._rings:
            for place, number in enumerate(numbers.tolist()):
                if number in self._rings:
                    result[place] = self._rings[number].contain(lats[place : place + 1], lngs[place : place + 1])[0]
        return result


def _disc(shape: Shape | Ring) -> tuple[float, float, float, float]:
    """Latitude in radians, longitude in degrees, cosine of the latitude, limit."""
    if not isinstance(shape, Disc):
        return 0.0, 0.0, 0.0, 0.0
    lat_rad = np.radians(shape.lat)
    return float(lat_rad), shape.lng, float(np.cos(lat_rad)), shape.limit


def _crosses(shape: Shape | Ring) -> bool:
    """Whether a disc reaches over the antimeridian or a pole. All others are right without wrapping longitudes: what
    lies more than half a turn away is far outside of them, and a sine's square has no sign."""
    return isinstance(shape, Disc) and box_around(shape.lat, shape.lng, (shape.radius_m + 1) / EARTH_RADIUS_M) is None


def _has_two_names(shape: Shape | Ring) -> bool:
    if not isinstance(shape, Area):
        return False
    west, south, east, north = shape.geometry.bounds
    return bool(west == -180.0 or east == 180.0 or south == -90.0 or north == 90.0)
