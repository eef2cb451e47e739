"""How likely it is that a device lies about where it is: a doubt from 0 to 1 that rises with signs and fades.

* **Teleports**: the way from the last known place can't be travelled. Places are known as H3 cells of resolution 7
  (5 km^2), so only the distance that surely lies between two cells counts: nothing under a few kilometres is noticed,
  and nobody's position is kept for this. Airliners fly 250 m/s; from `FAST_M_S` on, doubt begins, and from
  `IMPOSSIBLE_M_S` on it is `TELEPORT`.
* **Mock**: the device says itself that its position is made up.
* **Impossible accuracy**: a satellite fix that claims to be exact to less than 10 cm, 0 excepted ("unknown").

Each sign raises the doubt: what is left of the trust is multiplied by one minus its weight. Every plausible fix halves
the doubt per `HALF_LIFE_MS` since the last one, at most `FADE_MS` at once, so that a pause doesn't wash anybody clean.
"""

import math

import numpy as np

from geofence.cover import coarse_cell, middle_of_cell
from geofence.sphere import Floats, distance_m
from nearcast.customer import Presence
from nearcast.events import Location

FAST_M_S = 300.0
IMPOSSIBLE_M_S = 600.0
TELEPORT = 0.6
MOCK = 0.9
EXACT = 0.2
EXACT_M = 0.1
HALF_LIFE_MS = 10 * 60_000
FADE_MS = 60_000
#: Doubt smaller than this is none.
_NOTHING = 0.01
#: So far may two positions be from the middles of their cells, taken together.
_CELL_REACH_M = 5_000.0
#: How finely positions are rounded before their cell is looked up: about a kilometre.
_STEPS_PER_DEGREE = 100
_COLUMNS = 1e6
_NOWHERE = math.inf
#: A cache of pure values: which cells are in it changes no result.
_CELLS: dict[float, int] = {_NOWHERE: 0}
_MOST_CELLS = 65_536


def cells_of(lats: Floats, lngs: Floats) -> list[int]:
    """The H3 cell (resolution 7) of each position, rounded to about a kilometre before; 0 where there is none.

    Many fixes come from few places: most cells are known already.
    """
    keys = np.rint(lats * _STEPS_PER_DEGREE) * _COLUMNS + np.rint(lngs * _STEPS_PER_DEGREE)
    keys[np.isnan(keys)] = _NOWHERE
    wanted: list[float] = keys.tolist()
    try:
        return list(map(_CELLS.__getitem__, wanted))
    except KeyError:
        if len(_CELLS) > _MOST_CELLS:
            _CELLS.clear()
            _CELLS[_NOWHERE] = 0
        for key in wanted:
            if key not in _CELLS:
                _CELLS[key] = _cell_of(key)
        return [_CELLS[key] for key in wanted]


def _cell_of(key: float) -> int:
    row = round(key / _COLUMNS)
    return coarse_cell(row / _STEPS_PER_DEGREE, (key - row * _COLUMNS) / _STEPS_PER_DEGREE)


def notice(presence: Presence, fix: Location, cell: int) -> None:
    """Judge a fix that is newer than `presence.last_ms`, before that is set. `cell` is that of its position."""
    since_ms = fix.ts - presence.last_ms
    signs = []
    if fix.mock:
        signs.append(MOCK)
    if fix.source == "gps" and 0 < fix.accuracy_m < EXACT_M:
        signs.append(EXACT)
    if cell and presence.cell and cell != presence.cell:
        signs.append(_teleport(presence.cell, cell, since_ms))
    trust = math.prod(1 - sign for sign in signs)
    if trust == 1.0:
        doubt = presence.doubt * 0.5 ** (min(since_ms, FADE_MS) / HALF_LIFE_MS)
        presence.doubt = 0.0 if doubt < _NOTHING else round(doubt, 4)
    else:
        presence.doubt = round(1 - (1 - presence.doubt) * trust, 4)
    if cell:
        presence.cell = cell


def _teleport(before: int, after: int, since_ms: int) -> float:
    apart_m = distance_m(*middle_of_cell(before), *middle_of_cell(after)) - _CELL_REACH_M
    speed_m_s = apart_m / max(since_ms / 1000, 1.0)
    return TELEPORT * min(max((speed_m_s - FAST_M_S) / (IMPOSSIBLE_M_S - FAST_M_S), 0.0), 1.0)
