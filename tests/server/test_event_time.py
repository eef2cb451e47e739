"""Event time: late and out-of-order events, and what happens by itself when its time has come."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from models.registry import FixedModels
from nearcast import fold, topics
from nearcast.clock import ManualClock, SystemClock
from nearcast.customer import Customer, Presence
from nearcast.decisions import Decision
from nearcast.events import (
    TOPIC_OF,
    Action,
    Cart,
    Consent,
    Erase,
    Event,
    Identify,
    Line,
    Location,
    Profile,
    Purchase,
    Receipt,
    Timer,
    encode,
)
from nearcast.fold import FoldRules
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import Emitted, Message
from nearcast.world import Promotion, Where, Words
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.budgets import Leases
from server.engine import Engine
from server.intake import Intake
from server.log.base import Record
from server.log.streams import StreamsLog
from server.state import Known, StateStore
from server.timers import TimerPump
from server.world import WorldStore
from tests.oracle import stored_timers
from tests.server.rig import PARTITIONS, SCORER, Bench, Playback, committed
from tests.server.town import LNG, WORLD, metres_north

NOW = 1_795_000_000_000
MINUTE = 60_000
HOUR = 60 * MINUTE
#: How long the town's store fence has to be stayed in for a dwell.
DWELL = 60_000
SILENCE = 15 * MINUTE + 1
ANN = CustomerId("ann")
#: Something to say about everything that happens to a stay, so that its moment leaves a decision.
TOWN = WorldFile(
    stores=WORLD.stores,
    fences=WORLD.fences,
    products=WORLD.products,
    promotions=[
        Promotion(id=name, name=name, trigger=trigger, where=Where(kinds=["store"]), kind="assist", words=words)
        for words in [{"en": Words(title="x")}]
        for name, trigger in [("in", "enter"), ("stay", "dwell"), ("out", "exit")]
    ]
    + [Promotion(id="look", name="l", trigger="product_view", deadline_s=300, words={"en": Words(title="x")})]
    + [Promotion(id="open", name="o", trigger="app_open", deadline_s=900, words={"en": Words(title="x")})],
    stock=WORLD.stock,
)

_numbers = itertools.count()


class Desk:
    """An engine whose log is written event by event: what is shown to it, it has committed."""

    def __init__(self, redis: Redis, engine: Engine) -> None:
        self.redis = redis
        self._engine = engine
        self._ends = itertools.count()

    async def see(self, *events: Event, arrived_ms: int | None = None) -> None:
        """Work these events off as one batch; they arrive at the time of each, or at `arrived_ms`."""
        await self._engine.process(
            [
                Record(
                    topic=TOPIC_OF[type(event)],
                    partition=partition_of(event.customer, PARTITIONS),
                    position=str(next(self._ends)),
                    key=event.customer,
                    value=encode(event),
                    arrived_ms=event.ts if arrived_ms is None else arrived_ms,
                )
                for event in events
            ]
        )

    async def ann(self) -> Known:
        return (await committed(self.redis)).customers.get(ANN) or Known(Customer(id=ANN), Presence())

    async def decided(self, trigger: str) -> list[Decision]:
        found = (await committed(self.redis)).decisions.values()
        return [decision for decision in found if decision.moment.trigger == trigger]

    async def timer(self, kind: str) -> int | None:
        """When ann's timer of a kind is due, as it stands in the store."""
        return (await stored_timers(self.redis, PARTITIONS)).get((ANN, kind))


@pytest.fixture
async def desk(redis: Redis) -> Desk:
    world = WorldStore(redis)
    await world.put(TOWN)
    engine = Engine(
        consumer=Playback(),
        state=StateStore(redis, PARTITIONS),
        world=world,
        budgets=Leases(redis, PARTITIONS, SystemClock()),
        models=FixedModels(SCORER),
        rules=FoldRules(),
        policy=Policy(),
        clock=SystemClock(),
        batch_events=100,
        cached_customers=100,
    )
    await engine.follow_assignment()
    return Desk(redis, engine)


