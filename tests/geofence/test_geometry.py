"""Invalid geometry is refused with the place and the reason, and never repaired."""

import pytest

from geofence.geometry import compile_geometry
from nearcast.errors import InputError
from nearcast.world import Circle, Geometry, MultiPolygon, Polygon

BOX = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0), (0.0, 0.0)]


def box(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Polygon([]), r"needs at least its shell \(ring 0\)"),
        (Polygon([[]]), r"at least 4 vertices.*has 0 \(ring 0\)"),
        (Polygon([[(0.0, 0.0), (1.0, 0.0), (0.0, 0.0)]]), r"at least 4 vertices.*has 3 \(ring 0\)"),
        (Polygon([BOX[:-1]]), r"not closed: it starts at \(0, 0\) and ends at \(0, 4\) \(ring 0, vertex 3\)"),
        (Polygon([BOX, box(1, 1, 2, 2)[:-1]]), r"not closed.*\(ring 1, vertex 3\)"),
        (Polygon([[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (0.0, 0.0)]]), r"no area.*\(ring 0\)"),
        (Polygon([[(1.0, 1.0)] * 5]), r"no area.*\(ring 0\)"),
        (
            Polygon([[(0.0, 0.0), (4.0, 4.0), (4.0, 0.0), (0.0, 4.0), (0.0, 0.0)]]),
            r"edges that start at vertices 0 and 2 meet at \(2, 2\) \(ring 0, vertex 0\)",
        ),
        (
            Polygon([[(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (2.0, 0.0), (0.0, 4.0), (0.0, 0.0)]]),
            r"edges that start at vertices 0 and 2 meet at \(2, 0\)",
        ),
        (
            Polygon([[(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (4.0, 1.0), (0.0, 4.0), (0.0, 0.0)]]),
            r"edges that start at vertices 1 and 2 meet",
        ),
        (
            Polygon(
                [
                    [
                        (16.370000000000005, 48.2),
                        (16.369999999999997, 48.199999999999996),
                        (16.36999999999999, 48.199999999999996),
                        (16.370000000000008, 48.2),
                        (16.370000000000008, 48.199999999999996),
                        (16.370000000000005, 48.2),
                    ]
                ]
            ),
            r"edges that start at vertices 0 and 2 meet at \(16.37, 48.2\) \(ring 0, vertex 0\)",
        ),
        (Polygon([BOX, box(5, 5, 6, 6)]), r"hole's vertex at \(5, 5\) is outside the shell \(ring 1, vertex 0\)"),
        (
            Polygon(
                [
                    [(0.0, 0.0), (4.0, 0.0), (2.0, 1.0), (4.0, 4.0), (0.0, 4.0), (0.0, 0.0)],
                    [(3.0, 0.2), (3.2, 3.5), (1.0, 3.0), (3.0, 0.2)],
                ]
            ),
            r"an edge of the hole leaves the shell \(ring 1\)",
        ),
        (Polygon([BOX, box(1, 1, 3, 3), box(2, 2, 3.5, 3.5)]), r"ring 1 and ring 2 overlap \(ring 2\)"),
        (Polygon([BOX, box(1, 1, 3, 3), box(1.5, 1.5, 2, 2)]), r"ring 1 and ring 2 overlap \(ring 2\)"),
        (Polygon([BOX, BOX]), r"no area"),
        (Polygon([BOX, [(0.0, 1.0), (4.0, 2.0), (2.0, 3.0), (0.0, 1.0)]]), r"interior is disconnected.*\(ring 0\)"),
        (MultiPolygon([]), r"at least one polygon"),
        (MultiPolygon([[BOX], [box(3, 3, 6, 6)]]), r"polygon 0 and polygon 1 overlap \(polygon 1\)"),
        (MultiPolygon([[BOX], [box(4, 0, 6, 4)]]), r"self-intersection.*\(multipolygon\)"),
        (MultiPolygon([[BOX], [BOX[:-1]]]), r"not closed.*\(polygon 1, ring 0, vertex 3\)"),
        (
            Polygon([[(179.0, 0.0), (-179.0, 0.0), (-179.0, 1.0), (179.0, 1.0), (179.0, 0.0)]]),
            r"split a polygon that crosses the antimeridian into a MultiPolygon.*\(ring 0, vertex 0\)",
        ),
        (Polygon([[(0.0, 0.0), (200.0, 0.0), (1.0, 1.0), (0.0, 0.0)]]), r"\(200, 0\) is not a.*\(ring 0, vertex 1\)"),
        (Polygon([[(0.0, 0.0), (1.0, float("nan")), (1.0, 1.0), (0.0, 0.0)]]), r"\(1, nan\).*\(ring 0, vertex 1\)"),
        (Polygon([[(0.0, 0.0), (float("nan"), 1.0), (1.0, 1.0), (0.0, 0.0)]]), r"\(nan, 1\).*\(ring 0, vertex 1\)"),
        (Circle((0.0, 91.0), 5.0), r"\(0, 91\).*\(center\)"),
        (Circle((0.0, 0.0), 0.0), r"`radius_m` must be within"),
        (Circle((0.0, 0.0), float("nan")), r"`radius_m` must be within"),
    ],
)
def test_refused(geometry: Geometry, message: str) -> None:
    """Each fault is named."""
    with pytest.raises(InputError, match=message) as caught:
        compile_geometry(geometry)
    assert caught.value.reason == "invalid_geometry"


@pytest.mark.parametrize(
    "geometry",
    [
        Polygon([BOX[::-1], box(1, 1, 2, 2)]),
        Polygon([BOX, box(1, 1, 2, 2), [(2.0, 2.0), (3.0, 2.0), (3.0, 3.0), (2.0, 2.0)]]),
        Polygon([BOX, [(0.0, 1.0), (2.0, 1.0), (2.0, 2.0), (0.0, 1.0)]]),
        Polygon([[*BOX[:2], *BOX[1:]]]),
        MultiPolygon([[BOX], [box(4, 4, 6, 6)]]),
        MultiPolygon([[box(170, 0, 180, 5)], [box(-180, 0, -170, 5)]]),
        MultiPolygon([[BOX, box(1, 1, 3, 3)], [box(1.5, 1.5, 2.5, 2.5)]]),
    ],
)
def test_accepted(geometry: Geometry) -> None:
    """Any winding; touching at points; a repeated vertex; an island in a hole; both sides of the antimeridian."""
    assert compile_geometry(geometry).reach_m > 0
