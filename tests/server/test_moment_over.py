"""Moments that end early or wait, with a real engine on a real store: recalls, freed reservations, quiet hours."""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from nearcast.decisions import Reason
from nearcast.events import TOPIC_OF, Action, Consent, Event, Location, Profile, Receipt, Timer, encode
from nearcast.fold import HOLD_TIMER, PRESENCE_TIMER
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import Message, OutboxEntry, Recall, Released
from nearcast.world import Promotion, Where, Words
from offers.policy import Policy, QuietHours
from offers.worldfile import WorldFile
from server.log.base import Record
from server.world import WorldStore
from tests.oracle import stored_timers
from tests.server.rig import PARTITIONS, Playback, committed, engine_on
from tests.server.town import LNG, WORLD, metres_north

#: A day's noon, UTC, in winter.
NOON = 20_775 * 86_400_000 + 43_200_000
HOUR = 3_600_000
ANN = CustomerId("ann")
WORDS = {"en": Words(title="x")}
TOWN = WorldFile(
    stores=WORLD.stores,
    fences=WORLD.fences,
    products=WORLD.products,
    promotions=[
        Promotion(id="inside", name="i", trigger="enter", where=Where(kinds=["store"]), deadline_s=3_600, words=WORDS),
        Promotion(id="open", name="o", trigger="app_open", deadline_s=600, in_quiet_hours="hold", caps=[], words=WORDS),
        Promotion(id="stay", name="s", trigger="dwell", where=Where(kinds=["store"]), deadline_s=3_600, words=WORDS),
        Promotion(id="bye", name="b", trigger="exit", in_quiet_hours="hold", kind="notice", caps=[], words=WORDS),
        Promotion(id="look", name="l", trigger="product_view", deadline_s=600, caps=[], words=WORDS),
    ],
    stock=WORLD.stock,
)
See = Callable[..., Awaitable[list[OutboxEntry]]]


@pytest.fixture
async def see(redis: Redis) -> See:
    """Works events off, and returns what they put into the outbox."""
    world = WorldStore(redis)
    await world.put(TOWN)
    engine = engine_on(redis, Playback(), world, policy=Policy(quiet_hours=QuietHours(starts=22 * 60, ends=7 * 60)))
    await engine.follow_assignment()
    ends = itertools.count()

    async def process(*events: Event) -> list[OutboxEntry]:
        before = (await committed(redis)).outbox
        await engine.process(
            [
                Record(
                    topic=TOPIC_OF[type(event)],
                    partition=partition_of(event.customer, PARTITIONS),
                    position=str(next(ends)),
                    key=event.customer,
                    value=encode(event),
                    arrived_ms=event.ts,
                )
                for event in events
            ]
        )
        return [entry for entry in (await committed(redis)).outbox if entry not in before]

    return process


_numbers = itertools.count()


def new(event_type: Any, ts: int, /, **fields: Any) -> Any:
    return event_type(id=f"e{next(_numbers)}", uid="ann", ts=ts, **fields)


def fixes(metres: float, first_ms: int, count: int = 4) -> list[Event]:
    lat = metres_north(metres)
    return [
        new(Location, first_ms + n * 15_000, lat=lat, lng=LNG, source="beacon", accuracy_m=1.0) for n in range(count)
    ]


async def enters(see: See, at_ms: int) -> Message:
    found = await see(new(Consent, at_ms - 1_000, scope="websocket", granted=True), *fixes(5.0, at_ms))
    (message,) = found
    assert isinstance(message, Message)
    return message


async def test_leaving_recalls(see: See) -> None:
    """Who leaves the store before they have opened the offer: it is recalled, once they are out."""
    message = await enters(see, NOON)
    found = await see(*fixes(300.0, NOON + 120_000))
    (entry,) = [entry for entry in found if isinstance(entry, Recall)]
    assert (entry.message, entry.reason, entry.kind) == (message.id, "left", "offer")


async def test_what_was_opened_stays(see: See) -> None:
    """Who has opened it keeps it."""
    message = await enters(see, NOON)
    opened = new(Receipt, NOON + 90_000, message=message.id, decision=message.decision, status="opened")
    assert not [entry for entry in await see(opened, *fixes(300.0, NOON + 120_000)) if isinstance(entry, Recall)]


async def test_leaving_frees_what_was_reserved(see: See) -> None:
    """Who has applied the store's offer, and leaves: what is reserved for them there is to be freed."""
    message = await enters(see, NOON)
    applied = new(Receipt, NOON + 90_000, message=message.id, decision=message.decision, status="applied")
    found = await see(applied, *fixes(300.0, NOON + 120_000))
    (entry,) = [entry for entry in found if isinstance(entry, Released | Recall)]
    assert (entry.customer, entry.store) == (ANN, message.store)
    assert isinstance(entry, Released)
    assert NOON + 120_000 <= entry.at_ms < NOON + 300_000


