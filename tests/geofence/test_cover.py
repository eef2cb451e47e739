"""Covers never miss and never lie, and no fence gets none."""

import numpy as np
import pytest
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from hypothesis import given, settings
from hypothesis import strategies as st

from geofence import cover as module
from geofence.cover import (
    FINEST,
    MAX_CELLS,
    ancestors,
    columns,
    columns_of,
    cover,
    finest_keys,
    keys_of,
    patch_radius_rad,
)
from geofence.geometry import compile_geometry
from geofence.rings import Ring, ring_around
from geofence.shapes import Shape
from geofence.sphere import EARTH_RADIUS_M, distances_m
from nearcast.world import Circle, Geometry, Polygon
from tests.geofence.places import PENTAGONS, circles, expected, points_around, polygons, spots, square


@given(spots().flatmap(lambda spot: circles(spot) | polygons(spot)), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_never_misses_and_never_lies(geometry: Geometry, seed: int) -> None:
    """A point inside is below a cell of the cover; a point below a sure cell is inside."""
    cells = cover(compile_geometry(geometry))
    lats, lngs = points_around(geometry, np.random.default_rng(seed))
    keys = finest_keys(lats, lngs)
    for lat, lng, key in zip(lats.tolist(), lngs.tolist(), keys, strict=True):
        held = [cell for cell in cells if int(ancestors(key, cell.resolution)) == cell.key]
        truth = expected(geometry, lat, lng)
        assert len(held) <= 1
        if truth is not None:
            assert held or not truth, "missed"
            assert truth or not (held and held[0].sure), "lied"


@st.composite
def shapes(draw: st.DrawFn) -> Shape | Ring:
    spot = draw(spots())
    shape = compile_geometry(draw(circles(spot) | polygons(spot)))
    return ring_around(shape, 80.0) if draw(st.booleans()) else shape


@given(st.lists(shapes(), max_size=7))
@settings(max_examples=25)
def test_together_as_alone(several: list[Shape | Ring]) -> None:
    """Shapes that are covered together get the covers that each would get alone, however they are cut into groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", 3)
        together = columns_of(several)
    assert len(together) == len(several)
    for shape, found in zip(several, together, strict=True):
        alone = columns(shape)
        assert len(alone.tagged)
        assert np.array_equal(found.tagged, alone.tagged)
        assert np.array_equal(found.sure, alone.sure)


@pytest.mark.parametrize("radius_m", [0.9, 40.0, 1_500.0, 100_000.0])
def test_pentagons_have_no_seventh_child(radius_m: float) -> None:
    """All cells of a cover exist, also below pentagons."""
    for lat, lng in PENTAGONS:
        for cell in cover(compile_geometry(Circle((lng, lat), radius_m))):
            shift = 3 * (15 - cell.resolution)
            assert h3.is_valid_cell(1 << 59 | cell.resolution << 52 | cell.key << shift | ((1 << shift) - 1))


def test_a_product_circle_gets_few_cells() -> None:
    """0.9 m circles, also at pentagons, have a handful of boundary cells, and none of them is empty."""
    for lat, lng in [(48.2, 16.37), (90.0, 0.0), (0.0, 180.0), *PENTAGONS]:
        assert 1 <= len(cover(compile_geometry(Circle((lng, lat), 0.9144)))) <= 12


def test_a_store_gets_sure_cells() -> None:
    """Inside a store of 60 m, the middle needs no exact test."""
    cells = cover(compile_geometry(square(48.2, 16.37, 30.0)))
    assert any(cell.sure for cell in cells)
    assert len(cells) < 100


def test_a_long_sliver_stays_bounded() -> None:
    """A thing that is all boundary stops refining at the cap, and is still covered."""
    sliver = Polygon([[(0.0, 0.0), (20.0, 10.0), (20.0, 10.00001), (0.0, 0.0)]])
    cells = cover(compile_geometry(sliver))
    assert 0 < len(cells) <= MAX_CELLS
    keys = finest_keys(np.linspace(0, 10, 50), np.linspace(0, 20, 50))
    held = {(cell.resolution, cell.key) for cell in cells}
    for key in keys:
        assert any((resolution, int(ancestors(key, resolution))) in held for resolution in range(FINEST + 1))


@pytest.mark.parametrize("resolution", [0, 1, 4, 7, 10, FINEST])
def test_patches_fit_their_caps(resolution: int) -> None:
    """No point is farther from the centre of its finest cell's ancestor than the bound that covers rely on."""
    rng = np.random.default_rng(resolution)
    lats, lngs = np.degrees(np.arcsin(rng.uniform(-1, 1, 3000))), rng.uniform(-180, 180, 3000)
    for lat, lng in PENTAGONS:
        lats = np.append(lats, lat + rng.normal(0, 40 * 7 ** (-resolution / 2), 100))
        lngs = np.append(lngs, lng + rng.normal(0, 40 * 7 ** (-resolution / 2), 100))
    lats, lngs = np.clip(lats, -90, 90), (lngs + 540) % 360 - 180
    cells = [
        h3.cell_to_parent(h3.latlng_to_cell(lat, lng, FINEST), resolution)
        for lat, lng in zip(lats.tolist(), lngs.tolist(), strict=True)
    ]
    centres = np.array([h3.cell_to_latlng(cell) for cell in cells])
    farthest = distances_m(lats, lngs, centres[:, 0], centres[:, 1]).max()
    assert farthest < patch_radius_rad(resolution) * EARTH_RADIUS_M
    assert (keys_of(cells, resolution) == ancestors(finest_keys(lats, lngs), resolution)).all()


@given(spots())
@settings(max_examples=200)
def test_a_position_is_in_the_cell_that_h3_names(spot: tuple[float, float]) -> None:
    """By its public interface, which the conversion of batches goes round."""
    lat, lng = spot
    named = keys_of([h3.latlng_to_cell(lat, lng, FINEST)], FINEST)
    assert finest_keys(np.array([lat]), np.array([lng])).tolist() == named.tolist()
