"""The probability of being inside, against closed formulas and numbers made another way."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.geometry import compile_geometry
from geofence.sampling import probability_inside
from geofence.shapes import Area
from nearcast.world import Circle, Polygon
from tests.geofence.places import expected, metres_between, points_around, polygons, shifted, spots, square

SIGMA = 1 / math.sqrt(-2 * math.log(0.32))


@pytest.mark.parametrize("accuracy_m", [0.3, 0.9144, 2.0, 5.0, 25.0])
def test_middle_of_a_circle(accuracy_m: float) -> None:
    """1 - exp(-R^2 / 2 sigma^2); the accuracy radius itself holds 68 %."""
    shape = compile_geometry(Circle((16.0, 48.0), 0.9144))
    exact = 1 - math.exp(-(0.9144**2) / (2 * (accuracy_m * SIGMA) ** 2))
    assert probability_inside(shape, 48.0, 16.0, accuracy_m) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("beyond_m", [-15.0, -5.0, -1.0, 0.0, 2.0, 8.0, 30.0])
def test_straight_edge(beyond_m: float) -> None:
    """Phi(s / sigma) at distance s inside a long edge."""
    shape = compile_geometry(square(48.0, 16.0, 1_000.0))
    lat, lng = shifted(48.0, 16.0, 0.0, 1_000.0 + beyond_m)
    exact = 0.5 * math.erfc(beyond_m / (10.0 * SIGMA) / math.sqrt(2))
    assert probability_inside(shape, lat, lng, 10.0) == pytest.approx(exact, abs=0.015)


def test_against_random_numbers() -> None:
    """An L-shaped room with a pillar: as many of a million random errors fall inside."""
    metres = [(0, 0), (30, 0), (30, 10), (10, 10), (10, 30), (0, 30), (0, 0)]
    pillar = [(3, 3), (6, 3), (6, 6), (3, 6), (3, 3)]
    rings = [[shifted(48.0, 16.0, north, east)[::-1] for east, north in ring] for ring in (metres, pillar)]
    shape = compile_geometry(Polygon(rings))
    lat, lng = shifted(48.0, 16.0, 8.0, 7.0)
    north, east = np.random.default_rng(4).normal(0, 6.0 * SIGMA, (2, 1_000_000))
    x, y = 7.0 + east, 8.0 + north
    in_l = (x >= 0) & (y >= 0) & (((x <= 30) & (y <= 10)) | ((x <= 10) & (y <= 30)))
    in_pillar = (x > 3) & (x < 6) & (y > 3) & (y < 6)
    assert probability_inside(shape, lat, lng, 6.0) == pytest.approx((in_l & ~in_pillar).mean(), abs=0.015)


@pytest.mark.parametrize("apart_m", [0.0, 3.0, 12.0, 16.0, 20.0, 28.0])
@pytest.mark.parametrize("accuracy_m", [4.0, 15.0, 60.0])
@pytest.mark.parametrize("bearing", [0.0, 1.0, 2.5])
def test_off_the_middle_of_a_circle(apart_m: float, accuracy_m: float, bearing: float) -> None:
    """As many of random errors fall into the circle, whichever way its centre lies."""
    shape = compile_geometry(Circle((16.0, 48.0), 16.0))
    lat, lng = shifted(48.0, 16.0, apart_m * math.cos(bearing), apart_m * math.sin(bearing))
    north, east = np.random.default_rng(4).normal(0, accuracy_m * SIGMA, (2, 200_000))
    expected_share = (np.hypot(north + apart_m, east) <= 16.0).mean()
    assert probability_inside(shape, lat, lng, accuracy_m) == pytest.approx(expected_share, abs=0.015)


def test_sure_without_sampling() -> None:
    """Deep inside a polygon the answer is 1 and needs no points; points say the same up to where they begin."""
    shape = compile_geometry(square(48.0, 16.0, 20.0))
    assert isinstance(shape, Area)
    assert shape.surely_holds(48.0, 16.0, 19.9)
    assert not shape.surely_holds(48.0, 16.0, 20.1)
    # 20 metres are 3.53 sigma, the outermost point, at an accuracy of 8.55 metres.
    assert [probability_inside(shape, 48.0, 16.0, accuracy_m) for accuracy_m in (5.0, 8.5)] == [1.0, 1.0]
    assert 0.98 < probability_inside(shape, 48.0, 16.0, 10.0) < 1.0


@pytest.mark.parametrize("spot", [(48.0, 16.0), (-79.0, -30.0), (0.0, 0.0), (10.0, 179.99), (10.0, -179.99)])
@pytest.mark.parametrize("side", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_surely_holds_up_to_the_edge(spot: tuple[float, float], side: tuple[int, int]) -> None:
    """A cap 5 m off the middle of a square of 40 m is held up to 15 m, to each of the four sides."""
    shape = compile_geometry(square(*spot, 20.0))
    assert isinstance(shape, Area)
    lat, lng = shifted(*spot, 5.0 * side[0], 5.0 * side[1])
    assert shape.surely_holds(lat, lng, 14.99)
    assert not shape.surely_holds(lat, lng, 15.01)


def test_a_small_hole_is_not_overlooked() -> None:
    """Around a pillar thinner than the error nobody is surely inside, though every side is far away."""
    shell, pillar = square(48.0, 16.0, 100.0).coordinates[0], square(48.0, 16.0, 2.0).coordinates[0]
    shape = compile_geometry(Polygon([shell, pillar]))
    lat, lng = shifted(48.0, 16.0, 0.0, 3.0)
    assert probability_inside(shape, lat, lng, 5.0) < 1.0


@given(st.data(), spots(), st.floats(0.1, 5_000.0))
@settings(max_examples=150)
def test_surely_holds_never_lies(data: st.DataObject, spot: tuple[float, float], radius_m: float) -> None:
    """Where a polygon surely holds a cap, every point of the cap is inside."""
    geometry = data.draw(polygons(spot))
    shape = compile_geometry(geometry)
    assert isinstance(shape, Area)
    rng = np.random.default_rng(3)
    if shape.surely_holds(*spot, radius_m):
        lats, lngs = points_around(Circle((spot[1], spot[0]), radius_m), rng)
        for lat, lng in zip(lats.tolist(), lngs.tolist(), strict=True):
            if metres_between(*spot, lat, lng) <= radius_m:
                assert expected(geometry, lat, lng)


def test_perfect_fix() -> None:
    """Accuracy 0 leaves no doubt."""
    shape = compile_geometry(Circle((16.0, 48.0), 10.0))
    assert probability_inside(shape, 48.0, 16.0, 0.0) == 1.0
    assert probability_inside(shape, 48.1, 16.0, 0.0) == 0.0


@pytest.mark.parametrize(("lat", "lng"), [(89.9999, 10.0), (10.0, 179.99999), (-90.0, 0.0)])
def test_anywhere(lat: float, lng: float) -> None:
    """At a pole and at the antimeridian the same circle gives the same probability."""
    assert metres_between(lat, lng, lat, lng) == 0.0
    shape = compile_geometry(Circle((lng, lat), 20.0))
    assert probability_inside(shape, lat, lng, 20.0) == pytest.approx(0.68, abs=0.01)
