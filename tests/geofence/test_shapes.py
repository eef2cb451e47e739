"""Distances are to edges that exist."""

import pytest

from geofence.geometry import compile_geometry
from nearcast.world import Geometry, MultiPolygon, Polygon
from tests.geofence.places import shifted, square

LAT, LNG = 48.2, 16.37
OUTER, INNER = (square(LAT, LNG, half_m).coordinates[0] for half_m in (100.0, 60.0))
BESIDE = square(*shifted(LAT, LNG, 0.0, 400.0), 100.0).coordinates[0]


@pytest.mark.parametrize(
    ("geometry", "at_m", "depth_m"),
    [
        (Polygon([OUTER, INNER]), (-80.0, -80.0), 20.0),
        (MultiPolygon([[OUTER], [BESIDE]]), (-100.0, 200.0), -100.0),
        (Polygon([[*OUTER[:2], *OUTER[1:]]]), (100.0, 130.0), -30.0),
    ],
    ids=["hole", "two parts", "repeated vertex"],
)
def test_no_edge_between_rings(geometry: Geometry, at_m: tuple[float, float], depth_m: float) -> None:
    """From one ring to the next there is no edge, and a vertex that is given twice makes none."""
    shape = compile_geometry(geometry)
    lat, lng = shifted(LAT, LNG, *at_m)
    assert shape.depth_m(lat, lng) == pytest.approx(depth_m, rel=0.001)