def about(ts: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"e{next(_numbers)}", "uid": "ann", "ts": ts} | fields


def fix(ts: int, metres: float = 0.0) -> Location:
    return Location(**about(ts), lat=metres_north(metres), lng=LNG, accuracy_m=5.0)


def cart(ts: int, action: Any = "add", sku: str = "beans", quantity: int = 1) -> Cart:
    return Cart(**about(ts), action=action, sku=sku, quantity=quantity)


def due(kind: str, at_ms: int | None) -> Timer:
    assert at_ms is not None
    return Timer(**about(at_ms), kind=kind, due_ms=at_ms)


def late_events(topic: str) -> float:
    return REGISTRY.get_sample_value("nearcast_events_total", {"topic": topic, "result": "late"}) or 0.0


# Late: older than the bound when it arrives.


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (Purchase(**about(NOW), items=[Line(sku="beans", amount_cents=500)]), "history"),
        (Consent(**about(NOW), scope="sms", granted=True), "consents"),
        (Profile(**about(NOW), name="Ann"), "name"),
    ],
)
async def test_what_no_order_matters_for_is_never_late(desk: Desk, event: Event, field: str) -> None:
    """Purchases, consents and profiles are folded however late they come."""
    await desk.see(event, arrived_ms=NOW + 48 * HOUR)
    assert getattr((await desk.ann()).customer, field) != getattr(Customer(id=ANN), field)


async def test_a_late_sign_in(desk: Desk) -> None:
    """What a visitor had gathered is taken over however late their sign-in comes."""
    await desk.see(Cart(id="c", anonymous_id="d7", ts=NOW, action="add", sku="beans"))
    await desk.see(Identify(id="i", uid="ann", anonymous_id="d7", ts=NOW + 1), arrived_ms=NOW + 48 * HOUR)
    (entry,) = (await committed(desk.redis)).outbox
    assert isinstance(entry, Emitted)
    assert entry.key == "ann"


@pytest.mark.parametrize("event", [fix(NOW), cart(NOW)])
async def test_late_fixes_and_carts_are_dropped(desk: Desk, event: Event) -> None:
    """An hour and a millisecond late, a fix or a change of the cart changes nothing, and is counted."""
    topic = TOPIC_OF[type(event)]
    before = late_events(topic)
    await desk.see(event, arrived_ms=NOW + HOUR + 1)
    assert await desk.ann() == Known(Customer(id=ANN), Presence())
    assert await stored_timers(desk.redis, PARTITIONS) == {}
    assert late_events(topic) == before + 1


@pytest.mark.parametrize("event", [fix(NOW), cart(NOW)])
async def test_just_in_time(desk: Desk, event: Event) -> None:
    """An hour is not too late."""
    before = late_events(TOPIC_OF[type(event)])
    await desk.see(event, arrived_ms=NOW + HOUR)
    assert await desk.ann() != Known(Customer(id=ANN), Presence())
    assert late_events(TOPIC_OF[type(event)]) == before


async def test_late_actions_give_no_moment(desk: Desk) -> None:
    """A late look at a product is remembered, but nobody is spoken to about it; one in time is a moment."""
    before = late_events(topics.ACTIONS)
    late = Action(**about(NOW), action="product_view", sku="beans")
    await desk.see(late, arrived_ms=NOW + HOUR + 1)
    assert (await desk.ann()).customer.viewed == {"beans": NOW}
    assert await desk.decided("product_view") == []
    assert late_events(topics.ACTIONS) == before + 1
    await desk.see(late, arrived_ms=NOW + HOUR + 2)
    await desk.see(Action(**about(NOW + HOUR), action="product_view", sku="grinder"))
    assert [decision.moment.sku for decision in await desk.decided("product_view")] == ["grinder"]


