"""The coarse reject: is any fence near this position at all?

Most fixes are near no store, so this runs before any H3 call, on whole batches. A "no" is certain; a "yes" may be
wrong and only costs time. Positions fall into squares of about 100 m, kept as marks in a hashed bit table; a fence
too big for that marks whole degrees instead.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from geofence.sphere import Bools, Boxes, Floats

_STEPS_PER_DEGREE = 1024
_COLUMNS = 360 * _STEPS_PER_DEGREE + 1
#: A box that spans more squares than this marks degrees.
_MAX_SQUARES = 65_536
#: Table slots for each mark: about one in this many positions far from everything is let through.
_ROOM = 16
_MIN_BITS, _MAX_BITS = 10, 24
#: 2**64 divided by the golden ratio, odd: spreads neighbouring squares over the table (Knuth, TAOCP 3, 6.4).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)

Squares = NDArray[np.int64]


class Grid:
    """Marks around fences. Immutable."""

    __slots__ = ("_degrees", "_shift", "_table")

    def __init__(self, boxes: Iterable[Boxes]) -> None:
        self._degrees: Bools = np.zeros((181, 361), dtype=np.bool_)
        small: list[tuple[range, range]] = []
        for group in boxes:
            for west, south, east, north in zip(*(side.tolist() for side in group), strict=True):
                rows, columns = _span(south, north, 90), _span(west, east, 180)
                if len(rows) * len(columns) <= _MAX_SQUARES:
                    small.append((rows, columns))
                else:
                    self._degrees[_degrees(south, north, 90), _degrees(west, east, 180)] = True
        marks = sum(len(rows) * len(columns) for rows, columns in small)
        bits = min(max((marks * _ROOM).bit_length(), _MIN_BITS), _MAX_BITS)
        self._shift = np.uint64(64 - bits)
        self._table: Bools = np.zeros(1 << bits, dtype=np.bool_)
        for rows, columns in small:
            squares = np.arange(rows.start, rows.stop)[:, None] * _COLUMNS + np.arange(columns.start, columns.stop)
            self._table[self._slots(squares)] = True
        self._table.setflags(write=False)
        self._degrees.setflags(write=False)

    def near(self, lats: Floats, lngs: Floats) -> Bools:
        """False where surely no box holds the position."""
        squares = _steps(lats, 90) * _COLUMNS + _steps(lngs, 180)
        rows, columns = np.floor(lats).astype(np.int64) + 90, np.floor(lngs).astype(np.int64) + 180
        found: Bools = self._table[self._slots(squares)] | self._degrees[rows, columns]
        return found

    def _slots(self, squares: Squares) -> NDArray[np.int64]:
        return ((squares.astype(np.uint64) * _SPREAD) >> self._shift).astype(np.int64)


def _steps(degrees: Floats, origin: int) -> Squares:
    # Boxes and positions are cut the same way, and the cut is monotonic: what is in a box is in its squares.
    return np.floor((degrees + origin) * _STEPS_PER_DEGREE).astype(np.int64)


def _span(low: float, high: float, origin: int) -> range:
    first, last = _steps(np.array([low, high]), origin).tolist()
    return range(first, last + 1)


def _degrees(low: float, high: float, origin: int) -> slice:
    return slice(math.floor(low) + origin, math.floor(high) + origin + 1)
