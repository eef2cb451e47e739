"""Which fences contain a position: an immutable index over all fences of the world.

A batch of positions passes three sieves: the coarse grid (`grid`) drops what is near no fence; the finest H3 cell and
its ancestors are looked up in the covers (`cover`, `cells`), where sure-inside cells answer at once; and the exact test
(`exact`) settles boundary cells. The answer is always the exact test's answer, and that of one position does not
depend on the others in its batch.

Coordinates must be valid: latitude within -90..90, longitude within -180..180, no NaN (events are checked on decoding).

An index built on a previous one takes over what is compiled there. Every compiled shape has a number, its *slot*; a
change adds slots, with a small table of their cells beside the large one, and the slots of fences that are gone no
longer answer. When a good part of all slots is new or gone, the tables are made anew. Nothing is changed in place, so
one thread may match while another builds the next index.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from geofence import cover, sampling
from geofence.cells import CellTable, Numbers, Rows
from geofence.evidence import Evidence
from geofence.exact import ExactTest
from geofence.geometry import compile_geometry
from geofence.grid import Grid
from geofence.layered import Layered
from geofence.rings import Ring, ring_around
from geofence.rules import Rules, rules_of
from geofence.shapes import Disc, Shape
from geofence.sphere import EARTH_RADIUS_M, Bools, Boxes, Floats, box_around
from nearcast.errors import InputError
from nearcast.ids import FenceId, StoreId
from nearcast.world import Fence, SpecialDay

#: The tables are made anew when more slots than this, and more than this share of all, are new or gone.
_LOOSE_SLOTS, _LOOSE_SHARE = 1_024, 0.1
#: Boxes around discs are wider by this, which is far more than rounding takes away.
_BOX_PAD_M = 0.001
#: Fewer positions are faster looked at one by one.
_FEW = 24
_ORDINAL_BITS = 32
_ORDINAL = (1 << _ORDINAL_BITS) - 1

Shapes = tuple[Shape | Ring, ...]


class _Tables(NamedTuple):
    """All that is compiled, by slot. A fence with an `approach_m` has two: its own, and the next one for its ring."""

    shapes: Shapes
    #: Whether the next slot is this one's ring.
    ringed: Bools
    exact: ExactTest
    grid: Grid
    cells: CellTable
    #: The cells of the slots from `first_added` on.
    added: CellTable
    first_added: int


class _Slots(NamedTuple):
    """Of each fence the slot."""

    by_id: Layered[FenceId, int]
    by_ordinal: Numbers


class _Places:
    """Where in a tuple each fence stands. The objects are told apart by identity, so that none has to be looked at."""

    def __init__(self, fences: tuple[Fence, ...]) -> None:
        self.fences = fences
        self.identities: Numbers = np.fromiter(map(id, fences), dtype=np.int64, count=len(fences))
        self.order: Numbers = np.argsort(self.identities)
        self.ordered = self.identities[self.order]

    def in_other(self, other: "_Places") -> Numbers:
        """The place in the other tuple of each fence in this one; -1 for those that aren't there."""
        if not other.fences:
            return np.full(len(self.fences), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(other.ordered, self.identities), len(other.fences) - 1)
        return np.where(other.ordered[found] == self.identities, other.order[found], -1)

    def not_among(self, places: Numbers) -> Numbers:
        """The places here that are not among these."""
        rest: Bools = np.ones(len(self.fences), dtype=np.bool_)
        rest[places[places >= 0]] = False
        return np.flatnonzero(rest)


