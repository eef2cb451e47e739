"""The outline of a corridor: a line with room around it, as a polygon of longitude and latitude.

The rule is that of areas: a segment of the line is straight in longitude and latitude, and a point belongs to the
corridor if its great-circle distance to the line is at most `buffer_m`. The outline is that to within 0.1 % of
`buffer_m`: round ends and bends are polygons of 64 corners, half of their error outside and half inside.

A disc that moves along a piece of a segment sweeps the hull of where it starts and where it ends, as long as its shape
in degrees changes evenly. So segments are cut where the latitude changes by more than `_PIECE_DEG`, and the outline is
the union of the hulls.
"""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import shapely
import shapely.affinity

from geofence.sphere import offset

_CORNERS = 64
_PIECE_DEG = 0.2
_BEARINGS = np.linspace(0.0, 2 * math.pi, _CORNERS, endpoint=False)
#: Corners this much farther out than the circle: then the middles of the sides are as much too near.
_OUTWARDS = 2 / (1 + math.cos(math.pi / _CORNERS))


def outline(line: Sequence[tuple[float, float]], buffer_m: float) -> shapely.Polygon | shapely.MultiPolygon:
    """The corridor around `line` (longitude, latitude): two or more different positions, away from the poles.

    Where it reaches beyond the antimeridian, it is cut there (RFC 7946, 3.1.9).
    """
    discs = [_disc(lng, lat, buffer_m) for lng, lat in _cut(line)]
    hulls = [one.union(other).convex_hull for one, other in itertools.pairwise(discs)]
    swept = cast("shapely.Polygon", shapely.union_all(hulls))
    west, _, east, _ = swept.bounds
    if west >= -180.0 and east <= 180.0:
        return swept
    turned = [shapely.affinity.translate(swept, xoff=turn) for turn in (-360.0, 0.0, 360.0)]
    parts = shapely.get_parts(shapely.intersection(turned, shapely.box(-180.0, -90.0, 180.0, 90.0)))
    return shapely.MultiPolygon([part for part in parts if part.area > 0])


def _cut(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stops = [line[0]]
    for (lng, lat), (to_lng, to_lat) in itertools.pairwise(line):
        pieces = max(1, math.ceil(abs(to_lat - lat) / _PIECE_DEG))
        shares = [number / pieces for number in range(1, pieces)]
        stops += [(lng + share * (to_lng - lng), lat + share * (to_lat - lat)) for share in shares]
        stops.append((to_lng, to_lat))
    return stops


def _disc(lng: float, lat: float, radius_m: float) -> shapely.Polygon:
    lats, lngs = offset(lat, lng, _BEARINGS, np.full(_CORNERS, radius_m * _OUTWARDS))
    # Undo the wrapping at the antimeridian.
    return shapely.Polygon(np.column_stack((lng + (lngs - lng + 180.0) % 360.0 - 180.0, lats)))
