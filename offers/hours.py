"""Local time: quiet hours, calendar periods, and whose clock counts. Opening hours are `nearcast.hours`.

Quiet hours too are judged by the face of a clock on the wall in the zone.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from nearcast.customer import Customer
from nearcast.hours import zone_named
from nearcast.world import Calendar, Store
from offers.policy import QuietHours

_MINUTE_MS = 60_000
#: No window lasts longer: the minute in which it is not quiet may be skipped once, when the clocks change.
_LONGEST_MINUTES = 2 * 1440


def in_quiet_hours(window: QuietHours, zone: ZoneInfo | None, at_ms: int) -> bool:
    """True if a clock in `zone` (None: UTC) shows a time within the window."""
    local = datetime.fromtimestamp(at_ms // 1000, tz=zone or UTC)
    minute = local.hour * 60 + local.minute
    if window.starts < window.ends:
        return window.starts <= minute < window.ends
    return minute >= window.starts or minute < window.ends


def quiet_until_ms(window: QuietHours, zone: ZoneInfo | None, at_ms: int) -> int | None:
    """The first instant from `at_ms` on that is not quiet; None if there is none."""
    if not in_quiet_hours(window, zone, at_ms):
        return at_ms
    return _next_loud_ms(window, zone, at_ms // _MINUTE_MS)


# A night's moments ask for the same few minutes and zones.
@lru_cache(maxsize=1024)
def _next_loud_ms(window: QuietHours, zone: ZoneInfo | None, minute: int) -> int | None:
    # Zones are whole quarters of an hour apart, and change at one: only these minutes of it can be the first.
    marks = (0, window.ends % 15)
    following = range(minute + 1, minute + 1 + _LONGEST_MINUTES)
    instants = (later * _MINUTE_MS for later in following if later % 15 in marks)
    return next((instant for instant in instants if not in_quiet_hours(window, zone, instant)), None)


# Moments of one batch ask for the same few days.
@lru_cache(maxsize=1024)
def _begin_ms(period: Calendar, zone: ZoneInfo | None, quarter: int) -> int:
    local = datetime.fromtimestamp(quarter * 900, tz=zone or UTC)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if period == "week":
        midnight -= timedelta(days=midnight.weekday())
    elif period == "month":
        midnight = midnight.replace(day=1)
    return round(midnight.timestamp()) * 1000


def began_ms(period: Calendar, zone: ZoneInfo | None, at_ms: int) -> int:
    """When the calendar period that `at_ms` is in began, by a clock in `zone` (None: UTC).

    Where the clocks skip midnight, a day begins when they do; where they show it twice, the first time.
    """
    # Clocks change at a quarter of an hour, and midnights are at one.
    return _begin_ms(period, zone, at_ms // 900_000)


def zone_for(customer: Customer, store: Store | None) -> ZoneInfo | None:
    """The customer's own zone; if unset or unknown, the store's; else None, which means UTC."""
    zone = zone_named(customer.time_zone)
    if zone is None and store is not None:
        zone = zone_named(store.time_zone)
    return zone
