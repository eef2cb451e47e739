"""Special days that only take time from hours: those of a store from the hours of its fences."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from nearcast.hours import closing_ms, is_open
from nearcast.world import OpenHours, SpecialDay, Window
from tests.nearcast.test_hours import MINUTE_MS, NIGHTS, ms, weekly, windows

VIENNA = ZoneInfo("Europe/Vienna")
#: Fridays, 18:00 to 2:00 on Saturday. Christmas Day of 2026 is a Friday.
BAR = [OpenHours(weekday=4, opens=1080, closes=120)]
SPECIAL = st.dictionaries(st.integers(-2, 2), st.lists(windows, max_size=2), max_size=3)


def in_bar(at: str, *special_days: SpecialDay, own: tuple[SpecialDay, ...] = ()) -> bool:
    return is_open(BAR, VIENNA, ms(at), own, special_days)


def test_by_hand() -> None:
    """Never open when the hours say closed; a night belongs to the day on which it begins."""
    thursday, friday = date(2026, 12, 24), date(2026, 12, 25)
    assert not in_bar("2026-12-24T10:00+01:00", SpecialDay(thursday, [Window(540, 840)]))
    assert in_bar("2026-12-25T23:00+01:00")
    for at in ("2026-12-25T23:00+01:00", "2026-12-26T01:00+01:00"):
        assert not in_bar(at, SpecialDay(friday))
        assert in_bar(at, SpecialDay(date(2026, 12, 26)))
    short = SpecialDay(friday, [Window(540, 1320)])
    assert in_bar("2026-12-25T21:59+01:00", short)
    assert not in_bar("2026-12-25T22:00+01:00", short)
    assert not in_bar("2026-12-26T01:00+01:00", short)
    long = SpecialDay(friday, [Window(540, 60)])
    assert [in_bar(f"2026-12-26T0{hour}:00+01:00", long) for hour in (0, 1)] == [True, False]
    assert is_open(None, VIENNA, ms("2026-12-25T12:00+01:00"), (), [SpecialDay(friday)])


def held(found: list[tuple[int, int]], minute: int) -> bool:
    return any(minute in range(opens, closes if closes > opens else closes + 1440) for opens, closes in found)


@given(
    night=st.sampled_from(NIGHTS),
    hours=st.lists(weekly, min_size=1, max_size=4),
    own=SPECIAL,
    around=SPECIAL,
    starts=st.integers(-600, 2_500),
)
def test_minute_by_minute(
    night: tuple[str, date],
    hours: list[OpenHours],
    own: dict[int, list[Window]],
    around: dict[int, list[Window]],
    starts: int,
) -> None:
    """It is open exactly when a date's windows hold the minute, and those around do so too if they name the date."""
    zone, first = ZoneInfo(night[0]), night[1]
    special, narrowing = (
        {first + timedelta(days=day): [(each.opens, each.closes) for each in found] for day, found in days.items()}
        for days in (own, around)
    )
    own_days, days_around = (
        [SpecialDay(first + timedelta(days=day), found) for day, found in days.items()] for days in (own, around)
    )
    at = datetime(first.year, first.month, first.day, tzinfo=UTC) + timedelta(minutes=starts)
    for _ in range(300):
        local = at.astimezone(zone)
        expected = False
        for ago in (0, 1):
            day, minute = local.date() - timedelta(days=ago), local.hour * 60 + local.minute + 1440 * ago
            week = [(each.opens, each.closes) for each in hours if each.weekday == day.weekday()]
            if held(special.get(day, week), minute) and held(narrowing.get(day, [(0, 2880)]), minute):
                expected = True
        assert is_open(hours, zone, int(at.timestamp()) * 1000, own_days, days_around) == expected, local
        at += timedelta(minutes=1)


@given(
    night=st.sampled_from(NIGHTS),
    hours=st.none() | st.lists(weekly, max_size=3),
    own=SPECIAL,
    around=SPECIAL,
    at=st.integers(-600 * MINUTE_MS, 2_500 * MINUTE_MS),
    ahead_ms=st.integers(0, 15 * MINUTE_MS),
)
def test_the_first_instant_that_is_closed(
    night: tuple[str, date],
    hours: list[OpenHours] | None,
    own: dict[int, list[Window]],
    around: dict[int, list[Window]],
    at: int,
    ahead_ms: int,
) -> None:
    """Open until then, closed from then on, also where a special day's window is what ends."""
    zone, first = ZoneInfo(night[0]), night[1]
    own_days, days_around = (
        [SpecialDay(first + timedelta(days=day), found) for day, found in days.items()] for days in (own, around)
    )

    def opens(instant: int) -> bool:
        return is_open(hours, zone, instant, own_days, days_around)

    at_ms = int(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()) * 1000 + at
    found = closing_ms(hours, zone, at_ms, at_ms + ahead_ms, own_days, days_around)
    asked = range(at_ms, at_ms + ahead_ms, 7_919)
    if found is None:
        assert all(opens(instant) for instant in asked if instant > at_ms)
    else:
        assert at_ms <= found
        assert found < at_ms + ahead_ms or found == at_ms
        assert not opens(found)
        assert all(opens(instant) for instant in (*asked, found - 1) if at_ms <= instant < found)
