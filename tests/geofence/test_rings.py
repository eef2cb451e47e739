"""Approach rings: who is within so many metres of a fence, as its own distance says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.index import FenceIndex
from nearcast.ids import FenceId
from nearcast.world import Circle, Corridor, Geometry, Polygon
from tests.geofence.places import circles, fence, points_around, polygons, shifted, spots, square

LAT, LNG = 48.2, 16.37
#: Of the ring's width.
_ERROR = 0.01


def around(geometry: Geometry, width_m: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points on the geometry, and those moved away from them by up to twice the width."""
    lats, lngs = points_around(geometry, rng, 15)
    far = width_m * rng.uniform(0, 2, len(lats))
    turn = rng.uniform(0, 2 * np.pi, len(lats))
    north, east = np.degrees(far * np.cos(turn) / 6_371_008.8), np.degrees(far * np.sin(turn) / 6_371_008.8)
    moved = np.clip(lats + north, -90, 90), lngs + east / np.maximum(np.cos(np.radians(lats)), 1e-3)
    return np.concatenate((lats, moved[0])), (np.concatenate((lngs, moved[1])) + 540) % 360 - 180


def assert_ring(geometry: Geometry, width_m: float, lats: np.ndarray, lngs: np.ndarray) -> tuple[int, int]:
    """Every point that is clearly nearer or farther is told so; how many of each there were."""
    index = FenceIndex.build([fence(Circle((0.0, 0.0), 1.0), "other"), fence(geometry, approach_m=width_m)])
    assert index.near == (1,)
    inside = outside = 0
    for lat, lng, found in zip(lats.tolist(), lngs.tolist(), index.match(lats, lngs), strict=True):
        distance_m = index.distance_m(FenceId("f"), lat, lng)
        assert (1 in found) <= (2 in found), "who is in the fence is in its ring"
        if distance_m <= width_m * (1 - _ERROR):
            assert 2 in found, (lat, lng, distance_m)
            inside += 1
        elif distance_m > width_m * (1 + _ERROR):
            assert 2 not in found, (lat, lng, distance_m)
            outside += 1
    return inside, outside


@given(
    spots().flatmap(lambda spot: circles(spot) | polygons(spot)),
    st.sampled_from([5.0, 80.0, 1_000.0]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_a_ring_anywhere(geometry: Geometry, width_m: float, seed: int) -> None:
    """Circles, polygons with holes, slivers, at poles, antimeridian and pentagons: within 1 % of the width."""
    assert_ring(geometry, width_m, *around(geometry, width_m, np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("geometry", "spot"),
    [
        (square(LAT, LNG, 30.0), (LAT, LNG)),
        (Polygon([square(LAT, LNG, 300.0).coordinates[0], square(LAT, LNG, 290.0).coordinates[0]]), (LAT, LNG)),
        (Circle((LNG, LAT), 40.0), (LAT, LNG)),
        (Corridor([(LNG, LAT), (LNG + 0.002, LAT + 0.001)], 4.0), (LAT, LNG)),
        (square(-16.8, 179.9999, 8.0), (-16.8, 179.9999)),
    ],
    ids=["square", "courtyard", "circle", "corridor", "antimeridian"],
)
def test_a_stores_ring(geometry: Geometry, spot: tuple[float, float]) -> None:
    """In a city: both sides of the ring's edge are seen, also in a courtyard that it doesn't fill."""
    shifts = np.random.default_rng(3).uniform(-700, 700, (3_000, 2)).tolist()
    lats, lngs = np.array([shifted(*spot, north, east) for north, east in shifts]).T
    inside, outside = assert_ring(geometry, 100.0, lats, (lngs + 540) % 360 - 180)
    assert inside > 30
    assert outside > 500


def test_fences_without_approach_have_no_ring() -> None:
    index = FenceIndex.build([fence(square(LAT, LNG, 30.0), "a"), fence(square(LAT, LNG, 20.0), "b", approach_m=50.0)])
    beside = shifted(LAT, LNG, 0.0, 60.0)
    assert index.near == (1,)
    assert index.match(np.array([LAT, beside[0]]), np.array([LNG, beside[1]])) == [(0, 1, 2), (2,)]
