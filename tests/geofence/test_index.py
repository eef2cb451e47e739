"""The index gives exactly the exact test's answer, wherever on Earth, however the positions are batched."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.exact import ExactTest
from geofence.geometry import compile_geometry
from geofence.grid import Grid
from geofence.index import FenceIndex
from geofence.shapes import Disc
from geofence.sphere import Boxes
from nearcast.errors import InputError
from nearcast.ids import FenceId
from nearcast.world import Circle, Geometry, MultiPolygon, Polygon
from tests.geofence.places import (
    circles,
    expected,
    fence,
    metres_between,
    points_around,
    polygons,
    shifted,
    spots,
    square,
)


@st.composite
def worlds(draw: st.DrawFn) -> list[Geometry]:
    spot = draw(spots())
    return draw(st.lists(circles(spot) | polygons(spot), min_size=1, max_size=4))


def assert_exact(geometries: list[Geometry], lats: np.ndarray, lngs: np.ndarray) -> int:
    index = FenceIndex.build(fence(geometry, f"f{number}") for number, geometry in enumerate(geometries))
    compared = 0
    for lat, lng, found in zip(lats.tolist(), lngs.tolist(), index.match(lats, lngs), strict=True):
        assert list(found) == sorted(set(found))
        for ordinal, geometry in enumerate(geometries):
            truth = expected(geometry, lat, lng)
            if truth is not None:
                assert (ordinal in found) == truth, (geometry, lat, lng)
                compared += 1
    return compared


@given(worlds(), st.integers(0, 2**32 - 1))
@settings(max_examples=80)
def test_agreement(geometries: list[Geometry], seed: int) -> None:
    """Circles and polygons with holes, slivers, poles, antimeridian, pentagons: 100 % agreement with the oracles."""
    rng = np.random.default_rng(seed)
    around = [points_around(geometry, rng) for geometry in geometries]
    lats = np.concatenate([lat for lat, _ in around])
    lngs = np.concatenate([lng for _, lng in around])
    assert assert_exact(geometries, lats, lngs) > 0


def test_agreement_in_a_city_of_many_fences() -> None:
    """Three hundred overlapping fences in one city, ten thousand random fixes."""
    rng = np.random.default_rng(11)
    geometries: list[Geometry] = []
    for lat, lng, size in rng.uniform((48.1, 16.2, 1.0), (48.3, 16.5, 300.0), (300, 3)).tolist():
        geometries.append(Circle((lng, lat), size) if size < 200 else square(lat, lng, size))
    index = FenceIndex.build(fence(geometry, f"f{number}") for number, geometry in enumerate(geometries))
    lats, lngs = rng.uniform(48.1, 48.3, 10_000), rng.uniform(16.2, 16.5, 10_000)
    found = index.match(lats, lngs)
    for ordinal, geometry in enumerate(geometries):
        hits = {point for point, ordinals in enumerate(found) if ordinal in ordinals}
        if isinstance(geometry, Circle):
            truth = {
                point
                for point in np.flatnonzero(
                    (np.abs(lats - geometry.center[1]) < 0.002) & (np.abs(lngs - geometry.center[0]) < 0.003)
                ).tolist()
                if expected(geometry, float(lats[point]), float(lngs[point]))
            }
        else:
            (west, south), _, (east, north) = geometry.coordinates[0][:3]
            truth = set(np.flatnonzero((lats >= south) & (lats <= north) & (lngs >= west) & (lngs <= east)).tolist())
        assert hits == truth


def test_a_polygon_around_the_pole() -> None:
    """A cap of longitudes -180..180 up to latitude 90 holds the pole under every longitude."""
    ring = [(-180.0, 89.5), (-90.0, 89.5), (0.0, 89.5), (90.0, 89.5), (180.0, 89.5), (180.0, 90.0), (0.0, 90.0)]
    polar = Polygon([[*ring, (-180.0, 90.0), (-180.0, 89.5)]])
    rng = np.random.default_rng(3)
    lats = np.concatenate((rng.uniform(89.3, 90.0, 300), [90.0, 90.0, 89.5, 89.5]))
    lngs = np.concatenate((rng.uniform(-180, 180, 300), [180.0, 33.0, -180.0, 180.0]))
    assert_exact([polar, Circle((77.0, 90.0), 40_000.0), Circle((-10.0, 89.9), 11_000.0)], lats, lngs)


def test_a_pole_has_every_longitude() -> None:
    """A fence that ends in a corner or an edge at a pole holds the pole, whatever longitude a device gives it."""
    north = Polygon([[(0.0, 89.0), (90.0, 89.0), (45.0, 90.0), (0.0, 89.0)]])
    south = Polygon([[(0.0, -89.0), (0.0, -90.0), (90.0, -90.0), (90.0, -89.0), (0.0, -89.0)]])
    index = FenceIndex.build([fence(north, "n"), fence(south, "s")])
    lats, lngs = np.array([90.0, -90.0, 89.99, -89.99, 90.0]), np.array([-120.0, -120.0, -120.0, -120.0, 180.0])
    assert index.match(lats, lngs) == [(0,), (1,), (), (), (0,)]


def test_the_antimeridian_has_two_names() -> None:
    """A fence that ends at longitude 180 or -180 holds the points of its edge under the other name too."""
    ring = [(179.0, 1.0), (180.0, 1.0), (180.0, 2.0), (179.0, 2.0), (179.0, 1.0)]
    east, west = Polygon([ring]), Polygon([[(-x, y) for x, y in ring]])
    index = FenceIndex.build([fence(east, "e"), fence(west, "w")])
    lats, lngs = np.full(4, 1.5), np.array([-180.0, 180.0, -179.9999, 179.9999])
    assert index.match(lats, lngs) == [(0, 1), (0, 1), (1,), (0,)]
    assert FenceIndex.build([fence(west)]).match(lats, lngs) == [(0,), (0,), (0,), ()]


def test_a_small_part_of_a_big_fence() -> None:
    """A whole country, a county with a hole and a shelf in it, at once: mixed resolutions don't hide each other."""
    country = Polygon([[(9.0, 46.0), (17.0, 46.5), (17.5, 49.0), (9.5, 48.0), (9.0, 46.0)]])
    county = Polygon([square(47.5, 14.0, 20_000).coordinates[0], square(47.5, 14.0, 3_000).coordinates[0]])
    geometries: list[Geometry] = [country, county, Circle((14.0, 47.5), 0.9144), square(47.5, 14.0, 2.0)]
    rng = np.random.default_rng(5)
    scale = 10.0 ** rng.uniform(-6, 0.7, 2000)
    lats, lngs = 47.5 + scale * rng.uniform(-1, 1, 2000), 14.0 + scale * rng.uniform(-1, 1, 2000)
    assert_exact(geometries, lats, lngs)


