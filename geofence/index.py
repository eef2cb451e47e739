"""Which fences contain a position: an immutable index over all fences of the world.

A batch of positions passes three sieves: the coarse grid (`grid`) drops what is near no fence; the finest H3 cell and
its ancestors are looked up in the covers (`cover`), where sure-inside cells answer at once; and the exact test
(`shapes`) settles boundary cells. The answer is always the exact test's answer, and that of one position does not
depend on the others in its batch.

Coordinates must be valid: latitude within -90..90, longitude within -180..180, no NaN (events are checked on decoding).
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geofence import cover, sampling
from geofence.geometry import compile_geometry
from geofence.grid import Grid
from geofence.shapes import Area, Disc, Geometries, Shape, areas_contain, discs_contain
from geofence.sphere import Bools, Floats
from nearcast.errors import InputError
from nearcast.ids import FenceId
from nearcast.world import Fence

Ordinals = NDArray[np.int64]


class Compiled(NamedTuple):
    """A fence's geometry, ready for use; made once and reused as long as the geometry stays the same."""

    shape: Shape
    cells: tuple[cover.Cell, ...]


class _Level(NamedTuple):
    """The cells of one resolution: sorted keys, and for cell i the fences `ordinals[firsts[i]:firsts[i + 1]]`."""

    resolution: int
    keys: cover.Keys
    firsts: Ordinals
    ordinals: Ordinals
    sure: Bools


class FenceIndex:
    """All fences. `match` is what the engine calls for a batch; the other questions are about one fence."""

    def __init__(self, fences: tuple[Fence, ...], compiled: tuple[Compiled, ...]) -> None:
        """Use `build`."""
        self.fences = fences
        self.by_id: Mapping[FenceId, Fence] = MappingProxyType({fence.fence_id: fence for fence in fences})
        self._compiled = MappingProxyType(dict(zip(self.by_id, compiled, strict=True)))
        self._ancestors = MappingProxyType({fence.fence_id: _ancestors_of(fence, self.by_id) for fence in fences})
        self._grid = Grid(item.shape.boxes() for item in compiled)
        self._levels = _levels_of([item.cells for item in compiled])
        self._exact = _ExactTest([item.shape for item in compiled])

    @classmethod
    def build(cls, fences: Iterable[Fence], previous: "FenceIndex | None" = None) -> "FenceIndex":
        """The index of `fences`, whose order gives the ordinals.

        `previous` saves the work on fences whose geometry is the same there; the result is the same without it.
        Raises `InputError`: "invalid_geometry", "duplicate_fence", "cyclic_parents"; `where` names the fence.
        """
        items = tuple(fences)
        seen: set[FenceId] = set()
        compiled = []
        for fence in items:
            if fence.fence_id in seen:
                raise InputError("duplicate_fence", "two fences have the same id", f"fence {fence.id}")
            seen.add(fence.fence_id)
            compiled.append(_compile(fence, previous))
        return cls(items, tuple(compiled))

    def match(self, lats: Floats, lngs: Floats) -> list[tuple[int, ...]]:
        """For each position the ordinals of the fences that contain it, ascending."""
        found: list[tuple[int, ...]] = [()] * len(lats)
        near = np.flatnonzero(self._grid.near(lats, lngs))
        if not near.size:
            return found
        keys = cover.finest_keys(lats[near], lngs[near])
        points, ordinals, sure = map(
            np.concatenate, zip(*(_look_up(level, keys) for level in self._levels), strict=True)
        )
        points = near[points]
        unsure = np.flatnonzero(~sure)
        if unsure.size:
            sure[unsure] = self._exact.contain(ordinals[unsure], lats[points[unsure]], lngs[points[unsure]])
        for point, ordinal in zip(points[sure].tolist(), ordinals[sure].tolist(), strict=True):
            found[point] += (ordinal,)
        return [tuple(sorted(ordinals)) if len(ordinals) > 1 else ordinals for ordinals in found]

    def distance_m(self, fence_id: FenceId, lat: float, lng: float) -> float:
        """Metres from the position to the fence; 0 inside."""
        return self._compiled[fence_id].shape.distance_m(lat, lng)

    def reach_m(self, fence_id: FenceId) -> float:
        """The fence's size: a circle's radius, or the radius of the disc that has a polygon's area."""
        return self._compiled[fence_id].shape.reach_m

    def probability(self, fence_id: FenceId, lat: float, lng: float, accuracy_m: float) -> float:
        """How probable it is that someone with this fix is inside the fence; see `sampling`."""
        return sampling.probability_inside(self._compiled[fence_id].shape, lat, lng, accuracy_m)

    def ancestors(self, fence_id: FenceId) -> tuple[Fence, ...]:
        """The fences around this one: its parent, the parent's parent and so on, as far as they exist."""
        return self._ancestors[fence_id]


