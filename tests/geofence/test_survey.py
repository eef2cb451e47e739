"""What is said of fences before they are used agrees with shapely on a flat plan, and slips are noticed."""

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence.shapes import Disc
from geofence.sphere import EARTH_RADIUS_M
from geofence.survey import Caution, cautions_of, compile_site, cycles, geometry_problems, standing
from nearcast.world import Circle, Fence, Geometry, MultiPolygon, Polygon, Store
from tests.geofence import places

LAT, LNG = 48.2, 16.37
DEGREE_M = math.radians(EARTH_RADIUS_M)


def plan(points: np.ndarray) -> np.ndarray:
    """Rows of longitude and latitude as metres east and north, flat around the middle."""
    return np.column_stack(
        ((points[:, 0] - LNG) * DEGREE_M * math.cos(math.radians(LAT)), (points[:, 1] - LAT) * DEGREE_M)
    )


def box(west_m: float, south_m: float, east_m: float, north_m: float) -> Polygon:
    corners = [(south_m, west_m), (south_m, east_m), (north_m, east_m), (north_m, west_m), (south_m, west_m)]
    return Polygon([[tuple(reversed(places.shifted(LAT, LNG, *corner))) for corner in corners]])  # type: ignore[misc]


def fence(name: str, geometry: Geometry, **fields: object) -> Fence:
    return places.fence(geometry, name, **fields)


def said(fences: list[Fence], *stores: Store) -> list[tuple[str, str]]:
    """Fence and code of each caution."""
    return [(each.fence, each.code) for each in _cautions(fences, *stores)]


def _cautions(fences: list[Fence], *stores: Store) -> list[Caution]:
    return cautions_of([compile_site(each) for each in fences], stores)


@settings(max_examples=40)
@given(places.polygons((LAT, LNG)))
def test_area_as_shapely_measures_it_on_a_plan(geometry: Geometry) -> None:
    """For a small outline, with its hole; within what the Earth's curve makes of it."""
    site = compile_site(fence("f", geometry))
    assert isinstance(geometry, Polygon)
    rings = [plan(np.array(ring)) for ring in geometry.coordinates]
    extent = np.abs(rings[0]).max() / EARTH_RADIUS_M
    assert site.area_m2 == pytest.approx(shapely.Polygon(rings[0], rings[1:]).area, rel=1e-4 + 2 * extent)


@given(st.floats(0.1, 100_000))
def test_area_of_a_circle(radius_m: float) -> None:
    """That of a cap: nearly the flat circle's, and never more."""
    area = compile_site(fence("f", Circle((LNG, LAT), radius_m))).area_m2
    assert area == pytest.approx(math.pi * radius_m**2, rel=1e-4)
    assert area <= math.pi * radius_m**2 * (1 + 1e-12)


@settings(max_examples=40)
@given(places.polygons((LAT, LNG)), st.integers(0, 2**32 - 1))
def test_standing_as_shapely_sees_it(geometry: Geometry, seed: int) -> None:
    """Inside or not, and the distance to the edge from either side; a sure cell only inside, no cell only outside."""
    assert isinstance(geometry, Polygon)
    site = compile_site(fence("f", geometry))
    flat = shapely.Polygon(*[plan(np.array(ring)) for ring in geometry.coordinates[:1]])
    flat = shapely.Polygon(flat.exterior, [plan(np.array(ring)) for ring in geometry.coordinates[1:]])
    lats, lngs = places.points_around(geometry, np.random.default_rng(seed), 6)
    for lat, lng in zip(lats.tolist(), lngs.tolist(), strict=True):
        here = standing(site, lat, lng)
        edge_m = flat.boundary.distance(shapely.Point(plan(np.array([[lng, lat]]))[0]))
        assert here.inside is bool(shapely.intersects_xy(site.shape.geometry, lng, lat))  # type: ignore[union-attr]
        if math.hypot(*plan(np.array([[lng, lat]]))[0]) < 5_000:
            assert here.edge_m == pytest.approx(edge_m, rel=0.01, abs=1e-3)
        assert here.inside or here.cell is None or not here.cell.sure
        assert not here.inside or here.cell is not None


@given(st.floats(1, 5_000), st.floats(0, 2))
def test_standing_at_a_circle(radius_m: float, share: float) -> None:
    """The distance to the edge is what is left of the radius, or what is beyond it."""
    lat = LAT + math.degrees(share * radius_m / EARTH_RADIUS_M)
    here = standing(compile_site(fence("f", Circle((LNG, LAT), radius_m))), lat, LNG)
    assert here.edge_m == pytest.approx(abs(1 - share) * radius_m, abs=1e-3)


def test_shares_and_counts_of_cells() -> None:
    """All cells are counted by resolution; a large circle is mostly sure, one of three feet not at all."""
    large, small = (compile_site(fence("f", Circle((LNG, LAT), radius))) for radius in (500.0, 0.9144))
    assert sum(large.cells_by_resolution.values()) == len(large.cells)
    assert 0.3 < large.sure_share < 1
    assert small.sure_share == 0
    assert large.index_bytes > small.index_bytes > 0


def test_rings_of_a_circle_are_on_its_edge() -> None:
    """So that a picture shows the fence, and not something near it."""
    site = compile_site(fence("f", Circle((179.9999, 51.9), 500.0)))
    assert isinstance(site.shape, Disc)
    (ring,) = site.rings()
    apart = [places.metres_between(51.9, 179.9999, lat, lng) for lng, lat in ring.tolist()]
    assert apart == pytest.approx([500.0] * len(apart))