async def test_timers_are_never_late(desk: Desk) -> None:
    """A timer whose time passed while nobody was there still counts, hours later."""
    await desk.see(fix(NOW))
    await desk.see(due("presence", NOW + DWELL), arrived_ms=NOW + 48 * HOUR)
    assert len(await desk.decided("dwell")) == 1


# Out of order: in time, but after events that are dated later.


async def test_out_of_order_changes_of_a_cart(desk: Desk) -> None:
    """An older "set" changes nothing; emptying takes only what was in by then; what was put in before that is gone."""
    await desk.see(cart(NOW + 20, "set", quantity=5), cart(NOW + 10, "set", quantity=2))
    assert (await desk.ann()).customer.cart["beans"].quantity == 5
    await desk.see(cart(NOW + 12, "add", "grinder"), cart(NOW + 15, "clear"))
    assert set((await desk.ann()).customer.cart) == {"beans"}
    await desk.see(cart(NOW + 14, "add", "gone"), cart(NOW + 13, "remove"), cart(NOW + 11, "set", quantity=9))
    assert {sku: item.quantity for sku, item in (await desk.ann()).customer.cart.items()} == {"beans": 5}
    await desk.see(cart(NOW + 30, "order"), cart(NOW + 29, "add"), cart(NOW + 31, "add", quantity=3))
    assert {sku: item.quantity for sku, item in (await desk.ann()).customer.cart.items()} == {"beans": 3}


async def test_an_older_change_does_not_hold_an_abandoned_cart_back(desk: Desk) -> None:
    """The cart timer counts from the change that is dated last, not from the one that came last."""
    await desk.see(cart(NOW + 20), cart(NOW + 10, sku="grinder"))
    assert await desk.timer("cart_abandoned") == NOW + 20 + FoldRules().cart_abandoned_after_ms


async def test_out_of_order_wishes(desk: Desk) -> None:
    """A removal dated before the wish doesn't undo it; an older wish doesn't make it older."""

    def wish(ts: int, action: Any) -> Action:
        return Action(**about(ts), action=action, sku="beans")

    await desk.see(wish(NOW + 20, "wishlist_add"), wish(NOW + 10, "wishlist_remove"), wish(NOW + 5, "wishlist_add"))
    assert (await desk.ann()).customer.wishlist == {"beans": NOW + 20}
    await desk.see(wish(NOW + 20, "wishlist_remove"))
    assert (await desk.ann()).customer.wishlist == {}


@given(
    changes=st.lists(
        st.tuples(st.sampled_from(["set", "set", "set", "clear"]), st.sampled_from(["a", "b"]), st.integers(1, 9)),
        max_size=8,
    ).flatmap(lambda changes: st.permutations(list(enumerate(changes))))
)
def test_carts_arrive_at_the_same_in_any_order(changes: Sequence[tuple[int, tuple[Any, str, int]]]) -> None:
    """Amounts that are set, and emptying: whatever order they come in, the cart is that of the order they are dated."""
    customer = Customer(id=ANN)
    for at, (action, sku, quantity) in changes:
        event = Cart(id=str(at), uid="ann", ts=NOW + at, action=action, sku=sku, quantity=quantity)
        fold.apply(customer, event, {}, FoldRules())
    expected: dict[str, int] = {}
    for _, (action, sku, quantity) in sorted(changes):
        expected = {} if action == "clear" else expected | {sku: quantity}
    assert {sku: item.quantity for sku, item in customer.cart.items()} == expected


async def test_a_late_purchase_takes_nothing_newer_out(desk: Desk) -> None:
    """What was put into the cart after a purchase stays there when the purchase is heard of late."""
    await desk.see(cart(NOW + 10, sku="beans"), cart(NOW + 30, sku="grinder"))
    lines = [Line(sku="beans", amount_cents=100), Line(sku="grinder", amount_cents=100)]
    await desk.see(Purchase(**about(NOW + 20), items=lines))
    assert set((await desk.ann()).customer.cart) == {"grinder"}


# What happens without a further fix.


