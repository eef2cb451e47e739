"""Cells and whose covers they are in: a hash table in columns, asked about a whole batch in a few calls."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geofence import cover

Numbers = NDArray[np.int64]

#: 2**64 divided by the golden ratio, odd: spreads neighbouring keys over the table (Knuth, TAOCP 3, 6.4).
SPREAD = np.uint64(0x9E3779B97F4A7C15)
_MIN_BITS = 4


class Rows(NamedTuple):
    """Cells and owners. An owner is twice the number of a shape, plus one where the cell is surely inside it."""

    cells: cover.Keys
    owners: NDArray[np.int32]

    @classmethod
    def of(cls, covers: Sequence[cover.Columns], first: int) -> "Rows":
        """The cells of shapes that are numbered from `first` on."""
        if not covers:
            return cls(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32))
        numbers = np.repeat(np.arange(first, first + len(covers)), [len(each.sure) for each in covers])
        sure = np.concatenate([each.sure for each in covers])
        return cls(np.concatenate([each.tagged for each in covers]), (numbers << 1 | sure).astype(np.int32))

    @classmethod
    def concatenated(cls, first: "Rows", second: "Rows") -> "Rows":
        return cls(np.concatenate((first.cells, second.cells)), np.concatenate((first.owners, second.owners)))

    def renumbered(self, numbers: Numbers) -> "Rows":
        """`numbers` has the new number of each shape; -1 for those whose rows are dropped."""
        new = numbers[self.owners >> 1]
        stay = new >= 0
        return Rows(self.cells[stay], (new[stay] << 1 | self.owners[stay] & 1).astype(np.int32))


class CellTable:
    """Rows sorted by the hash of their cell; bucket b has those from `firsts[b]` to before `firsts[b + 1]`. Immutable.

    Of one owner no cell lies above another one.
    """

    __slots__ = ("_ends", "_firsts", "_levels", "_shift", "rows")

    def __init__(self, rows: Rows) -> None:
        # At least twice as many buckets as rows: most cells that are asked about are nobody's.
        bits = max((2 * len(rows.cells)).bit_length(), _MIN_BITS)
        self._shift = np.uint64(64 - bits)
        buckets = self._buckets(rows.cells)
        order = np.argsort(buckets, kind="stable")
        self.rows = Rows(rows.cells[order], rows.owners[order])
        edges: NDArray[np.int32] = np.zeros((1 << bits) + 1, dtype=np.int32)
        np.cumsum(np.bincount(buckets, minlength=1 << bits), out=edges[1:])
        self._firsts, self._ends = edges[:-1], edges[1:]
        self._levels = cover.Levels.of(rows.cells)

    def __len__(self) -> int:
        return len(self.rows.cells)

    def look_up(self, finest: cover.Keys) -> tuple[Numbers, NDArray[np.int32]]:
        """The pairs of a point and an owner in one of whose cells it is; points are given by their finest cells."""
        # Methods, not functions of the same name: on columns as short as these, calls are what it costs.
        wanted = self._levels.ancestors(finest).ravel()
        buckets = self._buckets(wanted)
        firsts = self._firsts[buckets]
        counts = self._ends[buckets] - firsts
        (filled,) = counts.nonzero()
        firsts, counts = firsts[filled], counts[filled]
        # For each filled bucket its own run first, first + 1, ... of rows, laid one after the other.
        ends = counts.cumsum()
        rows = (firsts - ends + counts).repeat(counts) + np.arange(ends[-1] if ends.size else 0)
        asked = filled.repeat(counts)
        (right,) = (self.rows.cells[rows] == wanted[asked]).nonzero()
        return asked[right] % len(finest), self.rows.owners[rows[right]]

    def _buckets(self, cells: cover.Keys) -> Numbers:
        return ((cells * SPREAD) >> self._shift).view(np.int64)