def test_nothing_to_do() -> None:
    """No fences match nothing; no positions give no answers."""
    nowhere = np.empty(0)
    assert FenceIndex.build([]).match(np.array([0.0, 90.0]), np.array([0.0, 180.0])) == [(), ()]
    assert FenceIndex.build([]).match(nowhere, nowhere) == []
    assert FenceIndex.build([fence(Circle((0.0, 0.0), 5.0))]).match(nowhere, nowhere) == []


@given(spots(), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_batch_invariance(spot: tuple[float, float], seed: int) -> None:
    """The answer for a position does not depend on the batch, not even for points that lie on an edge by rounding."""
    rng = np.random.default_rng(seed)
    lat, lng = spot
    geometries = [Circle((lng, lat), radius) for radius in (3.0, 30.0, 31.0, 500.0)]
    index = FenceIndex.build(fence(geometry, f"f{number}") for number, geometry in enumerate(geometries))
    lats, lngs = points_around(geometries[1], rng, 60)
    whole = index.match(lats, lngs)
    singly = [index.match(lats[i : i + 1], lngs[i : i + 1])[0] for i in range(len(lats))]
    strided = index.match(np.column_stack((lats, lngs))[:, 0], np.column_stack((lats, lngs))[:, 1])
    assert whole == singly == strided


@given(spots().flatmap(lambda spot: circles(spot) | polygons(spot)), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_the_exact_test_is_the_shapes_own(geometry: Geometry, seed: int) -> None:
    """Many pairs together get, to the last bit, the answers that each shape gives by itself."""
    lats, lngs = points_around(geometry, np.random.default_rng(seed), 20)
    shape = compile_geometry(geometry)
    pairs = ExactTest([Disc(0.0, 0.0, 9.0), shape]).extended([Disc(1.0, 1.0, 9.0), shape])
    for number in (1, 3):
        assert (pairs.contain(np.full(len(lats), number), lats, lngs) == shape.contain(lats, lngs)).all()


@given(st.lists(spots().flatmap(lambda spot: circles(spot) | polygons(spot)), max_size=3), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_the_coarse_grid(geometries: list[Geometry], seed: int) -> None:
    """It lets through all that lies in a box, the same singly as in a batch, and hardly anything far away."""
    rng = np.random.default_rng(seed)
    boxes = [compile_geometry(geometry).boxes() for geometry in geometries]
    points = [points_around(geometry, rng, 20) for geometry in geometries]
    lats = np.concatenate([*(lat for lat, _ in points), np.degrees(np.arcsin(rng.uniform(-1, 1, 1_000)))])
    lngs = np.concatenate([*(lng for _, lng in points), rng.uniform(-180, 180, 1_000)])
    within = np.zeros(len(lats), dtype=np.bool_)
    for west, south, east, north in np.concatenate([np.array(box).T for box in boxes]) if boxes else ():
        within |= (lats >= south) & (lats <= north) & (lngs >= west) & (lngs <= east)
    for grid in (Grid(boxes), Grid(boxes[:1]).extended(boxes[1:])):
        near = grid.near(lats, lngs)
        assert set(np.flatnonzero(within)) <= set(near)
        assert grid.near_few(lats, lngs).tolist() == near.tolist()
        # A disc of 100 km marks degrees, at a pole all longitudes.
        assert grid.crowded or len(near) - within.sum() < 250


def test_a_full_grid_still_lets_nothing_slip() -> None:
    """Two squares in one slot of the table let everything through there, rather than only one of them."""
    rng = np.random.default_rng(1)
    lats, lngs = rng.uniform(-80, 80, 3_000), rng.uniform(-179, 179, 3_000)
    boxes = Boxes(lngs, lats, lngs, lats)
    small = Grid([Boxes(*(side[:1] for side in boxes))]).extended([boxes])
    assert len(small.near(lats, lngs)) == len(lats)
    assert small.crowded
    assert not Grid([boxes]).crowded
    assert len(Grid([boxes]).near(-lats, lngs)) < 300


def test_a_world_that_grew_is_as_good_as_one_built_at_once() -> None:
    """From one fence to hundreds by a change: positions far from all of them are still rejected before any H3 call."""
    rng = np.random.default_rng(2)
    spots = rng.uniform((48.0, 16.0), (49.0, 17.0), (500, 2)).tolist()
    items = [fence(Circle((lng, lat), 50.0), f"f{number}") for number, (lat, lng) in enumerate(spots)]
    grown = FenceIndex.build(items, FenceIndex.build(items[:1]))
    lats, lngs = rng.uniform(20, 30, 1_000), rng.uniform(16, 17, 1_000)
    assert len(grown._tables.grid.near(lats, lngs)) < 100


def test_reuse_changes_nothing() -> None:
    """An index built on a previous one answers like one built from nothing."""
    first = [fence(Circle((16.0, 48.0), 50.0), "a"), fence(square(48.0, 16.0, 40.0), "b")]
    second = [
        fence(square(48.0, 16.0, 40.0), "b"),
        fence(Circle((16.0, 48.0), 20.0), "a"),
        fence(first[0].geometry, "c"),
    ]
    rng = np.random.default_rng(9)
    lats, lngs = rng.uniform(47.999, 48.001, 500), rng.uniform(15.999, 16.001, 500)
    reused = FenceIndex.build(second, FenceIndex.build(first))
    assert reused.match(lats, lngs) == FenceIndex.build(second).match(lats, lngs)
    assert any(reused.match(lats, lngs))


def test_distance_to_a_circle() -> None:
    """Metres to the edge, 0 inside."""
    index = FenceIndex.build([fence(Circle((16.0, 48.0), 100.0))])
    assert index.distance_m(FenceId("f"), 48.0, 16.0) == 0.0
    lat, lng = shifted(48.0, 16.0, 0.0, 130.0)
    assert index.distance_m(FenceId("f"), lat, lng) == pytest.approx(30.0, abs=0.01)


@pytest.mark.parametrize("spot", [(48.0, 16.0), (-16.8, 179.999), (0.0, 0.0), (79.0, -30.0), (89.9, 5.0)])
@pytest.mark.parametrize("pieces", [1, 7])
def test_distance_to_a_polygon(spot: tuple[float, float], pieces: int) -> None:
    """Within 0.2 % of the nearest of many points along the edges; 0 inside; a hole is outside. Few edges and many."""
    lat, lng = spot
    shell = [shifted(lat, lng, north, east) for north, east in ((-50, -80), (-60, 90), (70, 60), (40, -90), (-50, -80))]
    rings = [[(x, y) for y, x in shell], [(lng + (x - lng) * 0.5, lat + (y - lat) * 0.5) for y, x in shell]]
    cut = [
        [
            (x + (end_x - x) * k / pieces, y + (end_y - y) * k / pieces)
            for (x, y), (end_x, end_y) in itertools.pairwise(ring)
            for k in range(pieces)
        ]
        for ring in rings
    ]
    index = FenceIndex.build([fence(Polygon([[*ring, ring[0]] for ring in cut]))])
    edge = [
        (start[1] + (end[1] - start[1]) * k / 2000, start[0] + (end[0] - start[0]) * k / 2000)
        for ring in rings
        for start, end in itertools.pairwise(ring)
        for k in range(2001)
    ]
    for north, east in ((0, 0), (-120, 30), (200, 200), (-70, -300), (900, -50), (50, 0)):
        point = shifted(lat, lng, north, east)
        point = (point[0], point[1] - 360 if point[1] > 180 else point[1])
        truth = min(metres_between(*point, *other) for other in edge)
        inside = bool(index.match(np.array([point[0]]), np.array([point[1]]))[0])
        assert index.distance_m(FenceId("f"), *point) == (0.0 if inside else pytest.approx(truth, rel=0.002, abs=0.05))


def test_two_fences_with_one_id() -> None:
    """Ids must be unique: the second is refused by name."""
    with pytest.raises(InputError, match="fence twin") as caught:
        FenceIndex.build([fence(Circle((0.0, 0.0), 5.0), "twin"), fence(Circle((1.0, 0.0), 5.0), "twin")])
    assert caught.value.reason == "duplicate_fence"


def test_an_invalid_fence_is_named() -> None:
    """The refusal says which fence, ring and vertex."""
    with pytest.raises(InputError, match="fence bad, polygon 0, ring 0, vertex 3"):
        FenceIndex.build([fence(MultiPolygon([[[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]]]), "bad")])


def test_parents() -> None:
    """Ancestors are found as far as they exist; a cycle is refused."""
    spot = Circle((0.0, 0.0), 5.0)
    index = FenceIndex.build(
        [fence(spot, "shelf", parent="dept"), fence(spot, "dept", parent="store"), fence(spot, "store", parent="none")]
    )
    assert [above.id for above in index.ancestors(FenceId("shelf"))] == ["dept", "store"]
    with pytest.raises(InputError) as caught:
        FenceIndex.build([fence(spot, "a", parent="b"), fence(spot, "b", parent="c"), fence(spot, "c", parent="b")])
    assert caught.value.reason == "cyclic_parents"
