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
as far as the resolution goes, so that an ancestor's key is a shift away. A *tagged* key has the resolution above it.
"""

import math
from collections.abc import Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

try:
    # The same function without the wrapper around it, which is a third of what a call costs. Not part of h3's public
    # interface, so it may go; `test_cover` holds the two against each other.
    from h3._cy import latlng_to_cell  # type: ignore[import-untyped]
except ImportError:
    latlng_to_cell = h3.latlng_to_cell

from geofence.caps import CapsOfMany, Numbers
from geofence.rings import Ring
from geofence.shapes import Disc, Shape
from geofence.sphere import EARTH_RADIUS_M, Bools, Floats, distance_m

#: Cells of about 3.5 m edge: finer ones would not answer more than the exact test does.
FINEST = 13
#: Refining stops here; what is still undecided stays boundary. Only long slivers get near it.
MAX_CELLS = 4_096
#: What may be kept of somebody who is nowhere in particular.
COARSE = 7

_PATCH_RADIUS_RAD = 0.24
_PENTAGONS = [np.array(h3.get_pentagons(resolution), dtype=np.uint64) for resolution in range(FINEST)]
_DIGITS = 15
_BITS_PER_DIGIT = 3
_PLACE_BITS = np.uint64((1 << 52) - 1)
_TAG_SHIFT = np.uint64(52)
_ONE_RESOLUTION = np.uint64(1 << 52)
#: How much smaller than the shape the patches of boundary cells are: 35 to 100 such cells go round a disc.
_FINENESS = 5.0
#: So many shapes are covered together: enough to make calls cheap, few enough to need little memory (each may have
#: `MAX_CELLS` at a time).
_AT_ONCE = 256

Keys = NDArray[np.uint64]


class Cell(NamedTuple):
    """One cell of a cover, by its resolution and key."""

    resolution: int
    key: int
    sure: bool


class Columns(NamedTuple):
    """The cells of a cover as columns."""

    tagged: Keys
    sure: Bools


class _Cells(NamedTuple):
    """Cells of one resolution, by their ids, each with the number of the shape that it is looked at for."""

    cells: Keys
    numbers: Numbers


class _Taken(NamedTuple):
    """Cells of covers: by the number of the shape, and what its `Columns` have."""

    numbers: Numbers
    tagged: Keys
    sure: Bools


_NO_CELLS = _Cells(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))


def patch_radius_rad(resolution: int) -> float:
    """The radius of a cap that holds every point whose finest cell is below a cell of this resolution."""
    return _PATCH_RADIUS_RAD / math.sqrt(7**resolution)


_PATCHES_M: Floats = np.array([patch_radius_rad(resolution) * EARTH_RADIUS_M for resolution in range(FINEST + 1)])


def finest_keys(lats: Floats, lngs: Floats) -> Keys:
    """The keys of the points' cells at the `FINEST` resolution."""
    cells = map(latlng_to_cell, lats.tolist(), lngs.tolist(), repeat(FINEST))
    return keys_of(np.fromiter(cells, dtype=np.uint64, count=len(lats)), FINEST)


def _tagged(cells: Keys, resolution: int) -> Keys:
    return keys_of(cells, resolution) | np.uint64(resolution) << _TAG_SHIFT


def keys_of(cells: Sequence[int] | Keys, resolution: int) -> Keys:
    """The keys of cells, all of one resolution."""
    shift = np.uint64(_BITS_PER_DIGIT * (_DIGITS - resolution))
    return (np.asarray(cells, dtype=np.uint64) & _PLACE_BITS) >> shift


def ancestors(keys: Keys, resolution: int) -> Keys:
    """The keys of the cells of a coarser resolution that finest cells are below."""
    return keys >> np.uint64(_BITS_PER_DIGIT * (FINEST - resolution))