async def test_falling_silent_recalls(see: See, redis: Redis) -> None:
    """Whose phone says nothing more is gone a quarter of an hour later, and what was decided since is recalled, too."""
    await enters(see, NOON)
    for _ in range(3):
        due = {kind: at_ms for (_, kind), at_ms in (await stored_timers(redis, PARTITIONS)).items()}
        timers = [new(Timer, due[PRESENCE_TIMER], kind=PRESENCE_TIMER, due_ms=due[PRESENCE_TIMER])]
        found = await see(*timers)
        if any(isinstance(entry, Recall) for entry in found):
            break
        for entry in found:
            assert isinstance(entry, Message)
    recalled = {entry.message for entry in (await committed(redis)).outbox if isinstance(entry, Recall)}
    sent = {entry.id for entry in (await committed(redis)).outbox if isinstance(entry, Message)}
    assert len(sent) == 2
    assert recalled == sent


async def test_in_one_batch(see: See) -> None:
    """In and out again within one batch: the message, and its recall behind it."""
    consent = new(Consent, NOON - 1_000, scope="websocket", granted=True)
    found = await see(consent, *fixes(5.0, NOON), *fixes(300.0, NOON + 120_000))
    message, recall, released, *_ = found
    assert isinstance(message, Message)
    assert isinstance(recall, Recall)
    assert (recall.message, type(released)) == (message.id, Released)


async def test_an_opt_out_recalls(see: See) -> None:
    """Nothing stays on the screen of who doesn't want anything any more."""
    message = await enters(see, NOON)
    (entry,) = await see(new(Consent, NOON + 120_000, scope="all", granted=False))
    assert isinstance(entry, Recall)
    assert (entry.message, entry.reason) == (message.id, Reason.OPTED_OUT)


async def test_quiet_hours_hold(see: See, redis: Redis) -> None:
    """A moment of quiet hours whose promotion waits is decided when they end, by the customer's clock: once, and by
    what is true then."""
    night = NOON + 11 * HOUR
    consent = new(Consent, night - 1_000, scope="websocket", granted=True)
    zone = new(Profile, night - 1_000, time_zone="Europe/Vienna")
    assert (
        await see(zone, consent, new(Action, night, action="app_open"), new(Action, night + 1, action="app_open")) == []
    )
    held = (await committed(redis)).decisions.values()
    assert {(each.reason, each.outcome) for each in held} == {(Reason.HELD, "nothing")}
    # 7 o'clock in Vienna is 6 o'clock UTC in November.
    due_ms = NOON + 18 * HOUR
    assert {each.held_until_ms for each in held} == {due_ms}
    assert (await stored_timers(redis, PARTITIONS))[ANN, HOLD_TIMER] == due_ms
    (message,) = await see(new(Timer, due_ms, kind=HOLD_TIMER, due_ms=due_ms))
    assert isinstance(message, Message)
    assert (message.at_ms, message.deadline_ms) == (due_ms, due_ms + 600_000)
    assert (ANN, HOLD_TIMER) not in await stored_timers(redis, PARTITIONS)
    decisions = (await committed(redis)).decisions
    assert decisions[message.decision].moment.held_since_ms == night + 1


async def test_quiet_hours_drop(see: See, redis: Redis) -> None:
    """Others are dropped, and no timer waits for them."""
    night = NOON + 11 * HOUR
    consent = new(Consent, night - 1_000, scope="websocket", granted=True)
    assert await see(consent, new(Action, night, action="product_view", sku="beans")) == []
    (decision,) = (await committed(redis)).decisions.values()
    assert decision.reason == Reason.QUIET_HOURS
    assert (ANN, HOLD_TIMER) not in await stored_timers(redis, PARTITIONS)


async def test_a_held_goodbye_is_no_second_one(see: See) -> None:
    """Who left at night is told in the morning; what they got since they came back stays."""
    night = NOON + 11 * HOUR
    await see(new(Consent, night - HOUR, scope="websocket", granted=True), *fixes(5.0, night))
    assert not [entry for entry in await see(*fixes(300.0, night + 120_000)) if isinstance(entry, Message)]
    back = await see(*fixes(5.0, NOON + 20 * HOUR))
    assert [type(entry) for entry in back] == [Message]
    due_ms = NOON + 19 * HOUR
    found = await see(new(Timer, due_ms, kind=HOLD_TIMER, due_ms=due_ms))
    assert {type(entry) for entry in found} == {Message}


async def test_withdrawn_while_it_waits(see: See, redis: Redis) -> None:
    """Whoever opts out at night gets nothing in the morning."""
    night, due_ms = NOON + 11 * HOUR, NOON + 19 * HOUR
    consent = new(Consent, night - 1_000, scope="websocket", granted=True)
    assert await see(consent, new(Action, night, action="app_open")) == []
    withdrawn = new(Consent, night + HOUR, scope="all", granted=False)
    assert await see(withdrawn, new(Timer, due_ms, kind=HOLD_TIMER, due_ms=due_ms)) == []
    reasons = {each.reason for each in (await committed(redis)).decisions.values()}
    assert reasons == {Reason.HELD}
    assert (ANN, HOLD_TIMER) not in await stored_timers(redis, PARTITIONS)
