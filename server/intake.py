"""The door for events from outside: HTTP and WebSocket come through here, Kafka producers write to the log themselves.

An event is acknowledged only once the log has it. Each gets an id (so that a retry can be recognised) and a time.
"""

import uuid
from collections.abc import Sequence

from nearcast import metrics
from nearcast.clock import Clock
from nearcast.errors import InputError
from nearcast.events import MAX_AHEAD_MS, TOPIC_OF, Event, IntakeEvent, encode
from nearcast.ids import EventId
from server.log.base import Entry, EventLog


class Intake:
    """Checks what only the clock can tell, and appends to the log."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock

    def check(self, event: IntakeEvent) -> None:
        """Raise `InputError` for an event whose time lies ahead of ours by more than clocks differ."""
        ahead_ms = event.ts - self._clock.now_ms()
        if ahead_ms > MAX_AHEAD_MS:
            metrics.INTAKE.labels("rejected").inc()
            raise InputError(
                "event_from_the_future", f"`ts` is {ahead_ms} ms ahead of now; {MAX_AHEAD_MS} are allowed", "ts"
            )

    async def append(self, events: Sequence[Event]) -> list[EventId]:
        """Append events of any kind, nearcast's own included; missing ids and times are filled in."""
        now_ms = self._clock.now_ms()
        for event in events:
            if event.id is None:
                event.id = uuid.uuid4().hex
            if event.ts == 0:
                event.ts = now_ms
        await self._log.append([Entry(TOPIC_OF[type(event)], event.customer, encode(event)) for event in events])
        metrics.INTAKE.labels("accepted").inc(len(events))
        return [event.event_id for event in events]