class FenceIndex:
    """All fences. `match` is what the engine calls for a batch; the other questions are about one fence."""

    def __init__(
        self,
        places: "_Places",
        by_id: Layered[FenceId, Fence],
        slots: "_Slots",
        tables: _Tables,
        zones: Mapping[StoreId, ZoneInfo | None],
        special_days: Mapping[StoreId, Sequence[SpecialDay]],
    ) -> None:
        """Use `build`."""
        self._places = places
        self.fences = places.fences
        self.by_id = by_id
        #: By whose clock the fences of a store open and close; of a store that is missing by UTC.
        self.zones = zones
        self._slots = slots
        self._tables = tables
        self._ancestors = _Ancestors(self.by_id)
        #: What holds in each fence: to be looked up, not to be listed.
        self.rules: Mapping[FenceId, Rules] = _RulesOf(self._ancestors, special_days)
        own = slots.by_ordinal
        near = np.flatnonzero(tables.ringed[own])
        #: The ordinals of the fences with an `approach_m`: see `match`.
        self.near: tuple[int, ...] = tuple(near.tolist())
        #: The ordinal of each slot; -1 for those that are gone.
        self._ordinals: Numbers = np.full(len(tables.shapes), -1, dtype=np.int64)
        self._ordinals[own] = np.arange(len(own))
        self._ordinals[own[near] + 1] = len(own) + np.arange(len(near))

    @classmethod
    def build(
        cls,
        fences: Iterable[Fence],
        previous: "FenceIndex | None" = None,
        zones: Mapping[StoreId, ZoneInfo | None] = MappingProxyType({}),
        special_days: Mapping[StoreId, Sequence[SpecialDay]] = MappingProxyType({}),
    ) -> "FenceIndex":
        """The index of `fences`, whose order gives the ordinals. `zones` and `special_days` are their stores', for
        fences' hours.

        `previous` saves the work on fences that are the same there, most of all on those that are the same objects;
        the result is the same without it. Raises `InputError`: "duplicate_fence", "invalid_geometry",
        "cyclic_parents"; `where` names the fence.
        """
        old = previous if previous is not None else _EMPTY
        places = _Places(tuple(fences))
        by_id, slots, tables = old._after(places)  # noqa: SLF001  (one index looks into another)
        used = len(places.fences) + int(tables.ringed[slots.by_ordinal].sum())
        loose = len(tables.shapes) - tables.first_added + len(tables.shapes) - used + by_id.loose
        if previous is None or tables.grid.crowded or loose > max(_LOOSE_SLOTS, _LOOSE_SHARE * len(tables.shapes)):
            by_id = Layered(dict(by_id))
            slots, tables = _tidied(slots, tables)
        return cls(places, by_id, slots, tables, zones, special_days)

    def _after(self, places: "_Places") -> "tuple[Layered[FenceId, Fence], _Slots, _Tables]":
        """What there is after a change to other fences; only those that are new are looked at."""
        fences, before = places.fences, places.in_other(self._places)
        new = [(place, fences[place]) for place in np.flatnonzero(before < 0).tolist()]
        by_new_id = {fence.fence_id: fence for _, fence in new}
        gone = {self.fences[place].fence_id for place in self._places.not_among(before).tolist()} - by_new_id.keys()
        by_id = self.by_id.changed(gone, by_new_id)
        if len(by_id) < len(fences):
            raise _duplicate(fences)
        by_ordinal = np.append(self._slots.by_ordinal, -1)[before]
        moved: dict[FenceId, int] = {}
        added: list[Shape | Ring] = []
        ringed: list[bool] = []
        for place, fence in new:
            fence_id = fence.fence_id
            if _same_place(fence, self.by_id.get(fence_id)):
                by_ordinal[place] = self._slots.by_id[fence_id]
                continue
            by_ordinal[place] = moved[fence_id] = len(self._tables.shapes) + len(added)
            shapes = _compile(fence)
            added += shapes
            ringed += [True, False] if len(shapes) > 1 else [False]
        _check_parents([fence for _, fence in new], fences, by_id)
        slots = _Slots(self._slots.by_id.changed(gone, moved), by_ordinal)
        return by_id, slots, _with(self._tables, added, ringed) if added else self._tables

    def match(self, lats: Floats, lngs: Floats) -> list[tuple[int, ...]]:
        """For each position the ordinals of the fences that contain it, ascending.

        After them: an ordinal of `len(fences) + n` says that the position is within `approach_m` of the fence
        `fences[near[n]]`, be it outside of that fence or in it. Fences without `approach_m` have no such ordinal.
        """
        found: list[tuple[int, ...]] = [()] * len(lats)
        for place, ordinal in zip(*(column.tolist() for column in self.pairs(lats, lngs)), strict=True):
            found[place] += (ordinal,)
        return found

    def pairs(self, lats: Floats, lngs: Floats) -> tuple[Numbers, Numbers]:
        """What `match` tells, as two columns: the places in the batch, ascending, and for each place its ordinals."""
        tables = self._tables
        near = tables.grid.near_few(lats, lngs) if len(lats) <= _FEW else tables.grid.near(lats, lngs)
        if not len(near):
            return near, near
        lats, lngs = lats[near], lngs[near]
        keys = cover.finest_keys(lats, lngs)
        points, owners = tables.cells.look_up(keys)
        if len(tables.added):
            more_points, more_owners = tables.added.look_up(keys)
            points, owners = np.concatenate((points, more_points)), np.concatenate((owners, more_owners))
        slots = owners >> 1
        ordinals = self._ordinals[slots]
        (unsure,) = (owners & 1 == 0).nonzero()
        if unsure.size:
            asked = points[unsure]
            held = tables.exact.contain(slots[unsure], lats[asked], lngs[asked])
            ordinals[unsure[~held]] = -1
        (hits,) = (ordinals >= 0).nonzero()
        pairs = near[points[hits]] << _ORDINAL_BITS | ordinals[hits]
        pairs.sort()
        return pairs >> _ORDINAL_BITS, pairs & _ORDINAL

    def distance_m(self, fence_id: FenceId, lat: float, lng: float) -> float:
        """Metres from the position to the fence; 0 inside."""
        return self._shape(fence_id).distance_m(lat, lng)

    def depth_m(self, fence_id: FenceId, lat: float, lng: float) -> float:
        """Metres from the position to the fence's edge; below 0 outside."""
        return self._shape(fence_id).depth_m(lat, lng)

    @cached_property
    def evidence(self) -> Evidence:
        """What else than coordinates proves presence in which fence."""
        return Evidence(self.fences)

    @cached_property
    def tells_crossings(self) -> bool:
        """Whether any fence asks for them."""
        return any(fence.crossings for fence in self.fences)

    def reach_m(self, fence_id: FenceId) -> float:
        """The fence's size: a circle's radius, or the radius of the disc that has a polygon's area."""
        return self._shape(fence_id).reach_m

    def probability(self, fence_id: FenceId, lat: float, lng: float, accuracy_m: float) -> float:
        """How probable it is that someone with this fix is inside the fence; see `sampling`."""
        return sampling.probability_inside(self._shape(fence_id), lat, lng, accuracy_m)

    def ancestors(self, fence_id: FenceId) -> tuple[Fence, ...]:
        """The fences around this one: its parent, the parent's parent and so on, as far as they exist."""
        return self._ancestors[fence_id]

    def _shape(self, fence_id: FenceId) -> Shape:
        shape: Shape = self._tables.shapes[self._slots.by_id[fence_id]]  # type: ignore[assignment]  # a ring has no id
        return shape


