"""Hours by the face of a clock on the wall: when a store is open, and when a fence is in use.

When clocks go back, both passes of the repeated hour count alike; when they go forward, the hour that is skipped never
comes. A window belongs to the date on which it opens. One that ends on the next day ends there even if that is a
special day, and none of a special day's own is left out because of the day before. The day before is the calendar's,
also where a zone has left a date out.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nearcast.world import OpenHours, SpecialDay, Store, Window

_MINUTE_MS = 60_000
_DAY_MINUTES = 1440
_ALL_DAY = (Window(opens=0, closes=_DAY_MINUTES),)
_DAY = timedelta(days=1)


class Timetable(NamedTuple):
    """When a fence is in use: what `is_open` asks for."""

    hours: Sequence[OpenHours] | None
    special_days: Sequence[SpecialDay] = ()
    narrowed_by: Sequence[SpecialDay] = ()


def store_is_open(store: Store, at_ms: int) -> bool:
    """True if the store is open at this instant."""
    return is_open(store.hours, zone_named(store.time_zone), at_ms, store.special_days)


def is_open(
    hours: Sequence[OpenHours] | None,
    zone: ZoneInfo | None,
    at_ms: int,
    special_days: Sequence[SpecialDay] = (),
    narrowed_by: Sequence[SpecialDay] = (),
) -> bool:
    """True if it is within the windows at this instant, by a clock in `zone` (None: UTC).

    Without `hours` (None) it always is, but for special days; with an empty list it never is, but for special days.
    Those of `special_days` replace the week's windows. Those of `narrowed_by` only take time from windows that open on
    them; where there are no windows, they have nothing to take from.
    """
    if hours is None and not special_days:
        return True
    local = datetime.fromtimestamp(at_ms // 1000, tz=zone or UTC)
    minute, today = local.hour * 60 + local.minute, local.date()
    # A night is still that of the day before.
    return any(
        _hold(_windows_on(day, hours, special_days), since)
        and all(_hold(special.windows, since) for special in narrowed_by if special.date == day)
        for day, since in ((today, minute), (today - _DAY, minute + _DAY_MINUTES))
    )


def closing_ms(
    hours: Sequence[OpenHours] | None,
    zone: ZoneInfo | None,
    at_ms: int,
    until_ms: int,
    special_days: Sequence[SpecialDay] = (),
    narrowed_by: Sequence[SpecialDay] = (),
) -> int | None:
    """The first instant from `at_ms` on and before `until_ms` at which it is not open; None if there is none.

    It goes through the time in small steps: ask for a quarter of an hour, not for a year.
    """
    if hours is None and not special_days:
        return None
    windows: list[Window | OpenHours] = [*(hours or ())]
    for special in (*special_days, *narrowed_by):
        windows += special.windows
    # Zones are whole quarters of an hour apart, and change at one: only these minutes of it can be the first.
    marks = {0, *(minute % 15 for window in windows for minute in (window.opens, window.closes))}
    following = range(at_ms - at_ms % _MINUTE_MS + _MINUTE_MS, until_ms, _MINUTE_MS)
    instants = (at_ms, *(instant for instant in following if instant // _MINUTE_MS % 15 in marks))
    return next((instant for instant in instants if not is_open(hours, zone, instant, special_days, narrowed_by)), None)


# Bounded, and remembers misses too: a name nobody knows would otherwise be looked for on disk every time.
@lru_cache(maxsize=1024)
def zone_named(name: str) -> ZoneInfo | None:
    """The IANA zone, or None if there is none of that name."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _hold(windows: Iterable[Window | OpenHours], minute: int) -> bool:
    """Whether one of the windows of a day holds the minute, counted from that day's midnight."""
    return any(
        window.opens <= minute < window.closes + (_DAY_MINUTES if window.closes <= window.opens else 0)
        for window in windows
    )


def _windows_on(
    day: date, hours: Sequence[OpenHours] | None, special_days: Sequence[SpecialDay]
) -> Iterable[Window | OpenHours]:
    """The windows that open on a day."""
    for special in special_days:
        if special.date == day:
            return special.windows
    if hours is None:
        return _ALL_DAY
    weekday = day.weekday()
    return [window for window in hours if window.weekday == weekday]