class Levels(NamedTuple):
    """The resolutions that occur among cells, as columns that make the ancestors of finest cells."""

    shifts: Keys
    tags: Keys

    @classmethod
    def of(cls, tagged: Keys) -> "Levels":
        resolutions = np.unique(tagged >> _TAG_SHIFT)[:, None]
        return cls(np.uint64(_BITS_PER_DIGIT) * (np.uint64(FINEST) - resolutions), resolutions << _TAG_SHIFT)

    def ancestors(self, keys: Keys) -> Keys:
        """The tagged keys of the cells that finest cells are below: a row for each resolution."""
        found: Keys = keys >> self.shifts | self.tags
        return found


def cover(shape: Shape | Ring) -> list[Cell]:
    """The cells that stand for `shape`. No cell is an ancestor of another."""
    tagged, sure = columns(shape)
    rows = zip((tagged >> _TAG_SHIFT).tolist(), (tagged & _PLACE_BITS).tolist(), sure.tolist(), strict=True)
    return [Cell(*row) for row in rows]


def columns(shape: Shape | Ring) -> Columns:
    """`cover` in columns."""
    return columns_of([shape])[0]


def columns_of(shapes: Sequence[Shape | Ring]) -> list[Columns]:
    """The covers of many shapes: each what it would be alone, in far fewer calls."""
    starts = range(0, len(shapes), _AT_ONCE)
    return [found for start in starts for found in _columns_of_some(shapes[start : start + _AT_ONCE])]


def _columns_of_some(shapes: Sequence[Shape | Ring]) -> list[Columns]:
    """All shapes are refined together, from the coarsest resolution on. Each begins and ends at its own."""
    caps = CapsOfMany(shapes)
    targets = np.minimum(_larger_patches(np.array([shape.reach_m for shape in shapes]) / _FINENESS), FINEST)
    sure_counts = np.zeros(len(shapes), dtype=np.int64)
    taken: list[_Taken] = []
    below = _NO_CELLS
    seeds = _seeds(shapes)
    for resolution in range(min(seeds), FINEST + 1):
        begin = seeds.get(resolution, _NO_CELLS)
        cells, numbers = np.concatenate((below.cells, begin.cells)), np.concatenate((below.numbers, begin.numbers))
        if not len(cells):
            continue
        lats, lngs = _centres(cells)
        inside, touching = caps.test(numbers, lats, lngs, patch_radius_rad(resolution))
        undecided = touching & ~inside
        sure_counts += np.bincount(numbers[inside], minlength=len(shapes))
        counts_below = 7 * np.bincount(numbers[undecided], minlength=len(shapes))
        ends = (resolution >= targets) | (sure_counts + counts_below > MAX_CELLS)
        (rows,) = (inside | undecided & ends[numbers]).nonzero()
        taken.append(_Taken(numbers[rows], _tagged(cells[rows], resolution), inside[rows]))
        (rows,) = (undecided & ~ends[numbers]).nonzero()
        below = _children(_Cells(cells[rows], numbers[rows]), resolution) if rows.size else _NO_CELLS
    numbers, *chosen = map(np.concatenate, zip(*taken, strict=True))
    order = np.argsort(numbers, kind="stable")
    firsts = np.searchsorted(numbers[order], np.arange(1, len(shapes)))
    return [Columns(*parts) for parts in zip(*(np.split(column[order], firsts) for column in chosen), strict=True)]


def outline(cell: Cell) -> list[tuple[float, float]]:
    """The corners (latitude, longitude) of the cell's hexagon, for pictures: about where its patch lies."""
    shift = _BITS_PER_DIGIT * (_DIGITS - cell.resolution)
    # Mode 1 is "cell"; the digits beyond the resolution are all ones.
    whole = 1 << 59 | cell.resolution << 52 | cell.key << shift | ((1 << shift) - 1)
    return list(h3.cell_to_boundary(whole))