async def test_dwell_without_a_fix(desk: Desk) -> None:
    """Someone comes in and their phone lies still: the dwell happens when it is due, once."""
    await desk.see(fix(NOW))
    assert await desk.timer("presence") == NOW + DWELL
    for wrong_ms in (NOW + DWELL - 1, NOW + DWELL + 1):
        await desk.see(due("presence", wrong_ms))
    assert await desk.decided("dwell") == []
    fired = due("presence", NOW + DWELL)
    await desk.see(fired)
    (dwell,) = await desk.decided("dwell")
    assert (dwell.moment.at_ms, dwell.promotion) == (NOW + DWELL, "stay")
    await desk.see(fired, due("presence", NOW + DWELL))
    await desk.see(fix(NOW + DWELL + 1_000))
    assert await desk.decided("dwell") == [dwell]


async def test_the_end_of_a_silent_stay(desk: Desk) -> None:
    """A quarter of an hour without a fix ends the stay by itself: an exit, dated when they were last seen, unsure."""
    await desk.see(fix(NOW), fix(NOW + 5_000))
    await desk.see(due("presence", NOW + DWELL))
    assert await desk.timer("presence") == NOW + 5_000 + SILENCE
    ended = due("presence", NOW + 5_000 + SILENCE)
    await desk.see(ended)
    (left,) = await desk.decided("exit")
    assert (left.moment.at_ms, left.moment.confidence, left.outcome) == (NOW + 5_000, 0.4, "nothing")
    assert (await desk.ann()).presence.inside == {}
    assert await desk.timer("presence") is None
    await desk.see(ended, due("presence", NOW + 5_000 + SILENCE))
    await desk.see(fix(NOW + 5_000 + SILENCE, metres=500))
    assert await desk.decided("exit") == [left]


async def test_fixes_put_the_end_off(desk: Desk) -> None:
    """Whoever is seen meanwhile stays: the timer that comes finds them there, and is set anew from the last fix."""
    await desk.see(fix(NOW))
    await desk.see(due("presence", await desk.timer("presence")))
    first = await desk.timer("presence")
    assert first == NOW + SILENCE
    for minutes in range(1, 15):
        await desk.see(fix(NOW + minutes * MINUTE))
    await desk.see(due("presence", first))
    assert await desk.decided("exit") == []
    assert "inside" in (await desk.ann()).presence.inside
    assert await desk.timer("presence") == NOW + 14 * MINUTE + SILENCE
    await desk.see(due("presence", NOW + 14 * MINUTE + SILENCE))
    assert [decision.moment.at_ms for decision in await desk.decided("exit")] == [NOW + 14 * MINUTE]


@pytest.mark.parametrize(
    "event",
    [
        fix(NOW + 2, metres=500),
        Consent(**about(NOW + 2), scope="location", granted=False),
        Consent(**about(NOW + 2), scope="all", granted=False),
        Erase(**about(NOW + 2)),
    ],
)
async def test_who_is_gone_has_no_timer(desk: Desk, event: Event) -> None:
    """Leaving, an opt-out and an erasure take the timer away; the one on its way changes nothing."""
    await desk.see(fix(NOW))
    await desk.see(event)
    assert await desk.timer("presence") is None
    before = len((await committed(desk.redis)).decisions)
    await desk.see(due("presence", NOW + DWELL))
    assert len((await committed(desk.redis)).decisions) == before
    assert (await desk.ann()).presence.inside == {}


# Deadlines of messages.


async def offered(desk: Desk, action: Any = "app_open", ts: int = NOW) -> Message:
    """Ann agrees, does something, and a message is made for her."""
    await desk.see(Consent(**about(NOW - 1), scope="websocket", granted=True))
    await desk.see(Action(**about(ts), action=action, sku="beans"))
    entry = (await committed(desk.redis)).outbox[-1]
    assert isinstance(entry, Message)
    return entry


def receipt(message: Message, status: Any, ts: int) -> Receipt:
    return Receipt(**about(ts), message=message.id, decision=message.decision, status=status, channel="websocket")


