"""Quiet hours and calendar periods, against brute force; and whose clock they go by."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.hours import zone_named
from nearcast.world import Calendar
from offers.hours import began_ms, in_quiet_hours, quiet_until_ms, zone_for
from offers.policy import QuietHours
from tests.offers.examples import STORE, customer

MINUTE_MS = 60_000
WINDOWS = [(21 * 60, 8 * 60), (2 * 60, 3 * 60), (0, 1440), (1, 0), (150, 149), (13 * 60, 14 * 60 + 30), (1440, 30)]


def utc_ms(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * 1000


# Zone, the UTC instant at which its clocks change, and minutes ahead of UTC before and after: from the laws, not from
# the zone database.
CHANGES = [
    ("Europe/Berlin", utc_ms(2025, 3, 30, 1), 60, 120),
    ("Europe/Berlin", utc_ms(2025, 10, 26, 1), 120, 60),
    ("America/New_York", utc_ms(2025, 3, 9, 7), -300, -240),
    ("America/New_York", utc_ms(2025, 11, 2, 6), -240, -300),
    ("Australia/Lord_Howe", utc_ms(2025, 4, 5, 15), 660, 630),  # half an hour
    ("Asia/Kathmandu", utc_ms(2025, 3, 30, 1), 345, 345),  # never
]


def shown_minutes(starts: int, ends: int) -> set[int]:
    """Every minute of the day that a hand going from `starts` to `ends` passes."""
    minutes, minute = set(), starts % 1440
    for _ in range((ends - starts) % 1440 or 1440):
        minutes.add(minute)
        minute = (minute + 1) % 1440
    return minutes


@pytest.mark.parametrize(("zone", "change_ms", "before", "after"), CHANGES)
@pytest.mark.parametrize(("starts", "ends"), WINDOWS)
def test_quiet_hours_minute_by_minute(
    zone: str, change_ms: int, before: int, after: int, starts: int, ends: int
) -> None:
    """Every minute for a day and a half around a change of clocks is quiet exactly if the clock shows a quiet time."""
    window, expected = QuietHours(starts=starts, ends=ends), shown_minutes(starts, ends)
    for at_ms in range(change_ms - 1080 * MINUTE_MS, change_ms + 1080 * MINUTE_MS, MINUTE_MS):
        shown = (at_ms // MINUTE_MS + (before if at_ms < change_ms else after)) % 1440
        assert in_quiet_hours(window, zone_named(zone), at_ms) == (shown in expected), (zone, shown)


def test_quiet_hours_end_at_the_exact_millisecond() -> None:
    """The last millisecond of the window is quiet, the next is not."""
    window = QuietHours(starts=21 * 60, ends=8 * 60)
    assert in_quiet_hours(window, None, utc_ms(2025, 6, 1, 8) - 1)
    assert not in_quiet_hours(window, None, utc_ms(2025, 6, 1, 8))


def test_empty_quiet_hours_are_refused() -> None:
    """A window that starts when it ends could mean never or always, so it is an error."""
    with pytest.raises(ValueError, match="empty"):
        QuietHours(starts=60, ends=60)


def test_the_customers_zone_counts_before_the_stores() -> None:
    """The customer's zone, else the store's, else none (UTC); a zone that nobody knows is passed over."""
    assert str(zone_for(customer(time_zone="Asia/Tokyo"), STORE)) == "Asia/Tokyo"
    for unknown in ("", "Mars/Olympus", "../secrets", "a\x00b"):
        assert str(zone_for(customer(time_zone=unknown), STORE)) == "Europe/Vienna"
        assert zone_for(customer(time_zone=unknown), None) is None


@pytest.mark.parametrize(("zone", "change_ms", "before", "after"), CHANGES)
@pytest.mark.parametrize(("starts", "ends"), WINDOWS)
def test_when_quiet_hours_are_over(zone: str, change_ms: int, before: int, after: int, starts: int, ends: int) -> None:
    """Around a change of clocks: the first minute that isn't quiet any more, as a hand-made clock shows it."""
    window, quiet = QuietHours(starts=starts, ends=ends), shown_minutes(starts, ends)

    def is_quiet(at_ms: int) -> bool:
        return (at_ms // MINUTE_MS + (before if at_ms < change_ms else after)) % 1440 in quiet

    for minutes in range(-1080, 1081, 67):
        at_ms = change_ms + minutes * MINUTE_MS + 7
        told = quiet_until_ms(window, zone_named(zone), at_ms)
        if not is_quiet(at_ms):
            assert told == at_ms
        elif len(quiet) == 1440:
            assert told is None
        else:
            following = (at_ms - 7 + later * MINUTE_MS for later in range(1, 3000))
            assert told == next(instant for instant in following if not is_quiet(instant))


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Africa/Cairo", "Australia/Lord_Howe"]


@given(
    zone=st.sampled_from(ZONES),
    at_s=st.integers(utc_ms(2015, 1, 1) // 1000, utc_ms(2030, 1, 1) // 1000),
    period=st.sampled_from(["day", "week", "month"]),
)
def test_calendar_periods_begin_at_a_midnight_of_the_clock(zone: str, at_s: int, period: Calendar) -> None:
    """The second at which one begins shows a date of the same period, and the second before shows another; in zones
    that skip midnight (São Paulo did, Cairo does) as well."""
    tz = ZoneInfo(zone)

    def shown(second: int) -> tuple[int, ...]:
        local = datetime.fromtimestamp(second, tz)
        if period == "week":
            return tuple(local.isocalendar())[:2]
        return (local.year, local.month, local.day)[: 3 if period == "day" else 2]

    begins_s, rest = divmod(began_ms(period, tz, at_s * 1000 + 999), 1000)
    assert rest == 0
    assert begins_s <= at_s
    assert shown(begins_s) == shown(at_s)
    assert shown(begins_s - 1) != shown(at_s)
