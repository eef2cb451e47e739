"""The door for events from outside: HTTP and WebSocket come through here, Kafka producers write to the log themselves.

An event is acknowledged only once the log has it. Each gets an id (so that a retry can be recognised) and a time.
"""

import uuid
from collections.abc import Sequence

import msgspec

from nearcast.clock import Clock
from nearcast.errors import InputError
from nearcast.events import (
    MAX_AHEAD_MS,
    MAX_EVENT_BYTES,
    TOPIC_OF,
    Event,
    IntakeEvent,
    check_time,
    decode_intake,
    encode,
)
from nearcast.ids import EventId
from server.log.base import Entry, EventLog


def prepare(value: bytes | msgspec.Raw, now_ms: int) -> IntakeEvent:
    """The event that a client sent, with an id and a time. Raises `InputError`."""
    size = len(memoryview(value))
    if size > MAX_EVENT_BYTES:
        raise InputError("event_too_large", f"an event may have {MAX_EVENT_BYTES} bytes, this one has {size}")
    event = decode_intake(value)
    check_time(event.ts)
    if event.ts > now_ms + MAX_AHEAD_MS:
        raise InputError(
            "event_from_the_future", f"`ts` is {event.ts - now_ms} ms ahead; {MAX_AHEAD_MS} are allowed", "$.ts"
        )
    _complete(event, now_ms)
    return event


class Intake:
    """Appends events to the log: those from outside, once prepared, and those that nearcast itself writes."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock

    async def append(self, events: Sequence[Event]) -> list[EventId]:
        """Append events; missing ids and times are filled in. Durable when it returns. Raises `Unavailable`."""
        now_ms = self._clock.now_ms()
        for event in events:
            _complete(event, now_ms)
        await self._log.append([Entry(TOPIC_OF[type(event)], event.customer, encode(event)) for event in events])
        return [event.event_id for event in events]


def _complete(event: Event, now_ms: int) -> None:
    if event.ts == 0:
        event.ts = now_ms
    if event.id is None:
        event.id = uuid.uuid4().hex
