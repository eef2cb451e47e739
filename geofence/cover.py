"""H3 covers: the cells that stand for a shape. The only module that knows H3.

A cover is made of sure-inside cells (mixed resolutions: coarse in the middle) and boundary cells. It never misses:
every point of the shape has its finest cell below one of them. It never lies: every point of a sure-inside cell is in
the shape.

"Below" is the tree of cell ids, not geometry: the finest cells below a cell make a ragged patch that sticks out of
the cell's hexagon (H3's own containment modes look at the hexagon, as a flat polygon of longitude and latitude, so
they can't be relied on here). We bound the patch by a cap around the cell's centre, and test caps:

    Cell centres of resolution r lie 0.38197 / 7**(r/2) apart (H3's `RES0_U_GNOMONIC`, in Earth radii) on the faces
    of the icosahedron, where H3's gnomonic projection never shortens a distance. A child's centre lies at most one
    child spacing from its parent's, and a finest cell's corner 1/sqrt(3) of a spacing from its centre. The sum over
    all deeper resolutions stays below 0.38197 * 0.6076 = 0.2321 / 7**(r/2); we use 0.24.

An id is 64 bits: mode, resolution, 7 bits base cell, 15 digits of 3 bits. A *key* is the base cell and the digits
as far as the resolution goes, so that an ancestor's key is a shift away.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

from geofence.shapes import Disc, Shape
from geofence.sphere import EARTH_RADIUS_M, Floats, distances_m

#: Cells of about 3.5 m edge: finer ones would not answer more than the exact test does.
FINEST = 13
#: Refining stops here; what is still undecided stays boundary. Only long slivers get near it.
MAX_CELLS = 4_096

_PATCH_RADIUS_RAD = 0.24
_DIGITS = 15
_BITS_PER_DIGIT = 3
_PLACE_BITS = np.uint64((1 << 52) - 1)
#: How much smaller than the shape the patches of boundary cells are: 15 to 40 such cells go round a disc.
_FINENESS = 2.5

Keys = NDArray[np.uint64]


class Cell(NamedTuple):
    """One cell of a cover, by its resolution and key."""

    resolution: int
    key: int
    sure: bool


def patch_radius_rad(resolution: int) -> float:
    """The radius of a cap that holds every point whose finest cell is below a cell of this resolution."""
    return _PATCH_RADIUS_RAD / math.sqrt(7**resolution)


def finest_keys(lats: Floats, lngs: Floats) -> Keys:
    """The keys of the points' cells at the `FINEST` resolution."""
    cells = [h3.latlng_to_cell(lat, lng, FINEST) for lat, lng in zip(lats.tolist(), lngs.tolist(), strict=True)]
    return keys_of(cells, FINEST)


def keys_of(cells: Sequence[int], resolution: int) -> Keys:
    """The keys of cells, all of one resolution."""
    shift = np.uint64(_BITS_PER_DIGIT * (_DIGITS - resolution))
    return (np.array(cells, dtype=np.uint64) & _PLACE_BITS) >> shift


def ancestors(keys: Keys, resolution: int) -> Keys:
    """The keys of the cells of a coarser resolution that finest cells are below."""
    return keys >> np.uint64(_BITS_PER_DIGIT * (FINEST - resolution))


def cover(shape: Shape) -> list[Cell]:
    """The cells that stand for `shape`. No cell is an ancestor of another."""
    target = _resolution_of(shape.reach_m / _FINENESS)
    resolution, cells = _seeds(shape)
    found: list[Cell] = []
    while True:
        lats, lngs = np.array([h3.cell_to_latlng(cell) for cell in cells]).T
        inside, touching = shape.test_caps(lats, lngs, patch_radius_rad(resolution))
        found += _take(cells, inside, resolution, sure=True)
        undecided = touching & ~inside
        if not undecided.any() or resolution >= target or len(found) + 7 * int(undecided.sum()) > MAX_CELLS:
            return found + _take(cells, undecided, resolution, sure=False)
        parents = np.flatnonzero(undecided).tolist()
        cells = [child for parent in parents for child in h3.cell_to_children(cells[parent], resolution + 1)]
        resolution += 1


def _take(cells: Sequence[int], chosen: NDArray[np.bool_], resolution: int, *, sure: bool) -> list[Cell]:
    picked = [cells[place] for place in np.flatnonzero(chosen).tolist()]
    return [Cell(resolution, key, sure) for key in keys_of(picked, resolution).tolist()]


def _resolution_of(radius_m: float) -> int:
    """The coarsest resolution whose patches fit into this radius, but no finer than `FINEST`."""
    for resolution in range(FINEST):
        if patch_radius_rad(resolution) * EARTH_RADIUS_M <= radius_m:
            return resolution
    return FINEST


def _seeds(shape: Shape) -> tuple[int, list[int]]:
    """Cells of one resolution that surely cover the shape together: around a small one, else the whole Earth."""
    lat, lng, radius_m = _cap_around(shape)
    # A cell that isn't within two steps of the one that holds the shape's centre has its own centre at least 2.2
    # hexagon radii from it (3.5 on the face, less what the gnomonic projection stretches at a face's corner: 1.58);
    # its patch takes up to 1.09. With the shape's cap at most half a patch there is room to spare.
    resolution = _resolution_of(2 * radius_m) - 1
    if resolution < 0:
        return 0, list(h3.get_res0_cells())
    return resolution, list(h3.grid_disk(h3.latlng_to_cell(lat, lng, resolution), 2))


def _cap_around(shape: Shape) -> tuple[float, float, float]:
    """Centre and radius of a cap that holds the shape; an infinite radius where that isn't easy to say."""
    if isinstance(shape, Disc):
        return shape.lat, shape.lng, shape.radius_m
    west, south, east, north = shape.geometry.bounds
    if east - west > 1 or north - south > 1 or max(abs(south), abs(north)) > 89:
        return 0.0, 0.0, math.inf
    lat, lng = (south + north) / 2, (west + east) / 2
    corners = distances_m(lat, lng, np.array([south, south, north, north]), np.array([west, east, west, east]))
    # In so small a box the farthest point is a corner, give or take the bulge of its parallels.
    return lat, lng, float(corners.max()) * 1.1
