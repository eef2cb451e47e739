"""Timers: rows committed with the state that come back as events of the log once their time has come.

Because a fired timer is an event like any other, replays see it at the same place, and firing twice is harmless: the
fold accepts a timer only if the customer still waits for exactly that one.
"""

import asyncio
import logging
from collections.abc import Callable

from nearcast.clock import Clock
from nearcast.errors import Unavailable
from nearcast.events import Timer as TimerEvent
from nearcast.ids import ANONYMOUS_PREFIX, CustomerId, derived_event_id
from server.intake import Intake
from server.state import StateStore, Timer

logger = logging.getLogger("nearcast.server.timers")

_POLL_S = 0.25


class TimerPump:
    """Moves due timers of the owned partitions from the store to the log."""

    def __init__(self, state: StateStore, intake: Intake, owned: Callable[[], frozenset[int]], clock: Clock) -> None:
        self._state = state
        self._intake = intake
        self._owned = owned
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                for partition in self._owned():
                    await self.fire(partition)
            except Unavailable as error:
                logger.warning("timers wait: %s", error)
            await asyncio.sleep(_POLL_S)

    async def fire(self, partition: int) -> int:
        """Append an event for every due timer of a partition; returns how many."""
        due = await self._state.due_timers(partition, self._clock.now_ms())
        if due:
            await self._intake.append([_event_of(timer) for timer in due])
            # Only now: had we crashed before, the next owner would have fired them again, harmlessly.
            await self._state.forget_timers(partition, due)
        return len(due)


def _event_of(timer: Timer) -> TimerEvent:
    anonymous = timer.customer.startswith(ANONYMOUS_PREFIX)
    return TimerEvent(
        id=derived_event_id("timer", timer.customer, timer.kind, str(timer.due_ms)),
        uid=None if anonymous else timer.customer,
        anonymous_id=CustomerId(timer.customer.removeprefix(ANONYMOUS_PREFIX)) if anonymous else None,
        ts=timer.due_ms,
        kind=timer.kind,
        due_ms=timer.due_ms,
    )
