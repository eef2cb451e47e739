"""Local time: quiet hours, and whose clock counts. Opening hours are `nearcast.hours`.

Quiet hours too are judged by the face of a clock on the wall in the zone.
"""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from nearcast.customer import Customer
from nearcast.hours import zone_named
from nearcast.world import Store
from offers.policy import QuietHours


def in_quiet_hours(window: QuietHours, zone: ZoneInfo | None, at_ms: int) -> bool:
    """True if a clock in `zone` (None: UTC) shows a time within the window."""
    local = datetime.fromtimestamp(at_ms // 1000, tz=zone or UTC)
    minute = local.hour * 60 + local.minute
    if window.starts < window.ends:
        return window.starts <= minute < window.ends
    return minute >= window.starts or minute < window.ends


def zone_for(customer: Customer, store: Store | None) -> ZoneInfo | None:
    """The customer's own zone; if unset or unknown, the store's; else None, which means UTC."""
    zone = zone_named(customer.time_zone)
    if zone is None and store is not None:
        zone = zone_named(store.time_zone)
    return zone