def _centres(cells: Keys) -> Floats:
    """The latitudes and the longitudes of their centres. Shapes that are near each other ask for the same cells."""
    once, places = np.unique(cells, return_inverse=True)
    found: Floats = np.array(list(map(h3.cell_to_latlng, once.tolist()))).T[:, places]
    return found


def _children(parents: _Cells, resolution: int) -> _Cells:
    """The next finer cells below cells of this resolution. A pentagon has six (no number 1), all others seven."""
    shift = np.uint64(_BITS_PER_DIGIT * (_DIGITS - resolution - 1))
    # The digits beyond the resolution are all ones; the first of them becomes the number of the child.
    bare = (parents.cells + _ONE_RESOLUTION) & ~(np.uint64(7) << shift)
    children = bare[:, None] | np.arange(7, dtype=np.uint64) << shift
    there = np.ones(children.shape, dtype=np.bool_)
    there[(parents.cells[:, None] == _PENTAGONS[resolution]).any(axis=1), 1] = False
    return _Cells(children[there], np.repeat(parents.numbers, there.sum(axis=1)))


def _larger_patches(radii_m: Floats) -> Numbers:
    """How many resolutions have patches larger than this radius: so, which is the first whose patches fit into it."""
    counts: Numbers = (radii_m[:, None] < _PATCHES_M).sum(axis=1)
    return counts


def _seeds(shapes: Sequence[Shape | Ring]) -> dict[int, _Cells]:
    """By resolution, cells that surely cover the shapes that begin there: around small ones, else the whole Earth."""
    lats, lngs, radii_m = np.array([_cap_around(shape) for shape in shapes], dtype=np.float64).T
    # A cell that isn't within two steps of the one that holds the shape's centre has its own centre at least 2.2
    # hexagon radii from it (3.5 on the face, less what the gnomonic projection stretches at a face's corner: 1.58);
    # its patch takes up to 1.09. With the shape's cap at most half a patch there is room to spare.
    resolutions = _larger_patches(2 * radii_m) - 1
    found: list[list[int]] = []
    for lat, lng, resolution in zip(lats.tolist(), lngs.tolist(), resolutions.tolist(), strict=True):
        if resolution < 0:
            found.append(h3.get_res0_cells())
        else:
            found.append(h3.grid_disk(h3.latlng_to_cell(lat, lng, resolution), 2))
    counts = [len(each) for each in found]
    cells = np.fromiter(chain.from_iterable(found), dtype=np.uint64, count=sum(counts))
    numbers, begins = np.arange(len(shapes)).repeat(counts), resolutions.clip(0).repeat(counts)
    return {at: _Cells(cells[begins == at], numbers[begins == at]) for at in set(begins.tolist())}


def _cap_around(shape: Shape | Ring) -> tuple[float, float, float]:
    """Centre and radius of a cap that holds the shape; an infinite radius where that isn't easy to say."""
    if isinstance(shape, Ring):
        lat, lng, radius_m = _cap_around(shape.shape)
        return lat, lng, radius_m + shape.width_m * 1.1
    if isinstance(shape, Disc):
        return shape.lat, shape.lng, shape.radius_m
    west, south, east, north = shape.geometry.bounds
    if east - west > 1 or north - south > 1 or max(abs(south), abs(north)) > 89:
        return 0.0, 0.0, math.inf
    lat, lng = (south + north) / 2, (west + east) / 2
    # In so small a box the farthest point is a corner, give or take the bulge of its parallels.
    return lat, lng, max(distance_m(lat, lng, south, west), distance_m(lat, lng, north, west)) * 1.1


def coarse_cell(lat: float, lng: float) -> int:
    """The id of the H3 cell of resolution 7, about 5 km^2, of a position."""
    cell: int = h3.latlng_to_cell(lat, lng, COARSE)
    return cell


def middle_of_cell(cell: int) -> tuple[float, float]:
    """Latitude and longitude of the middle of a cell."""
    lat, lng = h3.cell_to_latlng(cell)
    return lat, lng