class _Ancestors(dict[FenceId, tuple[Fence, ...]]):
    """The fences around each fence, worked out when first asked for."""

    def __init__(self, by_id: Mapping[FenceId, Fence]) -> None:
        super().__init__()
        self.by_id = by_id

    def __missing__(self, fence_id: FenceId) -> tuple[Fence, ...]:
        found: list[Fence] = []
        above = self.by_id[fence_id]
        while above.parent is not None and (parent := self.by_id.get(FenceId(above.parent))) is not None:
            found.append(parent)
            above = parent
        self[fence_id] = tuple(found)
        return self[fence_id]


class _RulesOf(dict[FenceId, Rules]):
    """The rules of each fence, worked out when first asked for."""

    def __init__(self, ancestors: _Ancestors, special_days: Mapping[StoreId, Sequence[SpecialDay]]) -> None:
        super().__init__()
        self._around = ancestors
        self._special_days = special_days

    def __missing__(self, fence_id: FenceId) -> Rules:
        fence = self._around.by_id[fence_id]
        self[fence_id] = rules_of(fence, self._around[fence_id], self._special_days.get(fence.store_id, ()))
        return self[fence_id]


def _duplicate(fences: Sequence[Fence]) -> InputError:
    seen: set[str] = set()
    twin = next(fence.id for fence in fences if fence.id in seen or seen.add(fence.id))  # type: ignore[func-returns-value]
    return InputError("duplicate_fence", "two fences have the same id", f"fence {twin}")


def _same_place(fence: Fence, known: Fence | None) -> bool:
    return known is not None and known.geometry == fence.geometry and known.approach_m == fence.approach_m


