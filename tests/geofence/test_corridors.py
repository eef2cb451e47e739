"""Corridors: the outline against the rule, measured on the sphere by other means."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.geometry import MAX_LINE_LATITUDE, compile_geometry
from geofence.shapes import Shape
from nearcast.errors import InputError
from nearcast.world import Corridor
from tests.geofence.places import metres_between, shifted

#: The share of the buffer by which the outline may be wrong.
ERROR = 0.001


def metres_to_line(line: list[tuple[float, float]], lat: float, lng: float) -> float:
    """The least distance to a point of the line, found by closing in on the nearest of ever finer points."""
    best = math.inf
    for (x, y), (to_x, to_y) in itertools.pairwise(line):
        low, high = 0.0, 1.0
        for _ in range(7):
            shares = [low + (high - low) * step / 32 for step in range(33)]
            found = [metres_between(lat, lng, y + s * (to_y - y), x + s * (to_x - x)) for s in shares]
            nearest = found.index(min(found))
            best = min(best, found[nearest])
            low, high = shares[max(nearest - 1, 0)], shares[min(nearest + 1, 32)]
    return best


def contains(shape: Shape, lat: float, lng: float) -> bool:
    return bool(shape.contain(np.array([lat]), np.array([lng]))[0])


@st.composite
def corridors(draw: st.DrawFn) -> Corridor:
    """Winding lines from a metre to hundreds of kilometres, that cross themselves and go back, at any latitude."""
    buffer_m = draw(st.sampled_from([0.5, 3.0, 40.0, 2_500.0, 100_000.0]))
    lat = draw(st.floats(-76, 76))
    lng = draw(st.sampled_from([0.0, 16.37, 179.9999, -179.99]))
    step = draw(st.sampled_from([1e-5, 1e-3, 0.05, 1.5]))
    moves = draw(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=5))
    line = [(lng, lat)]
    for east, north in [*moves, (3, 1)]:
        x, y = line[-1][0] + east * step / 9, line[-1][1] + north * step / 9
        line.append((max(-180.0, min(180.0, x)), max(-78.0, min(78.0, y))))
    return Corridor(line, buffer_m)


@given(corridors(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_the_rule_within_a_thousandth(corridor: Corridor, seed: int) -> None:
    """Nearer to the line than the buffer is inside, farther is outside; distances are those to the line, less it."""
    shape, line, rng = compile_geometry(corridor), corridor.coordinates, np.random.default_rng(seed)
    for _ in range(12):
        number, share = rng.integers(len(line) - 1), rng.uniform()
        (x, y), (to_x, to_y) = line[number], line[number + 1]
        away, turn = corridor.buffer_m * rng.choice([0.5, 0.995, 1.0, 1.005, 1.5]), rng.uniform(0, 2 * math.pi)
        lat, lng = shifted(y + share * (to_y - y), x + share * (to_x - x), away * math.cos(turn), away * math.sin(turn))
        lng = (lng + 540.0) % 360.0 - 180.0
        beyond_m = metres_to_line(line, lat, lng) - corridor.buffer_m
        if abs(beyond_m) > ERROR * corridor.buffer_m:
            assert contains(shape, lat, lng) == (beyond_m < 0), (beyond_m, lat, lng)
        if corridor.buffer_m <= 2_500:
            assert shape.distance_m(lat, lng) == pytest.approx(max(beyond_m, 0.0), abs=2 * ERROR * corridor.buffer_m)


def test_a_long_line_to_the_north() -> None:
    """On the way north a disc grows wider in degrees, and the corridor with it: right beside its edge, all along."""
    line, buffer_m = [(10.0, 50.0), (10.0, 78.0)], 20_000.0
    shape, rng = compile_geometry(Corridor(line, buffer_m)), np.random.default_rng(4)
    for _ in range(100):
        lat, away_m = rng.uniform(50.0, 78.0), buffer_m * (1 + rng.choice([-1, 1]) * rng.uniform(0.0011, 0.003))
        _, lng = shifted(lat, 10.0, 0.0, away_m)
        beyond_m = metres_to_line(line, lat, lng) - buffer_m
        assert abs(beyond_m) > ERROR * buffer_m
        assert contains(shape, lat, lng) == (beyond_m < 0)


def test_both_sides_of_the_antimeridian() -> None:
    """A line beside the antimeridian has its buffer on the other side, too; a line may not cross it."""
    shape = compile_geometry(Corridor([(179.9999, -16.8), (179.9999, -16.79)], 50.0))
    assert contains(shape, -16.795, -179.9997)
    assert contains(shape, -16.795, 180.0)
    assert contains(shape, -16.795, -180.0)
    assert not contains(shape, -16.795, -179.999)
    assert shape.distance_m(-16.795, -179.999) == pytest.approx(
        metres_between(-16.795, -179.999, -16.795, 179.9999) - 50.0, abs=0.1
    )


def test_there_and_back_is_one_line() -> None:
    """Going back on itself and standing still add nothing."""
    there = compile_geometry(Corridor([(16.37, 48.2), (16.371, 48.201)], 5.0))
    back = compile_geometry(Corridor([(16.37, 48.2), (16.37, 48.2), (16.371, 48.201), (16.37, 48.2)], 5.0))
    assert back.reach_m == pytest.approx(there.reach_m)


def test_a_round_walk_leaves_its_middle_out() -> None:
    """A line around a block is not the block."""
    shape = compile_geometry(
        Corridor([(16.37, 48.2), (16.372, 48.2), (16.372, 48.201), (16.37, 48.201), (16.37, 48.2)], 5.0)
    )
    assert contains(shape, 48.2, 16.371)
    assert not contains(shape, 48.2005, 16.371)


@pytest.mark.parametrize(
    ("corridor", "message"),
    [
        (Corridor([], 5.0), r"at least 2 different positions; this one has 0 \(line\)"),
        (Corridor([(1.0, 2.0)], 5.0), r"at least 2 different positions; this one has 1 \(line\)"),
        (Corridor([(1.0, 2.0)] * 3, 5.0), r"at least 2 different positions; this one has 1 \(line\)"),
        (
            Corridor([(178.0, 0.0), (179.5, 0.0), (-179.5, 0.0)], 5.0),
            r"edge from \(179.5, 0\) to \(-179.5, 0\) spans more.*antimeridian two fences.*\(line, vertex 1\)",
        ),
        (Corridor([(0.0, 0.0), (0.0, 91.0)], 5.0), r"\(0, 91\) is not a longitude.*\(line, vertex 1\)"),
        (Corridor([(0.0, 0.0), (float("nan"), 1.0)], 5.0), r"\(nan, 1\) is not a.*\(line, vertex 1\)"),
        (Corridor([(0.0, 0.0), (0.0, 1.0)], 0.0), r"`buffer_m` must be within.*\(buffer_m\)"),
        (Corridor([(0.0, 0.0), (0.0, 1.0)], float("nan")), r"`buffer_m` must be within.*\(buffer_m\)"),
        (
            Corridor([(0.0, 0.0), (0.0, MAX_LINE_LATITUDE)], 5.0),
            r"within 80 degrees of latitude; this vertex is at \(0, 80\) \(line, vertex 1\)",
        ),
    ],
)
def test_refused(corridor: Corridor, message: str) -> None:
    """Each fault is named with its vertex."""
    with pytest.raises(InputError, match=message) as caught:
        compile_geometry(corridor)
    assert caught.value.reason == "invalid_geometry"