async def statuses(desk: Desk) -> list[str | None]:
    return [sent.status for sent in (await desk.ann()).customer.messages]


async def test_a_message_nobody_reports_about(desk: Desk) -> None:
    """At its deadline it counts as expired, once; a later report that it arrived is believed all the same."""
    message = await offered(desk)
    assert await desk.timer("deadline") == message.deadline_ms
    await desk.see(due("deadline", message.deadline_ms - 1))
    assert await statuses(desk) == [None]
    fired = due("deadline", message.deadline_ms)
    await desk.see(fired)
    assert await statuses(desk) == ["expired"]
    assert await desk.timer("deadline") is None
    await desk.see(receipt(message, "delivered", message.deadline_ms + 5))
    await desk.see(fired, due("deadline", message.deadline_ms))
    assert await statuses(desk) == ["delivered"]


async def test_a_report_in_time(desk: Desk) -> None:
    """Once anything is reported, no deadline is waited for, and one on its way changes nothing."""
    message = await offered(desk)
    await desk.see(receipt(message, "sent", NOW + 5))
    assert await desk.timer("deadline") is None
    await desk.see(due("deadline", message.deadline_ms))
    assert await statuses(desk) == ["sent"]


async def test_the_next_deadline(desk: Desk) -> None:
    """Several messages wait: each expires at its own deadline, the earliest first."""
    long = await offered(desk, "app_open")
    short = await offered(desk, "product_view", NOW + 10)
    assert short.deadline_ms < long.deadline_ms
    assert await desk.timer("deadline") == short.deadline_ms
    await desk.see(due("deadline", short.deadline_ms))
    assert await statuses(desk) == [None, "expired"]
    assert await desk.timer("deadline") == long.deadline_ms
    await desk.see(due("deadline", long.deadline_ms))
    assert await statuses(desk) == ["expired", "expired"]


# Through a restart that missed the time.


async def test_a_restart_that_missed_the_time(redis: Redis, valkey_url: str) -> None:
    """Nobody was there when timers came due: afterwards each fires exactly once, in the order of their times."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    try:
        first = Bench(redis, log)
        async with first.running(TOWN):
            await first.send(Consent(**about(NOW - 1), scope="websocket", granted=True))
            await first.caught_up()
            await first.send(cart(NOW), Action(**about(NOW + 1), action="app_open"))
            await first.caught_up()
            await first.send(fix(NOW + 2))
            await first.caught_up()
        assert {kind for _, kind in await stored_timers(redis, PARTITIONS)} == {
            "cart_abandoned",
            "deadline",
            "presence",
        }
        second = Bench(redis, log)
        async with second.running(TOWN):
            await second.caught_up()
            assert await _fire_all(redis, second, NOW + 48 * HOUR) >= 4
            found = await committed(redis)
            assert await _fire_all(redis, second, NOW + 48 * HOUR) == 0
            assert await committed(redis) == found
    finally:
        await log.stop()
    triggers = sorted(decision.moment.trigger for decision in found.decisions.values())
    assert triggers == ["app_open", "dwell", "enter", "exit"]
    known = found.customers[ANN]
    assert known.customer.cart_abandoned
    assert {sent.status for sent in known.customer.messages} == {"expired"}
    assert (known.presence.inside, known.customer.timers) == ({}, {})
    assert await stored_timers(redis, PARTITIONS) == {}


async def _fire_all(redis: Redis, bench: Bench, now_ms: int) -> int:
    """Let a pump fire until nothing is due; returns how many timers fired."""
    clock = ManualClock(now_ms)
    every = frozenset(range(PARTITIONS))
    pump = TimerPump(StateStore(redis, PARTITIONS), Intake(bench.log, clock), lambda: every, clock)
    fired = 0
    while count := sum([await pump.fire(partition) for partition in every]):
        fired += count
        await bench.caught_up()
    return fired