def _compile(fence: Fence) -> list[Shape | Ring]:
    try:
        shape = compile_geometry(fence.geometry)
    except InputError as error:
        raise InputError(error.reason, error.detail, f"fence {fence.id}, {error.where}") from None
    return [shape, ring_around(shape, fence.approach_m)] if fence.approach_m else [shape]


def _check_parents(changed: Sequence[Fence], fences: Sequence[Fence], by_id: Mapping[FenceId, Fence]) -> None:
    """Refuse a cycle. One that was not there before has a changed fence in it; the first fence that leads to it is
    named."""
    if fence := _leads_to_cycle(changed, by_id) and _leads_to_cycle(fences, by_id):
        raise InputError("cyclic_parents", "a fence can't be its own ancestor", f"fence {fence.id}")


def _leads_to_cycle(fences: Sequence[Fence], by_id: Mapping[FenceId, Fence]) -> Fence | None:
    good: set[str] = set()
    for fence in fences:
        line: set[str] = set()
        above: Fence | None = fence
        while above is not None and above.id not in good:
            if above.id in line:
                return fence
            line.add(above.id)
            above = by_id.get(FenceId(above.parent)) if above.parent is not None else None
        good |= line
    return None


def _with(old: _Tables, shapes: Sequence[Shape | Ring], ringed: Sequence[bool]) -> _Tables:
    """The tables with more slots."""
    rows = Rows.of(cover.columns_of(shapes), len(old.shapes))
    if not old.shapes:
        return _tables_of(tuple(shapes), np.array(ringed, dtype=np.bool_), rows)
    return old._replace(
        shapes=(*old.shapes, *shapes),
        ringed=np.concatenate((old.ringed, np.array(ringed, dtype=np.bool_))),
        exact=old.exact.extended(shapes),
        grid=old.grid.extended(map(_boxes_of, shapes)),
        added=CellTable(Rows.concatenated(old.added.rows, rows)),
    )


def _tables_of(shapes: Shapes, ringed: Bools, rows: Rows) -> _Tables:
    """Tables with nothing loose in them."""
    return _Tables(
        shapes=shapes,
        ringed=ringed,
        exact=ExactTest(shapes),
        grid=Grid(map(_boxes_of, shapes)),
        cells=CellTable(rows),
        added=_NO_CELLS,
        first_added=len(shapes),
    )


def _boxes_of(shape: Shape | Ring) -> Boxes:
    """`shape.boxes()`, at less cost for the many small discs that are at no pole or antimeridian."""
    if isinstance(shape, Disc):
        box = box_around(shape.lat, shape.lng, (shape.radius_m + _BOX_PAD_M) / EARTH_RADIUS_M)
        if box is not None:
            return Boxes(*np.array(box).reshape(4, 1))
    return shape.boxes()


def _tidied(slots: _Slots, tables: _Tables) -> tuple[_Slots, _Tables]:
    """The tables without the slots that are gone, all cells in one table; and the slots by their new numbers."""
    own = slots.by_ordinal
    kept: Bools = np.zeros(len(tables.shapes), dtype=np.bool_)
    kept[own] = True
    kept[own[tables.ringed[own]] + 1] = True
    if kept.all() and tables.first_added == len(kept):
        return _Slots(Layered(dict(slots.by_id)), own), tables
    numbers = np.where(kept, np.cumsum(kept) - 1, -1)
    shapes = tuple(shape for shape, stays in zip(tables.shapes, kept.tolist(), strict=True) if stays)
    rows = Rows.concatenated(tables.cells.rows, tables.added.rows).renumbered(numbers)
    fresh = _tables_of(shapes, tables.ringed[kept], rows)
    by_id = {fence_id: int(numbers[slot]) for fence_id, slot in slots.by_id.items()}
    return _Slots(Layered(by_id), numbers[own]), fresh


_NO_CELLS = CellTable(Rows.of([], 0))
_NO_TABLES = _Tables((), np.empty(0, dtype=np.bool_), ExactTest(()), Grid(()), _NO_CELLS, _NO_CELLS, 0)
_NO_SLOTS = _Slots(Layered({}), np.empty(0, dtype=np.int64))
_EMPTY = FenceIndex(_Places(()), Layered({}), _NO_SLOTS, _NO_TABLES, MappingProxyType({}), MappingProxyType({}))
