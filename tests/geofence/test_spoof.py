"""Doubt: what raises it, what lets it fade, and what is kept for it."""

import numpy as np
import pytest
from h3.api import basic_int as h3  # type: ignore[import-untyped]  # it ships no types
from hypothesis import given
from hypothesis import strategies as st

from geofence.spoof import MOCK, TELEPORT, cells_of, notice
from nearcast.customer import Presence
from nearcast.events import Location
from tests.geofence.places import metres_between

VIENNA, GRAZ, NEW_YORK = (48.2, 16.37), (47.07, 15.44), (40.7, -74.0)
START_MS = 1_750_000_000_000


def see(presence: Presence, at_s: float, place: tuple[float, float], **fields: object) -> float:
    """Show a fix to somebody; returns the doubt after it."""
    ts = START_MS + round(at_s * 1000)
    fix = Location(uid="u", ts=ts, lat=place[0], lng=place[1], **fields)  # type: ignore[arg-type]
    (cell,) = cells_of(np.array([place[0]]), np.array([place[1]]))
    notice(presence, fix, cell)
    presence.last_ms = ts
    return presence.doubt


def test_a_teleport_raises_doubt_and_a_journey_does_not() -> None:
    """Vienna to Graz in a minute is no journey, in two hours it is; New York in nine is a flight."""
    assert see(presence := Presence(), 0, VIENNA) == 0.0
    assert see(presence, 60, GRAZ) == TELEPORT
    for place, seconds in ((GRAZ, 7_200), (NEW_YORK, 9 * 3_600)):
        see(traveller := Presence(), 0, VIENNA)
        assert see(traveller, seconds, place) == 0.0


def test_jitter_at_the_border_of_cells_is_no_teleport() -> None:
    """Two kilometres in a second cross a border, and say nothing."""
    presence = Presence()
    see(presence, 0, VIENNA)
    for second in range(1, 20):
        assert see(presence, second, (VIENNA[0] + 0.02 * (second % 2), VIENNA[1])) == 0.0


def test_signs_add_up_and_fade() -> None:
    """Twice is worse than once; plausible fixes halve the doubt in ten minutes, a long silence doesn't."""
    presence = Presence()
    see(presence, 0, VIENNA)
    once = see(presence, 10, GRAZ)
    assert see(presence, 20, VIENNA) > once
    for minute in range(1, 11):
        doubt = see(presence, 20 + 60 * minute, VIENNA)
    assert doubt == pytest.approx((1 - (1 - once) ** 2) / 2, rel=0.01)
    assert see(presence, 20 + 600 + 86_400, VIENNA) > doubt * 0.9
    for minute in range(1, 90):
        see(presence, 100_000 + 60 * minute, VIENNA)
    assert presence.doubt == 0.0


def test_what_the_device_says_itself() -> None:
    """A mock location is doubted at once; 0 for an unknown accuracy is common, 5 cm from a satellite is not."""
    assert see(Presence(), 0, VIENNA, mock=True) == MOCK
    assert see(Presence(), 0, VIENNA, accuracy_m=0.0) == 0.0
    assert see(Presence(), 0, VIENNA, accuracy_m=0.05) == 0.2
    assert see(Presence(), 0, VIENNA, accuracy_m=0.05, source="beacon") == 0.0


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=20))
def test_cells(positions: list[tuple[float, float]]) -> None:
    """One H3 cell of resolution 7 per position, within a few kilometres of it, whatever else is in the batch."""
    lats, lngs = (np.array(side) for side in zip(*positions, strict=True))
    cells = cells_of(lats, lngs)
    for (lat, lng), cell in zip(positions, cells, strict=True):
        assert h3.get_resolution(cell) == 7
        assert metres_between(lat, lng, *h3.cell_to_latlng(cell)) < 2_500
        assert cells_of(np.array([lat]), np.array([lng])) == [cell]


def test_no_cell_without_coordinates() -> None:
    """A fix without a position has none, and leaves the last known place as it is."""
    assert cells_of(np.array([np.nan, 48.2]), np.array([np.nan, 16.37]))[0] == 0
    presence = Presence(cell=cells_of(np.array([48.2]), np.array([16.37]))[0])
    before = presence.cell
    notice(presence, Location(uid="u", ts=START_MS, zones=["x"]), 0)
    assert presence.cell == before
