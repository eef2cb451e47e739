"""The coarse reject: is any fence near this position at all?

Most fixes are near no store, so this runs before any H3 call, on whole batches. A "no" is certain; a "yes" may be
wrong and only costs time. Positions fall into squares of about 50 m; those near a fence are kept in a hash table as
one byte each, a print of the square. Two squares that fall into the same slot leave a mark that lets everything
through there. A fence too big for squares marks whole degrees instead.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from geofence.cells import SPREAD
from geofence.sphere import Bools, Boxes, Floats

_STEPS_PER_DEGREE = 2048
_COLUMNS = 360 * _STEPS_PER_DEGREE + 1
#: A box that spans more squares than this marks degrees.
_MAX_SQUARES = 65_536
#: Table slots for each square: about one in this many positions far from everything meets a square's slot, and of
#: those one in a few dozen is let through.
_ROOM = 8
_MIN_BITS, _MAX_BITS = 10, 26
_PRINT_SHIFT = np.uint64(20)
#: Not odd, so no square's print.
_ANYTHING = 254
_SPREAD_NUMBER, _64_BITS = int(SPREAD), (1 << 64) - 1
#: So many squares are listed at a time.
_AT_ONCE = 1 << 20

Numbers = NDArray[np.int64]


class Grid:
    """Marks around fences. Immutable."""

    __slots__ = ("_big", "_bytes", "_degrees", "_marked", "_shift", "_table")

    def __init__(self, boxes: Iterable[Boxes]) -> None:
        squares, self._degrees = _marks(boxes)
        self._big = bool(self._degrees.any())
        bits = min(max((len(squares) * _ROOM).bit_length(), _MIN_BITS), _MAX_BITS)
        self._shift = np.uint64(64 - bits)
        self._table: NDArray[np.uint8] = np.zeros(1 << bits, dtype=np.uint8)
        self._mark(squares)
        self._marked = len(squares)
        self._bytes = self._table.data

    def extended(self, boxes: Iterable[Boxes]) -> "Grid":
        """The grid with more marks. It does not grow with them: see `crowded`."""
        squares, degrees = _marks(boxes)
        more = object.__new__(Grid)
        more._degrees = self._degrees | degrees
        more._big = bool(more._degrees.any())
        more._shift = self._shift
        more._table = self._table.copy()
        more._mark(squares)
        more._marked = self._marked + len(squares)
        more._bytes = more._table.data
        return more

    @property
    def crowded(self) -> bool:
        """Whether so much was added that far more is let through than need be: time for a new grid."""
        return self._marked * _ROOM > 2 * len(self._table) and len(self._table) < 1 << _MAX_BITS

    def near(self, lats: Floats, lngs: Floats) -> Numbers:
        """The places in the batch of all positions but those that surely no box holds."""
        slots, prints = self._places(_steps(lats, 90) * _COLUMNS + _steps(lngs, 180))
        marks = self._table[slots]
        found: Bools = (marks == prints) | (marks == _ANYTHING)
        if self._big:
            found |= self._degrees[np.floor(lats).astype(np.int64) + 90, np.floor(lngs).astype(np.int64) + 180]
        return found.nonzero()[0]

    def near_few(self, lats: Floats, lngs: Floats) -> Numbers:
        """`near`, one position at a time."""
        found = []
        shift, print_shift, marks, big = int(self._shift), int(_PRINT_SHIFT), self._bytes, self._big
        for place, (lat, lng) in enumerate(zip(lats.tolist(), lngs.tolist(), strict=True)):
            square = int((lat + 90) * _STEPS_PER_DEGREE) * _COLUMNS + int((lng + 180) * _STEPS_PER_DEGREE)
            hashed = square * _SPREAD_NUMBER & _64_BITS
            mark = marks[hashed >> shift]
            if (mark and (mark == _ANYTHING or mark == (hashed >> print_shift & 255 | 1))) or (
                big and self._degrees[math.floor(lat) + 90, math.floor(lng) + 180]
            ):
                found.append(place)
        return np.array(found, dtype=np.int64)

    def _mark(self, squares: Numbers) -> None:
        slots, prints = self._places(squares)
        there = self._table[slots]
        self._table[slots] = np.where((there == 0) | (there == prints), prints, _ANYTHING)
        # Of several squares that fall into one slot, one was written last.
        self._table[slots[self._table[slots] != prints]] = _ANYTHING

    def _places(self, squares: Numbers) -> tuple[Numbers, NDArray[np.uint8]]:
        """The slots of squares, and their prints: odd numbers."""
        hashes = squares.view(np.uint64) * SPREAD
        prints = (hashes >> _PRINT_SHIFT).astype(np.uint8) | np.uint8(1)
        return (hashes >> self._shift).view(np.int64), prints


def _marks(boxes: Iterable[Boxes]) -> tuple[Numbers, Bools]:
    """The squares, each once, and the degrees that these boxes touch."""
    degrees: Bools = np.zeros((181, 361), dtype=np.bool_)
    groups = list(boxes)
    if not groups:
        return np.empty(0, dtype=np.int64), degrees
    west, south, east, north = (np.concatenate([group[side] for group in groups]) for side in range(4))
    row, column = _steps(south, 90), _steps(west, 180)
    rows, columns = _steps(north, 90) - row + 1, _steps(east, 180) - column + 1
    counts = rows * columns
    for box in np.flatnonzero(counts > _MAX_SQUARES).tolist():
        degrees[_degrees(south[box], north[box], 90), _degrees(west[box], east[box], 180)] = True
    small = np.flatnonzero(counts <= _MAX_SQUARES)
    found = [
        _squares(row[some], column[some], columns[some], counts[some])
        for some in np.array_split(small, np.flatnonzero(np.diff(np.cumsum(counts[small]) // _AT_ONCE)) + 1)
    ]
    return np.unique(np.concatenate(found)), degrees


def _squares(row: Numbers, column: Numbers, columns: Numbers, counts: Numbers) -> Numbers:
    """The squares of boxes that begin there, are so wide, and have so many."""
    ends = np.cumsum(counts)
    nth = np.arange(ends[-1] if ends.size else 0) - np.repeat(ends - counts, counts)
    down, across = np.divmod(nth, np.repeat(columns, counts))
    squares: Numbers = np.unique((np.repeat(row, counts) + down) * _COLUMNS + np.repeat(column, counts) + across)
    return squares


def _steps(degrees: Floats, origin: int) -> Numbers:
    # Boxes and positions are cut the same way, and the cut is monotonic: what is in a box is in its squares.
    return ((degrees + origin) * _STEPS_PER_DEGREE).astype(np.int64)


def _degrees(low: float, high: float, origin: int) -> slice:
    return slice(math.floor(low) + origin, math.floor(high) + origin + 1)
