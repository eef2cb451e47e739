"""Anonymous → known: what a visitor had gathered reaches the customer they turn out to be, once and in order.

The way goes through two partitions: the visitor's engine puts a stitch into its outbox, a dispatcher writes it to the
log, and the engine of the known customer's partition folds it. Each leg may be gone twice after a crash.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from nearcast import topics
from nearcast.customer import SEEN_EVENTS, Customer
from nearcast.events import Action, Cart, Event, Identify, Profile
from nearcast.ids import CustomerId, partition_of
from nearcast.messages import Emitted
from server.log.base import Entry, EventLog
from server.log.kafka import KafkaLog
from server.log.streams import StreamsLog
from server.outbox import ValkeyOutbox
from server.state import StateStore
from tests.server.rig import PARTITIONS, Bench

NOW = 1_795_000_000_000
ANN = CustomerId("ann")
#: Devices whose state is in other partitions than ann's, and than each other's.
PHONE, TABLET = "d1", "d4"


@pytest.fixture(params=["streams", pytest.param("kafka", marks=pytest.mark.kafka)])
def idle_log(request: pytest.FixtureRequest, redis: Redis, valkey_url: str) -> EventLog:
    if request.param == "streams":
        return StreamsLog(valkey_url, PARTITIONS)
    return KafkaLog(request.getfixturevalue("kafka_options"), PARTITIONS)


@pytest.fixture
async def log(idle_log: EventLog) -> AsyncIterator[EventLog]:
    """Each of the two event logs, running and empty."""
    await idle_log.start()
    yield idle_log
    await idle_log.stop()


@pytest.fixture
async def bench(redis: Redis, log: EventLog) -> AsyncIterator[Bench]:
    """An engine at work on it."""
    made = Bench(redis, log)
    async with made.running():
        yield made


def put(device: str, ts: int, sku: str, quantity: int = 1, **fields: Any) -> Cart:
    about = {"id": uuid.uuid4().hex, "anonymous_id": device, "ts": ts} | fields
    return Cart(**about, action="add", sku=sku, quantity=quantity)


def sign_in(device: str, ts: int, event_id: str = "") -> Identify:
    return Identify(id=event_id or uuid.uuid4().hex, uid="ann", anonymous_id=device, ts=ts)


async def fold(bench: Bench, *events: Event) -> None:
    """Send events, one after the other, and wait until they are folded."""
    for event in events:
        await bench.send(event)
        await bench.caught_up()


async def customer(bench: Bench, name: CustomerId = ANN) -> Customer:
    known = await StateStore(bench.redis, PARTITIONS).read(name)
    return Customer(id=name) if known is None else known.customer


async def cart(bench: Bench, name: CustomerId = ANN) -> dict[str, int]:
    return {sku: item.quantity for sku, item in (await customer(bench, name)).cart.items()}


async def forward(bench: Bench, *, crashes: int = 0) -> list[Emitted]:
    """What a dispatcher does with stitches: write them to the log, then take them out of the outbox.

    After each of `crashes` it is killed in between and starts over. Returns what was in the outbox.
    """
    for attempt in range(crashes + 1):
        outbox = ValkeyOutbox(bench.redis, range(PARTITIONS), "the dispatcher")
        taken = await outbox.read(100, 1)
        entries = [pending.entry for pending in taken if isinstance(pending.entry, Emitted)]
        assert len(entries) == len(taken)
        await bench.log.append([Entry(entry.topic, entry.key, bytes(entry.value)) for entry in entries])
        if attempt == crashes:
            await outbox.done(taken)
        await outbox.close()
        await bench.caught_up()
    return entries


def test_the_partitions() -> None:
    """The tests below do cross partitions."""
    people = ["ann", f"anon:{PHONE}", f"anon:{TABLET}"]
    assert len({partition_of(name, PARTITIONS) for name in people}) == 3


async def test_what_a_visitor_gathered(bench: Bench) -> None:
    """Cart, wishlist and what was looked at move over, on top of what the customer has; the visitor keeps nothing."""
    about = {"anonymous_id": PHONE, "sku": "grinder"}
    await fold(
        bench,
        put("", NOW, "beans", id="own", anonymous_id=None, uid="ann"),
        put(PHONE, NOW + 1, "beans", 2),
        Action(id="w", ts=NOW + 2, action="wishlist_add", **about),
        Action(id="v", ts=NOW + 3, action="product_view", **about),
        sign_in(PHONE, NOW + 4),
    )
    assert await cart(bench, CustomerId(f"anon:{PHONE}")) == {}
    (entry,) = await forward(bench)
    assert (entry.topic, entry.key) == (topics.FEEDBACK, "ann")
    ann = await customer(bench)
    assert {sku: item.quantity for sku, item in ann.cart.items()} == {"beans": 3}
    assert (ann.wishlist, ann.viewed) == ({"grinder": NOW + 2}, {"grinder": NOW + 3})
    visitor = await customer(bench, CustomerId(f"anon:{PHONE}"))
    assert (visitor.cart, visitor.wishlist, visitor.viewed) == ({}, {}, {})
    assert "cart_abandoned" not in visitor.timers


async def test_the_same_sign_in_twice(bench: Bench) -> None:
    """A sign-in whose record stands in the log twice is one: what was gathered in between waits for the next."""
    first = sign_in(PHONE, NOW + 1)
    await fold(bench, put(PHONE, NOW, "beans"), first, put(PHONE, NOW + 2, "grinder"), first)
    assert len(await forward(bench)) == 1
    assert await cart(bench) == {"beans": 1}
    assert await cart(bench, CustomerId(f"anon:{PHONE}")) == {"grinder": 1}


@pytest.mark.parametrize("crashes", [1, 3])
async def test_a_dispatcher_killed_in_between(bench: Bench, crashes: int) -> None:
    """Written to the log, but not yet taken out of the outbox: written again by the next one, and folded once."""
    await fold(bench, put(PHONE, NOW, "beans", 2), sign_in(PHONE, NOW + 1))
    assert len(await forward(bench, crashes=crashes)) == 1
    assert await cart(bench) == {"beans": 2}
    assert await forward(bench) == []


async def test_much_happens_between_two_deliveries(bench: Bench) -> None:
    """Also when so much happens to the customer in between that they have forgotten all event ids from before."""
    await fold(bench, put(PHONE, NOW, "beans", 2), sign_in(PHONE, NOW + 1))
    (entry,) = await forward(bench)
    busy: Sequence[Event] = [
        Profile(id=f"p{n}", uid="ann", ts=NOW + 10 + n, loyalty=str(n)) for n in range(SEEN_EVENTS + 36)
    ]
    await bench.send(*busy)
    await bench.caught_up()
    await bench.send_raw(entry.topic, entry.key, bytes(entry.value))
    await bench.caught_up()
    ann = await customer(bench)
    assert ann.loyalty == str(len(busy) - 1)
    assert await cart(bench) == {"beans": 2}


async def test_sign_ins_in_order(bench: Bench) -> None:
    """Signing in, shopping on unknown, signing in again: both stitches arrive, in that order."""
    await fold(
        bench,
        put(PHONE, NOW, "beans", price_cents=100),
        sign_in(PHONE, NOW + 1),
        put(PHONE, NOW + 2, "beans", price_cents=90),
        put(PHONE, NOW + 3, "grinder"),
        sign_in(PHONE, NOW + 4),
    )
    assert len(await forward(bench)) == 2
    ann = await customer(bench)
    assert {sku: item.quantity for sku, item in ann.cart.items()} == {"beans": 2, "grinder": 1}
    # The newer one was folded last.
    assert ann.cart["beans"].price_cents == 90  # type: ignore[index]
    assert ann.cart_changed_ms == NOW + 4


async def test_two_devices_that_count_alike(bench: Bench) -> None:
    """Two visitors sign in as one customer, by events that have the same id: both are taken over."""
    await fold(
        bench,
        put(PHONE, NOW, "beans"),
        put(TABLET, NOW, "grinder"),
        sign_in(PHONE, NOW + 1, "1"),
        sign_in(TABLET, NOW + 1, "1"),
    )
    assert len(await forward(bench)) == 2
    assert await cart(bench) == {"beans": 1, "grinder": 1}


async def test_the_engine_starts_over_in_between(redis: Redis, log: EventLog) -> None:
    """The visitor's events before a restart, the sign-in after it, the stitch after another one."""
    first = Bench(redis, log)
    async with first.running():
        await fold(first, put(PHONE, NOW, "beans", 2))
    second = Bench(redis, log)
    async with second.running():
        await fold(second, sign_in(PHONE, NOW + 1))
        await forward(second, crashes=1)
    third = Bench(redis, log)
    async with third.running():
        await third.caught_up()
        await forward(third)
        assert await cart(third) == {"beans": 2}
