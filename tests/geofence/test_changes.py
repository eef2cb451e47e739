"""An index built on a previous one is the one that would be built from nothing, whatever was changed before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence import index as module
from geofence.geometry import compile_geometry
from geofence.index import FenceIndex
from geofence.shapes import Shape
from nearcast.errors import InputError
from nearcast.ids import FenceId
from nearcast.world import Circle, Fence, Geometry, Polygon
from tests.geofence.places import fence, points_around, shifted, square

LAT, LNG = 48.2, 16.37
IDS = [f"f{number}" for number in range(8)]


def _place(number: int) -> Geometry:
    """A few places that overlap: circles, squares, and one far too large for the coarse grid's squares."""
    lat, lng = shifted(LAT, LNG, 40.0 * (number % 3), 35.0 * (number // 3))
    if number == 7:
        return Circle((lng, lat), 90_000.0)
    return Circle((lng, lat), 30.0 + number) if number % 2 else square(lat, lng, 25.0 + number)


fences = st.builds(
    lambda name, place, parent, approach_m, dwell_s: fence(
        _place(place), name, parent=parent, approach_m=approach_m, dwell_s=dwell_s
    ),
    st.sampled_from(IDS),
    st.integers(0, 7),
    st.none() | st.sampled_from(IDS),
    st.sampled_from([None, None, 20.0, 150.0]),
    st.sampled_from([None, 5.0]),
)
worlds = st.lists(fences, max_size=6)


def assert_alike(changed: FenceIndex, fresh: FenceIndex, lats: np.ndarray, lngs: np.ndarray) -> None:
    assert changed.fences == fresh.fences
    assert changed.near == fresh.near
    assert dict(changed.by_id) == dict(fresh.by_id)
    assert len(changed.by_id) == len(fresh.by_id)
    assert changed.match(lats, lngs) == fresh.match(lats, lngs)
    assert changed.match(lats[:5], lngs[:5]) == fresh.match(lats[:5], lngs[:5])
    for fence_id in fresh.by_id:
        assert changed.rules[fence_id] == fresh.rules[fence_id]
        assert changed.ancestors(fence_id) == fresh.ancestors(fence_id)
        assert changed.distance_m(fence_id, LAT, LNG) == fresh.distance_m(fence_id, LAT, LNG)
        assert changed.reach_m(fence_id) == fresh.reach_m(fence_id)


def refusal(fences: list[Fence], previous: FenceIndex | None) -> tuple[str, str | None] | None:
    try:
        FenceIndex.build(fences, previous)
    except InputError as error:
        return error.reason, error.where
    return None


@pytest.mark.parametrize("loose", [0, 3, 1_000], ids=["always tidied", "sometimes tidied", "never tidied"])
@given(
    st.lists(st.tuples(worlds, st.lists(st.integers(0, 20), max_size=6)), min_size=2, max_size=5),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_any_changes(loose: int, steps: list[tuple[list[Fence], list[int]]], seed: int) -> None:
    """Fences come, go, move, swap ids and parents, get and lose rings, as the same objects or as equal ones."""
    rng = np.random.default_rng(seed)
    around = [points_around(_place(number), rng, 10) for number in range(8)]
    lats, lngs = (np.concatenate([pair[axis] for pair in around]) for axis in (0, 1))
    index = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LOOSE_SLOTS", loose)
        patch.setattr(module, "_LOOSE_SHARE", 0.0)
        for new, kept in steps:
            before = index.fences if index is not None else ()
            items = [*new[:3], *(before[at] for at in kept if at < len(before)), *new[3:]]
            if len({item.id for item in items}) < len(items):
                items = list({item.id: item for item in items}.values()) if kept else items
            problem = refusal(items, None)
            assert refusal(items, index) == problem
            if problem is None:
                fresh = FenceIndex.build(items)
                index = FenceIndex.build(items, index)
                assert_alike(index, fresh, lats, lngs)


def test_a_previous_index_goes_on_answering() -> None:
    """Nothing of it is changed by one that is built on it."""
    first = FenceIndex.build([fence(_place(number), f"f{number}", approach_m=9.0) for number in range(6)])
    rng = np.random.default_rng(5)
    lats, lngs = points_around(_place(0), rng, 200)
    before = first.match(lats, lngs)
    FenceIndex.build([fence(_place(1), "f0"), *first.fences[2:]], first)
    assert first.match(lats, lngs) == before
    assert list(first.by_id) == [f"f{number}" for number in range(6)]
    assert first.distance_m(FenceId("f1"), *shifted(LAT, LNG, 0.0, 0.0)) >= 0.0


def test_a_fence_that_went_is_unknown() -> None:
    index = FenceIndex.build([fence(_place(0), "a"), fence(_place(1), "b")])
    without = FenceIndex.build(index.fences[:1], index)
    assert "b" not in without.by_id
    for ask in (without.rules.__getitem__, without.ancestors, without.reach_m):
        with pytest.raises(KeyError):
            ask(FenceId("b"))


def test_a_change_compiles_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a world of a thousand fences one more costs one compilation; another order costs none."""
    compiled: list[Geometry] = []

    def noted(geometry: Geometry) -> Shape:
        compiled.append(geometry)
        return compile_geometry(geometry)

    monkeypatch.setattr(module, "compile_geometry", noted)
    spots = [shifted(LAT, LNG, 50.0 * (number % 32), 50.0 * (number // 32)) for number in range(1_000)]
    index = FenceIndex.build([fence(Circle((lng, lat), 10.0), f"f{n}") for n, (lat, lng) in enumerate(spots)])
    assert len(compiled) == 1_000
    compiled.clear()
    more = FenceIndex.build([fence(_place(0), "new"), *index.fences], index)
    assert compiled == [_place(0)]
    back = FenceIndex.build([*reversed(index.fences)], more)
    equal = FenceIndex.build([fence(item.geometry, item.id) for item in index.fences], back)
    assert compiled == [_place(0)]
    lats, lngs = np.array(spots[:50]).T
    assert back.match(lats, lngs) == [(999 - number,) for number in range(50)]
    assert equal.match(lats, lngs) == [(number,) for number in range(50)]


def test_a_hole_moves_with_its_fence() -> None:
    """Another geometry under the same id is another fence to stand in."""
    inner, outer = square(LAT, LNG, 10.0).coordinates[0], square(LAT, LNG, 30.0).coordinates[0]
    solid = FenceIndex.build([fence(Polygon([outer]), "f")])
    hollow = FenceIndex.build([fence(Polygon([outer, inner]), "f")], solid)
    spot = np.array([LAT]), np.array([LNG])
    assert (solid.match(*spot), hollow.match(*spot)) == ([(0,)], [()])
    assert hollow.distance_m(FenceId("f"), LAT, LNG) == pytest.approx(10.0, abs=0.1)
