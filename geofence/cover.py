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
from itertools import repeat
from typing import NamedTuple

import numpy as np
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

from geofence.rings import Ring
from geofence.shapes import Disc, Shape
from geofence.sphere import EARTH_RADIUS_M, Bools, Floats, distances_m

#: Cells of about 3.5 m edge: finer ones would not answer more than the exact test does.
FINEST = 13
#: Refining stops here; what is still undecided stays boundary. Only long slivers get near it.
MAX_CELLS = 4_096
#: What may be kept of somebody who is nowhere in particular.
COARSE = 7

_PATCH_RADIUS_RAD = 0.24
_DIGITS = 15
_BITS_PER_DIGIT = 3
_PLACE_BITS = np.uint64((1 << 52) - 1)
_TAG_SHIFT = np.uint64(52)
#: How much smaller than the shape the patches of boundary cells are: 15 to 40 such cells go round a disc.
_FINENESS = 2.5

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


def patch_radius_rad(resolution: int) -> float:
    """The radius of a cap that holds every point whose finest cell is below a cell of this resolution."""
    return _PATCH_RADIUS_RAD / math.sqrt(7**resolution)


_PATCHES_M = [patch_radius_rad(resolution) * EARTH_RADIUS_M for resolution in range(FINEST)]


def finest_keys(lats: Floats, lngs: Floats) -> Keys:
    """The keys of the points' cells at the `FINEST` resolution."""
    return keys_of(list(map(h3.latlng_to_cell, lats.tolist(), lngs.tolist(), repeat(FINEST))), FINEST)


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
    target = _resolution_of(shape.reach_m / _FINENESS)
    resolution, cells = _seeds(shape)
    keys: list[Keys] = []
    sure: list[Bools] = []
    count = 0

    def take(chosen: Bools, *, surely: bool) -> None:
        if chosen.any():
            taken = keys_of(cells[chosen], resolution)
            keys.append(taken | np.uint64(resolution) << _TAG_SHIFT)
            sure.append(np.full(len(taken), surely))

    while True:
        lats, lngs = np.array(list(map(h3.cell_to_latlng, cells.tolist()))).T
        inside, touching = shape.test_caps(lats, lngs, patch_radius_rad(resolution))
        take(inside, surely=True)
        count += int(inside.sum())
        undecided = touching & ~inside
        if not undecided.any() or resolution >= target or count + 7 * int(undecided.sum()) > MAX_CELLS:
            take(undecided, surely=False)
            return Columns(np.concatenate(keys), np.concatenate(sure))
        cells = _children(cells[undecided], resolution)
        resolution += 1


def outline(cell: Cell) -> list[tuple[float, float]]:
    """The corners (latitude, longitude) of the cell's hexagon, for pictures: about where its patch lies."""
    shift = _BITS_PER_DIGIT * (_DIGITS - cell.resolution)
    # Mode 1 is "cell"; the digits beyond the resolution are all ones.
    whole = 1 << 59 | cell.resolution << 52 | cell.key << shift | ((1 << shift) - 1)
    return list(h3.cell_to_boundary(whole))


def _children(cells: Keys, resolution: int) -> Keys:
    """The next finer cells below cells of this resolution. A pentagon has six, all others seven."""
    found = [child for cell in cells.tolist() for child in h3.cell_to_children(cell, resolution + 1)]
    return np.array(found, dtype=np.uint64)


def _resolution_of(radius_m: float) -> int:
    """The coarsest resolution whose patches fit into this radius, but no finer than `FINEST`."""
    return next((resolution for resolution, patch_m in enumerate(_PATCHES_M) if patch_m <= radius_m), FINEST)


def _seeds(shape: Shape | Ring) -> tuple[int, Keys]:
    """Cells of one resolution that surely cover the shape together: around a small one, else the whole Earth."""
    lat, lng, radius_m = _cap_around(shape)
    # A cell that isn't within two steps of the one that holds the shape's centre has its own centre at least 2.2
    # hexagon radii from it (3.5 on the face, less what the gnomonic projection stretches at a face's corner: 1.58);
    # its patch takes up to 1.09. With the shape's cap at most half a patch there is room to spare.
    resolution = _resolution_of(2 * radius_m) - 1
    if resolution < 0:
        return 0, np.array(h3.get_res0_cells(), dtype=np.uint64)
    return resolution, np.array(h3.grid_disk(h3.latlng_to_cell(lat, lng, resolution), 2), dtype=np.uint64)


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
    corners = distances_m(lat, lng, np.array([south, south, north, north]), np.array([west, east, west, east]))
    # In so small a box the farthest point is a corner, give or take the bulge of its parallels.
    return lat, lng, float(corners.max()) * 1.1


def coarse_cell(lat: float, lng: float) -> int:
    """The id of the H3 cell of resolution 7, about 5 km^2, of a position."""
    cell: int = h3.latlng_to_cell(lat, lng, COARSE)
    return cell


def middle_of_cell(cell: int) -> tuple[float, float]:
    """Latitude and longitude of the middle of a cell."""
    lat, lng = h3.cell_to_latlng(cell)
    return lat, lng
