"""From the retailer's geometry to a compiled shape; what is not valid is refused, and never repaired.

Every refusal is an `InputError` with reason "invalid_geometry" whose message names the polygon, ring and vertex at
fault. Polygons, rings and vertices are counted from 0; ring 0 is the shell, the others are holes.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import shapely

from geofence.corridors import outline
from geofence.shapes import Area, Disc, Shape
from geofence.sphere import EARTH_RADIUS_M
from nearcast.errors import InputError
from nearcast.world import Circle, Corridor, Geometry, Polygon

Position = tuple[float, float]
Ring = Sequence[Position]
#: Beyond it, what `corridors` builds errs by more than it says.
MAX_LINE_LATITUDE = 80.0

_SPLIT = (
    "spans more than 180 degrees of longitude: split a polygon that crosses the antimeridian into a MultiPolygon "
    "(RFC 7946, 3.1.9), or add vertices in between if the edge is meant to be that long"
)


def compile_geometry(geometry: Geometry) -> Shape:
    """The shape that `geometry` stands for. Raises `InputError` ("invalid_geometry")."""
    if isinstance(geometry, Circle):
        _check_position(geometry.center, "center")
        if not 0 < geometry.radius_m <= 100_000:
            raise _invalid(f"`radius_m` must be within 0..100000 metres, not {geometry.radius_m}", "radius_m")
        return Disc(geometry.center[1], geometry.center[0], geometry.radius_m)
    if isinstance(geometry, Corridor):
        _check_line(geometry)
        return Area(outline(geometry.coordinates, geometry.buffer_m))
    if isinstance(geometry, Polygon):
        return Area(_polygon(geometry.coordinates, ""))
    if not geometry.coordinates:
        raise _invalid("a multipolygon needs at least one polygon", "coordinates")
    polygons = [_polygon(rings, f"polygon {number}, ") for number, rings in enumerate(geometry.coordinates)]
    _check_apart(polygons, "polygon")
    multipolygon = shapely.MultiPolygon(polygons)
    _check_rest(multipolygon, "multipolygon")
    return Area(multipolygon)


def _check_line(corridor: Corridor) -> None:
    line, buffer_m = corridor.coordinates, corridor.buffer_m
    if not 0 < buffer_m <= 100_000:
        raise _invalid(f"`buffer_m` must be within 0..100000 metres, not {buffer_m}", "buffer_m")
    for number, position in enumerate(line):
        _check_position(position, f"line, vertex {number}")
        if abs(position[1]) + math.degrees(buffer_m / EARTH_RADIUS_M) > MAX_LINE_LATITUDE:
            raise _invalid(
                f"a line and its buffer must stay within {MAX_LINE_LATITUDE:g} degrees of latitude; "
                f"this vertex is at {_text(position)}",
                f"line, vertex {number}",
            )
    if len(set(line)) < 2:
        raise _invalid(f"a line needs at least 2 different positions; this one has {len(set(line))}", "line")
    for number, (start, end) in enumerate(itertools.pairwise(line)):
        if abs(end[0] - start[0]) > 180:
            raise _invalid(
                f"the edge from {_text(start)} to {_text(end)} spans more than 180 degrees of longitude: make a line "
                "that crosses the antimeridian two fences, or add vertices in between if the edge is meant to be that "
                "long",
                f"line, vertex {number}",
            )


def _polygon(rings: Sequence[Ring], place: str) -> shapely.Polygon:
    if not rings:
        raise _invalid("a polygon needs at least its shell", f"{place}ring 0")
    for number, ring in enumerate(rings):
        _check_vertices(ring, f"{place}ring {number}")
    polygon = shapely.Polygon(rings[0], rings[1:])
    if polygon.area <= 0 or not polygon.is_valid:
        _check_rings(rings, place)
        if polygon.area <= 0:
            raise _invalid("the holes leave no area", f"{place}ring 0")
        _check_rest(polygon, f"{place}ring 0")
    return polygon


def _check_vertices(ring: Ring, place: str) -> None:
    for number, position in enumerate(ring):
        _check_position(position, f"{place}, vertex {number}")
    if len(ring) < 4:
        raise _invalid(
            f"a ring needs at least 4 vertices, the last equal to the first; this one has {len(ring)}", place
        )
    if tuple(ring[0]) != tuple(ring[-1]):
        raise _invalid(
            f"the ring is not closed: it starts at {_text(ring[0])} and ends at {_text(ring[-1])}",
            f"{place}, vertex {len(ring) - 1}",
        )
    for number, (start, end) in enumerate(itertools.pairwise(ring)):
        if abs(end[0] - start[0]) > 180:
            raise _invalid(f"the edge from {_text(start)} to {_text(end)} {_SPLIT}", f"{place}, vertex {number}")


def _check_rings(rings: Sequence[Ring], place: str) -> None:
    """Names the first fault of rings that make no valid polygon."""
    for number, ring in enumerate(rings):
        _check_ring(ring, f"{place}ring {number}")
    shell, holes = shapely.Polygon(rings[0]), [shapely.Polygon(ring) for ring in rings[1:]]
    for number, hole in enumerate(holes, start=1):
        _check_hole(shell, hole, rings[number], f"{place}ring {number}")
    _check_apart(holes, f"{place}ring", first=1)


def _check_ring(ring: Ring, place: str) -> None:
    if shapely.MultiPoint(ring).convex_hull.geom_type != "Polygon":
        raise _invalid("the ring has no area: its vertices lie on one line", place)
    if not shapely.LinearRing(ring).is_simple:
        raise _self_intersection(ring, place)


def _self_intersection(ring: Ring, place: str) -> InputError:
    """Names the first two edges that meet where they should not."""
    edges = [pair for pair in itertools.pairwise(enumerate(ring)) if pair[0][1] != pair[1][1]]
    lines = [shapely.LineString([start, end]) for (_, start), (_, end) in edges]
    tree = shapely.STRtree(lines)
    for first, line in enumerate(lines):
        for second in sorted(int(other) for other in tree.query(line, predicate="intersects")):
            neighbours = second - first == 1 or (first == 0 and second == len(lines) - 1)
            shared = line.intersection(lines[second])
            if second <= first or (neighbours and shared.length == 0):
                continue
            # Edges of a few units in the last place may meet, and yet have no point in common once it is rounded.
            at = shapely.get_coordinates(line if shared.is_empty else shared)[0]
            return _invalid(
                f"the ring meets itself: the edges that start at vertices {edges[first][0][0]} and "
                f"{edges[second][0][0]} meet at {_text((float(at[0]), float(at[1])))}",
                f"{place}, vertex {edges[first][0][0]}",
            )
    return _invalid("the ring meets itself", place)


def _check_hole(shell: shapely.Polygon, hole: shapely.Polygon, ring: Ring, place: str) -> None:
    if shell.covers(hole):
        return
    points = np.array(ring, dtype=np.float64)
    outside = np.flatnonzero(~shapely.intersects_xy(shell, points[:, 0], points[:, 1]))
    if outside.size:
        vertex = int(outside[0])
        raise _invalid(f"the hole's vertex at {_text(ring[vertex])} is outside the shell", f"{place}, vertex {vertex}")
    raise _invalid("an edge of the hole leaves the shell", place)


def _check_apart(parts: Sequence[shapely.Polygon], name: str, first: int = 0) -> None:
    """Parts (holes of one polygon, polygons of one multipolygon) may touch, but not overlap."""
    if len(parts) < 2:
        return
    one, other = shapely.STRtree(parts).query(parts, predicate="intersects")
    for a, b in sorted(zip(one.tolist(), other.tolist(), strict=True)):
        if a < b and shapely.relate_pattern(parts[a], parts[b], "T********"):
            raise _invalid(f"{name} {a + first} and {name} {b + first} overlap", f"{name} {b + first}")


def _check_rest(geometry: shapely.Polygon | shapely.MultiPolygon, place: str) -> None:
    """What the checks above don't name one by one: holes that cut the inside in two, polygons that share an edge."""
    if not geometry.is_valid:
        reason = shapely.is_valid_reason(geometry)
        raise _invalid(f"{reason[:1].lower()}{reason[1:]} (longitude latitude)", place)


def _check_position(position: Position, place: str) -> None:
    lng, lat = position
    # NaN is in no range.
    if not (-180 <= lng <= 180 and -90 <= lat <= 90):
        raise _invalid(
            f"{_text(position)} is not a longitude within -180..180 and a latitude within -90..90 degrees", place
        )


def _text(position: Position) -> str:
    return f"({position[0]:.9g}, {position[1]:.9g})"


def _invalid(detail: str, place: str) -> InputError:
    return InputError("invalid_geometry", detail, place)