class _ExactTest:
    """Columns of all shapes by ordinal, so that mixed pairs of fence and position are tested together."""

    def __init__(self, shapes: list[Shape]) -> None:
        discs = [shape if isinstance(shape, Disc) else None for shape in shapes]
        areas = [shape if isinstance(shape, Area) else None for shape in shapes]
        self._is_disc: Bools = np.array([disc is not None for disc in discs], dtype=np.bool_)
        self._discs: Floats = np.array(
            [(disc.lat, disc.lng, disc.limit) if disc else (0.0, 0.0, 0.0) for disc in discs], dtype=np.float64
        ).reshape(-1, 3)
        self._areas: Geometries = np.array([area.geometry if area else None for area in areas], dtype=np.object_)
        self._north: Bools = np.array([area is not None and area.holds_north_pole for area in areas], dtype=np.bool_)
        self._south: Bools = np.array([area is not None and area.holds_south_pole for area in areas], dtype=np.bool_)

    def contain(self, ordinals: Ordinals, lats: Floats, lngs: Floats) -> Bools:
        result: Bools = np.zeros(len(ordinals), dtype=np.bool_)
        of_discs = self._is_disc[ordinals]
        on = np.flatnonzero(of_discs)
        if on.size:
            lat, lng, limit = self._discs[ordinals[on]].T
            result[on] = discs_contain(lat, lng, limit, lats[on], lngs[on])
        on = np.flatnonzero(~of_discs)
        if on.size:
            which = ordinals[on]
            result[on] = areas_contain(self._areas[which], self._north[which], self._south[which], lats[on], lngs[on])
        return result


def _compile(fence: Fence, previous: FenceIndex | None) -> Compiled:
    if previous is not None:
        known = previous.by_id.get(fence.fence_id)
        if known is not None and known.geometry == fence.geometry:
            return previous._compiled[fence.fence_id]  # noqa: SLF001  (an index may look into another)
    try:
        shape = compile_geometry(fence.geometry)
    except InputError as error:
        raise InputError(error.reason, error.detail, f"fence {fence.id}, {error.where}") from None
    return Compiled(shape, tuple(cover.cover(shape)))


def _ancestors_of(fence: Fence, by_id: Mapping[FenceId, Fence]) -> tuple[Fence, ...]:
    found: list[Fence] = []
    above = fence
    while above.parent is not None and (parent := by_id.get(FenceId(above.parent))) is not None:
        if parent is fence or parent in found:
            raise InputError("cyclic_parents", "a fence can't be its own ancestor", f"fence {fence.id}")
        found.append(parent)
        above = parent
    return tuple(found)


def _levels_of(covers: list[tuple[cover.Cell, ...]]) -> list[_Level]:
    rows: dict[int, list[tuple[int, int, bool]]] = {}
    for ordinal, cells in enumerate(covers):
        for cell in cells:
            rows.setdefault(cell.resolution, []).append((cell.key, ordinal, cell.sure))
    levels = []
    for resolution, entries in sorted(rows.items()):
        entries.sort()
        keys = np.array([key for key, _, _ in entries], dtype=np.uint64)
        distinct, firsts = np.unique(keys, return_index=True)
        levels.append(
            _Level(
                resolution,
                distinct,
                np.append(firsts, len(keys)).astype(np.int64),
                np.array([ordinal for _, ordinal, _ in entries], dtype=np.int64),
                np.array([sure for _, _, sure in entries], dtype=np.bool_),
            )
        )
    return levels


def _look_up(level: _Level, keys: cover.Keys) -> tuple[Ordinals, Ordinals, Bools]:
    """The pairs of point and fence that meet in this level's cells, and whether the cell is sure."""
    wanted = cover.ancestors(keys, level.resolution)
    places = np.minimum(np.searchsorted(level.keys, wanted), len(level.keys) - 1)
    points = np.flatnonzero(level.keys[places] == wanted)
    firsts, lasts = level.firsts[places[points]], level.firsts[places[points] + 1]
    counts = lasts - firsts
    # For each point its own run first, first + 1, ... of the level's rows, laid one after the other.
    rows = np.repeat(firsts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()), dtype=np.int64)
    return np.repeat(points, counts), level.ordinals[rows], level.sure[rows]
