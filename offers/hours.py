"""Local time: opening hours and quiet hours.

Both are judged by the face of a clock on the wall in the zone. So when clocks go back, both passes of the repeated hour
count alike; when they go forward, the hour that is skipped never comes.
"""

from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nearcast.customer import Customer
from nearcast.world import OpenHours, Store
from offers.policy import QuietHours


def is_open(store: Store, at_ms: int) -> bool:
    """True if the store is open at this instant. Without `hours` it always is; with an empty list it never is."""
    if store.hours is None:
        return True
    weekday, minute = _local(zone_named(store.time_zone), at_ms)
    return any(_covers(window, weekday, minute) for window in store.hours)


def in_quiet_hours(window: QuietHours, zone: ZoneInfo | None, at_ms: int) -> bool:
    """True if a clock in `zone` (None: UTC) shows a time within the window."""
    _, minute = _local(zone, at_ms)
    if window.starts < window.ends:
        return window.starts <= minute < window.ends
    return minute >= window.starts or minute < window.ends


def zone_for(customer: Customer, store: Store | None) -> ZoneInfo | None:
    """The customer's own zone; if unset or unknown, the store's; else None, which means UTC."""
    zone = zone_named(customer.time_zone)
    if zone is None and store is not None:
        zone = zone_named(store.time_zone)
    return zone


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


def _local(zone: ZoneInfo | None, at_ms: int) -> tuple[int, int]:
    """Weekday (Monday is 0) and minute since midnight."""
    local = datetime.fromtimestamp(at_ms // 1000, tz=zone or ZoneInfo("UTC"))
    return local.weekday(), local.hour * 60 + local.minute


def _covers(window: OpenHours, weekday: int, minute: int) -> bool:
    if window.opens < window.closes:
        return weekday == window.weekday and window.opens <= minute < window.closes
    if weekday == window.weekday:
        return minute >= window.opens
    return weekday == (window.weekday + 1) % 7 and minute < window.closes
