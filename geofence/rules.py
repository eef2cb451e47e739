"""What holds in each fence: its own rules, and those it has from the fences around it."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from nearcast.hours import closing_ms, is_open
from nearcast.world import Fence, OpenHours, SpecialDay

T = TypeVar("T")

DWELL_S = 60.0
EXIT_MARGIN_M = 10.0
#: The last moment that an event can tell.
FOREVER_MS = 9_999_999_999_999


class Rules(NamedTuple):
    """A fence's rules, nothing left open. Times are whole milliseconds."""

    dwell_ms: int
    exit_margin_m: float
    enter_fixes: int
    enter_ms: int
    exit_fixes: int
    exit_ms: int
    #: 0: nobody asks for approaches.
    approach_m: float
    floor: int | None
    #: None: always, as far as the fence goes; its store may be closed.
    hours: Sequence[OpenHours] | None
    #: In place of the week's windows on their dates; or only taking time from them: see `nearcast.hours.is_open`.
    special_days: Sequence[SpecialDay]
    narrowed_by: Sequence[SpecialDay]
    #: In force from then until before then: the time common to it and all fences around it.
    valid_from_ms: int
    valid_until_ms: int

    def in_force(self, at_ms: int) -> bool:
        """Whether it is within the fence's time: before and after that, there is no such fence."""
        return self.valid_from_ms <= at_ms < self.valid_until_ms

    def is_open(self, at_ms: int, zone: ZoneInfo | None) -> bool:
        """Whether it is within the fence's hours; `zone` is its store's (`FenceIndex.zones`), None stands for UTC."""
        return is_open(self.hours, zone, at_ms, self.special_days, self.narrowed_by)

    @property
    def timed(self) -> bool:
        """Whether there is a time at which the fence is not in use."""
        return self.hours is not None or bool(self.special_days) or self.valid_until_ms != FOREVER_MS

    def closing_ms(self, at_ms: int, zone: ZoneInfo | None, until_ms: int) -> int | None:
        """The first instant from `at_ms` on and before `until_ms` at which it is closed or not in force, if any.

        Not for long spans: see `nearcast.hours.closing_ms`.
        """
        if not self.in_force(at_ms):
            return at_ms
        before_ms = min(until_ms, self.valid_until_ms)
        closes_ms = closing_ms(self.hours, zone, at_ms, before_ms, self.special_days, self.narrowed_by)
        if closes_ms is None and self.valid_until_ms < until_ms:
            return self.valid_until_ms
        return closes_ms


def rules_of(fence: Fence, around: Sequence[Fence], of_store: Sequence[SpecialDay] = ()) -> Rules:
    """`around` are the fences around it, inner ones first (`FenceIndex.ancestors`); `of_store` the special days of its
    store.

    Special days replace the windows of hours that stand beside them or farther out. Those that stand farther out than
    the hours say when the place around is closed: a bar doesn't open at noon because its store does so on that day.
    """
    line = (fence, *around)
    hours_at, hours = _nearest([each.hours for each in line])
    days_at, days = _nearest([each.special_days for each in line])
    special_days, narrowed_by = (days or (), ()) if days_at <= hours_at else ((), of_store if days is None else days)

    def first(values: Sequence[float | None], default: float) -> float:
        return next((value for value in values if value is not None), default)

    return Rules(
        # A fix and the timer must agree on which of them is the first that counts.
        dwell_ms=math.ceil(first([each.dwell_s for each in line], DWELL_S) * 1000),
        exit_margin_m=first([each.exit_margin_m for each in line], EXIT_MARGIN_M),
        enter_fixes=int(first([each.enter_fixes for each in line], 1)),
        enter_ms=math.ceil(first([each.enter_s for each in line], 0.0) * 1000),
        exit_fixes=int(first([each.exit_fixes for each in line], 1)),
        exit_ms=math.ceil(first([each.exit_s for each in line], 0.0) * 1000),
        approach_m=fence.approach_m or 0.0,
        floor=next((each.floor for each in line if each.floor is not None), None),
        hours=hours,
        special_days=special_days,
        narrowed_by=narrowed_by,
        valid_from_ms=max(each.valid_from_ms or 0 for each in line),
        valid_until_ms=min(FOREVER_MS if each.valid_until_ms is None else each.valid_until_ms for each in line),
    )


def _nearest(values: Sequence[T | None]) -> tuple[int, T | None]:
    """The first value that is given, and how far out it stands."""
    return next(((place, value) for place, value in enumerate(values) if value is not None), (len(values), None))