def test_every_ring_at_fault_is_named() -> None:
    """Not only the first; and if each by itself is fine, what is wrong with them together."""
    good = box(0, 0, 10, 10).coordinates[0]
    bow = [good[0], good[2], good[1], good[3], good[0]]
    found = geometry_problems(MultiPolygon([[good, bow], [good[:3]], [good[:-1]]]))
    assert [problem.where for problem in found] == [
        "polygon 0, ring 1, vertex 0",
        "polygon 1, ring 0",
        "polygon 2, ring 0, vertex 3",
    ]
    (together,) = geometry_problems(Polygon([good, box(20, 20, 30, 30).coordinates[0]]))
    assert together.where == "ring 1, vertex 0"
    assert geometry_problems(Polygon([good])) == []


def test_fences_smaller_than_satellites_can_tell() -> None:
    """Unless something else proves that somebody is there, or it is a product."""
    tiny = Circle((LNG, LAT), 2.0)
    fences = [
        fence("tiny", tiny, exit_margin_m=1.0),
        fence("beacon", tiny, exit_margin_m=1.0, kind="shelf", beacons=["b"]),
        fence("display", tiny, exit_margin_m=1.0, kind="product", sku="x"),
        fence("house", box(100, 100, 140, 140)),
    ]
    assert said(fences) == [("tiny", "smaller_than_gps")]


def test_margins_larger_than_the_fence() -> None:
    """Also where the margin comes from the fence around it."""
    fences = [
        fence("house", box(0, 0, 60, 60), exit_margin_m=20.0),
        fence("department", box(5, 5, 35, 35), kind="department", parent="house"),
    ]
    assert said(fences) == [("department", "margin_larger_than_fence")]


def test_overlapping_siblings() -> None:
    """With the share; not if they only touch, are on different floors, of different kinds or of different parents."""
    fences = [
        fence("a", box(0, 0, 40, 40)),
        fence("b", box(30, 0, 90, 40)),
        fence("touching", box(90, 0, 130, 40)),
        fence("above", box(30, 0, 90, 40), floor=2),
        fence("higher", box(30, 0, 90, 40), floor=3),
        fence("below", box(30, 0, 90, 40), floor=1, kind="department"),
        fence("around", box(0, 0, 400, 400), kind="vicinity"),
        fence("other", box(0, 0, 40, 40), store="s2"),
    ]
    found = [each for each in _cautions(fences) if each.code == "overlapping_siblings"]
    # "above" and "higher" are on different floors; the others have none: it may be either.
    assert [each.fence for each in found] == ["b", "above", "above", "higher", "higher"]
    assert "'a' have 400 m² in common (25%" in found[0].detail


def test_children_that_stick_out_of_their_parents() -> None:
    """By more than how outlines are drawn."""
    fences = [
        fence("house", box(0, 0, 100, 100)),
        fence("in", box(0, 0, 50, 50), kind="department", parent="house"),
        fence("nearly", box(50, 49.9, 100.2, 100), kind="department", parent="house"),
        fence("out", box(80, 0, 120, 40), kind="department", parent="house"),
    ]
    (found,) = [each for each in _cautions(fences) if each.code == "outside_of_parent"]
    assert found.fence == "out"
    assert "800 m² (50%)" in found.detail


def test_displays_outside_of_their_store() -> None:
    """With how far; only where the store's outline is known."""
    lat, lng = places.shifted(LAT, LNG, 20, 65)
    away = Circle((lng, lat), 0.9)
    fences = [
        fence("house", box(0, 0, 40, 40)),
        fence("shown", away, kind="product", sku="x", exit_margin_m=0.5),
        fence("elsewhere", away, kind="product", sku="x", exit_margin_m=0.5, store="s2"),
    ]
    (found,) = _cautions(fences)
    assert (found.fence, found.code) == ("shown", "display_outside_of_store")
    assert "25 m outside" in found.detail


def test_a_store_that_is_not_where_its_fences_are() -> None:
    """Latitude and longitude the wrong way round is the usual reason."""
    fences = [fence("house", box(-20, -20, 20, 20))]
    assert said(fences, Store(id="s1", name="S", lat=LAT, lng=LNG)) == []
    assert said(fences, Store(id="s1", name="S", lat=LNG, lng=LAT)) == [("house", "store_elsewhere")]


@pytest.mark.parametrize("spot", places.SPOTS)
def test_anywhere_on_earth(spot: tuple[float, float]) -> None:
    """At a pole and at the antimeridian nothing is compared on a plan that it would tear apart, and nothing fails."""
    circle = Circle((spot[1], spot[0]), 500.0)
    assert said([fence("a", circle), fence("b", circle, kind="department", parent="a")]) == []


def test_cycles_are_named() -> None:
    """Every fence in one; not those that only lead to it."""
    shape = Circle((LNG, LAT), 10.0)
    fences = [
        fence("a", shape, parent="b"),
        fence("b", shape, parent="a"),
        fence("c", shape, parent="a"),
        fence("d", shape, parent="gone"),
        fence("e", shape, parent="e"),
    ]
    assert [text.split("'")[1] for text in cycles(fences)] == ["a", "b", "e"]
