"""Hours of stores and fences, against tables made by hand and against a walk from minute to minute."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.hours import closing_ms, is_open, store_is_open, zone_named
from nearcast.world import OpenHours, SpecialDay, Store, Window

MINUTE_MS = 60_000
NIGHTLY = [OpenHours(weekday=day, opens=22 * 60, closes=6 * 60) for day in range(7)]
SUNDAY = 6


def ms(instant: str) -> int:
    """The instant of a local time with its offset."""
    return int(datetime.fromisoformat(instant).timestamp() * 1000)


def sundays(opens: int, closes: int) -> list[OpenHours]:
    return [OpenHours(weekday=SUNDAY, opens=opens, closes=closes)]


TABLE: list[tuple[str, list[OpenHours] | None, list[SpecialDay], dict[str, bool]]] = [
    # The clock goes from 2:00 to 3:00.
    (
        "Europe/Vienna",
        NIGHTLY,
        [],
        {
            "2026-03-28T21:59:59.999+01:00": False,
            "2026-03-28T22:00+01:00": True,
            "2026-03-29T01:59+01:00": True,
            "2026-03-29T03:00+02:00": True,
            "2026-03-29T05:59:59.999+02:00": True,
            "2026-03-29T06:00+02:00": False,
        },
    ),
    ("Europe/Vienna", sundays(120, 180), [], {"2026-03-29T01:59+01:00": False, "2026-03-29T03:00+02:00": False}),
    (
        "Europe/Vienna",
        sundays(150, 210),
        [],
        {"2026-03-29T01:59+01:00": False, "2026-03-29T03:00+02:00": True, "2026-03-29T03:30+02:00": False},
    ),
    # It goes from 3:00 to 2:00.
    (
        "Europe/Vienna",
        sundays(120, 150),
        [],
        {
            "2026-10-25T01:59+02:00": False,
            "2026-10-25T02:00+02:00": True,
            "2026-10-25T02:30+02:00": False,
            "2026-10-25T02:59+02:00": False,
            "2026-10-25T02:00+01:00": True,
            "2026-10-25T02:29+01:00": True,
            "2026-10-25T02:30+01:00": False,
        },
    ),
    (
        "America/New_York",
        NIGHTLY,
        [],
        {
            "2026-11-01T00:30-04:00": True,
            "2026-11-01T01:30-04:00": True,
            "2026-11-01T01:30-05:00": True,
            "2026-11-01T05:59-05:00": True,
            "2026-11-01T06:00-05:00": False,
            "2026-03-08T01:59-05:00": True,
            "2026-03-08T05:59-04:00": True,
            "2026-03-08T06:00-04:00": False,
        },
    ),
    # Half an hour off the full one.
    (
        "Asia/Kolkata",
        [OpenHours(weekday=0, opens=9 * 60, closes=18 * 60)],
        [],
        {
            "2026-06-01T03:29:59.999+00:00": False,
            "2026-06-01T03:30+00:00": True,
            "2026-06-01T12:29+00:00": True,
            "2026-06-01T12:30+00:00": False,
        },
    ),
    # There was no Friday the 30th: the night of Thursday ends with it, and that of Friday ends on Saturday.
    (
        "Pacific/Apia",
        [OpenHours(weekday=3, opens=22 * 60, closes=6 * 60)],
        [],
        {"2011-12-29T23:59-10:00": True, "2011-12-31T00:00+14:00": False},
    ),
    (
        "Pacific/Apia",
        [OpenHours(weekday=4, opens=22 * 60, closes=6 * 60)],
        [],
        {"2011-12-29T23:59-10:00": False, "2011-12-31T00:00+14:00": True, "2011-12-31T06:00+14:00": False},
    ),
    # Closed on the 25th: the night before ends on it, and no night begins.
    (
        "Europe/Vienna",
        NIGHTLY,
        [SpecialDay(date(2026, 12, 25))],
        {
            "2026-12-25T00:00+01:00": True,
            "2026-12-25T05:59+01:00": True,
            "2026-12-25T06:00+01:00": False,
            "2026-12-25T23:00+01:00": False,
            "2026-12-26T01:00+01:00": False,
            "2026-12-26T22:00+01:00": True,
        },
    ),
    # A night of its own, with nothing in the week: it runs into the next year.
    (
        "America/New_York",
        [],
        [SpecialDay(date(2026, 12, 31), [Window(600, 720), Window(20 * 60, 3 * 60)])],
        {
            "2026-12-31T02:00-05:00": False,
            "2026-12-31T10:00-05:00": True,
            "2026-12-31T12:00-05:00": False,
            "2026-12-31T20:00-05:00": True,
            "2027-01-01T02:59-05:00": True,
            "2027-01-01T03:00-05:00": False,
        },
    ),
    # Always open, but for one day; by the store's own date.
    (
        "Pacific/Apia",
        None,
        [SpecialDay(date(2026, 6, 1))],
        {
            "2026-05-31T23:59+13:00": True,
            "2026-06-01T00:00+13:00": False,
            "2026-06-01T23:59+13:00": False,
            "2026-06-02T00:00+13:00": True,
        },
    ),
    # A special day's night runs into another special day, which is closed.
    (
        "Asia/Kolkata",
        [],
        [SpecialDay(date(2026, 11, 8), [Window(1200, 120)]), SpecialDay(date(2026, 11, 9))],
        {"2026-11-09T01:59+05:30": True, "2026-11-09T02:00+05:30": False, "2026-11-09T20:00+05:30": False},
    ),
]


@pytest.mark.parametrize(("zone", "hours", "special_days", "expected"), TABLE)
def test_by_hand(
    zone: str, hours: list[OpenHours] | None, special_days: list[SpecialDay], expected: dict[str, bool]
) -> None:
    """Clocks that change, nights, and special days on both sides of midnight."""
    store = Store(id="s", name="S", lat=0, lng=0, time_zone=zone, hours=hours, special_days=special_days)
    assert {instant: store_is_open(store, ms(instant)) for instant in expected} == expected


#: Around changes of clocks, and a date that one zone left out.
NIGHTS = [
    ("Europe/Vienna", date(2026, 3, 28)),
    ("Europe/Vienna", date(2026, 10, 24)),
    ("America/New_York", date(2026, 3, 7)),
    ("America/New_York", date(2026, 10, 31)),
    ("Asia/Kolkata", date(2026, 12, 30)),
    ("Pacific/Apia", date(2011, 12, 29)),
    ("Australia/Lord_Howe", date(2026, 4, 4)),
]
minutes = st.integers(0, 1440) | st.sampled_from([0, 60, 120, 150, 180, 1440])
windows = st.builds(Window, opens=minutes, closes=minutes)
weekly = st.builds(OpenHours, weekday=st.integers(0, 6), opens=minutes, closes=minutes)


def open_faces(
    first: date, days: int, hours: list[OpenHours] | None, special_days: list[SpecialDay]
) -> set[tuple[date, int]]:
    """All (date, minute) that the windows of some dates pass, one after the other."""
    special = {day.date: [(window.opens, window.closes) for window in day.windows] for day in special_days}
    faces = set()
    for number in range(-1, days):
        day = first + timedelta(days=number)
        plain = [(each.opens, each.closes) for each in hours or [] if each.weekday == day.weekday()]
        for opens, closes in special.get(day, plain if hours is not None else [(0, 1440)]):
            for minute in range(opens, closes if closes > opens else closes + 1440):
                faces.add((day + timedelta(days=minute // 1440), minute % 1440))
    return faces


@given(
    night=st.sampled_from(NIGHTS),
    hours=st.none() | st.lists(weekly, max_size=4),
    special=st.dictionaries(st.integers(-1, 2), st.lists(windows, max_size=2), max_size=2),
    starts=st.integers(-600, 2_500),
)
def test_minute_by_minute(
    night: tuple[str, date], hours: list[OpenHours] | None, special: dict[int, list[Window]], starts: int
) -> None:
    """It is open exactly when the clock on the wall shows a minute that a window passes on that date."""
    zone, first = ZoneInfo(night[0]), night[1]
    special_days = [SpecialDay(first + timedelta(days=day), found) for day, found in special.items()]
    faces = open_faces(first - timedelta(days=2), 7, hours, special_days)
    at = datetime(first.year, first.month, first.day, tzinfo=UTC) + timedelta(minutes=starts)
    for _ in range(400):
        local = at.astimezone(zone)
        expected = (local.date(), local.hour * 60 + local.minute) in faces
        assert is_open(hours, zone, int(at.timestamp()) * 1000, special_days) == expected, local
        at += timedelta(minutes=1)


@given(
    night=st.sampled_from(NIGHTS),
    hours=st.none() | st.lists(weekly, max_size=3),
    at=st.integers(-600 * MINUTE_MS, 2_500 * MINUTE_MS),
    ahead_ms=st.integers(0, 15 * MINUTE_MS),
)
def test_the_first_instant_that_is_closed(
    night: tuple[str, date], hours: list[OpenHours] | None, at: int, ahead_ms: int
) -> None:
    """Open until then, closed from then on; none if it stays open, and at once if it is closed already."""
    zone, first = ZoneInfo(night[0]), night[1]
    at_ms = int(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()) * 1000 + at
    found = closing_ms(hours, zone, at_ms, at_ms + ahead_ms)
    asked = range(at_ms, at_ms + ahead_ms, 7_919)
    if found is None:
        assert all(is_open(hours, zone, instant) for instant in asked if instant > at_ms)
    else:
        assert at_ms <= found
        assert found < at_ms + ahead_ms or found == at_ms
        assert not is_open(hours, zone, found)
        assert all(is_open(hours, zone, instant) for instant in (*asked, found - 1) if at_ms <= instant < found)


@pytest.mark.parametrize(
    ("zone", "opens", "closes", "at", "found"),
    [
        ("Europe/Vienna", 540, 1127, "2026-06-01T18:40:30+02:00", "2026-06-01T18:47+02:00"),
        ("Asia/Kathmandu", 540, 607, "2026-06-01T10:00+05:45", "2026-06-01T10:07+05:45"),
        # The clock jumps over the end, or back to before the beginning.
        ("Europe/Vienna", 61, 157, "2026-03-29T01:50+01:00", "2026-03-29T03:00+02:00"),
        ("Australia/Lord_Howe", 61, 137, "2026-10-04T01:50+10:30", "2026-10-04T02:30+11:00"),
        ("Europe/Vienna", 167, 211, "2026-10-25T02:50+02:00", "2026-10-25T02:00+01:00"),
    ],
)
def test_when_it_closes(zone: str, opens: int, closes: int, at: str, found: str) -> None:
    """At the minute that the window ends, or when the clock changes."""
    hours = [OpenHours(weekday=day, opens=opens, closes=closes) for day in range(7)]
    assert is_open(hours, ZoneInfo(zone), ms(found) - 1)
    assert closing_ms(hours, ZoneInfo(zone), ms(at), ms(found) + 1) == ms(found)
    assert closing_ms(hours, ZoneInfo(zone), ms(at), ms(found)) is None


def test_a_zone_that_nobody_knows() -> None:
    """None, and no error, whatever the name would be as a path."""
    assert [zone_named(name) for name in ("", "Mars/Olympus", "../secrets", "a\x00b")] == [None] * 4
    assert str(zone_named("Asia/Tokyo")) == "Asia/Tokyo"


@pytest.mark.parametrize(
    ("special_days", "message"),
    [
        ([{"date": "2026-02-29"}], "RFC3339"),
        ([{"date": "24.12."}], "RFC3339"),
        ([{"date": "2026-12-24", "windows": [{"opens": 0, "closes": 1441}]}], "1440"),
        ([{"date": "2026-12-24"}, {"date": "2026-12-24"}], "2026-12-24 twice"),
    ],
)
def test_refused(special_days: list[dict[str, object]], message: str) -> None:
    """A special day is a day of the calendar, and given once."""
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({"id": "s", "name": "S", "lat": 0, "lng": 0, "special_days": special_days}, Store)


@given(hours=st.lists(weekly, max_size=4), at=st.lists(st.integers(0, 20 * 1440), min_size=1, max_size=50))
def test_open_hours_are_a_set_of_minutes_of_the_week(hours: list[OpenHours], at: list[int]) -> None:
    """A store is open exactly in the minutes that its windows cover, over midnight and over the end of the week."""
    store = Store(id="s", name="S", lat=0, lng=0, hours=hours)
    open_minutes: set[int] = set()
    for window in hours:
        start = window.weekday * 1440 + window.opens
        length = window.closes - window.opens if window.closes > window.opens else 1440 - window.opens + window.closes
        open_minutes |= {minute % 10_080 for minute in range(start, start + length)}
    monday_ms = ms("2025-06-02T00:00+00:00")
    for minute in at:
        assert store_is_open(store, monday_ms + minute * MINUTE_MS) == (minute % 10_080 in open_minutes)


def test_open_by_the_stores_own_clock() -> None:
    """Ten in the morning in Tokyo is one at night in London."""
    hours = [OpenHours(weekday=day, opens=9 * 60, closes=17 * 60) for day in range(7)]
    assert store_is_open(
        Store(id="s", name="S", lat=0, lng=0, time_zone="Asia/Tokyo", hours=hours), ms("2025-06-02T01:00+00:00")
    )
    assert not store_is_open(
        Store(id="s", name="S", lat=0, lng=0, time_zone="Europe/London", hours=hours), ms("2025-06-02T01:00+00:00")
    )


def test_no_hours_and_empty_hours() -> None:
    """A store that doesn't say is always open; one with an empty list never is."""
    assert store_is_open(Store(id="s", name="S", lat=0, lng=0), ms("2025-06-02T01:00+00:00"))
    assert not store_is_open(Store(id="s", name="S", lat=0, lng=0, hours=[]), ms("2025-06-02T01:00+00:00"))
