"""The engine on a real log and a real store: from an event to a committed decision and an outbox entry."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.errors import Fenced
from nearcast.events import Action, Cart, Consent, Erase, Event, Identify, Line, Location, Profile, Purchase
from nearcast.ids import partition_of
from nearcast.messages import Emitted, Message
from server.log.base import EventLog
from server.log.kafka import KafkaLog
from server.log.streams import StreamsLog
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Bench, Playback, committed, engine_on, records_of
from tests.server.town import LAT, LNG, WORLD, metres_north

NOW = 1_795_000_000_000


@pytest.fixture(params=["streams", pytest.param("kafka", marks=pytest.mark.kafka)])
def idle_log(request: pytest.FixtureRequest, redis: Redis, valkey_url: str) -> EventLog:
    """Each of the two event logs. Not a coroutine: those can't ask for the fixtures that only one of the two needs."""
    if request.param == "streams":
        return StreamsLog(valkey_url, PARTITIONS)
    return KafkaLog(request.getfixturevalue("kafka_options"), PARTITIONS)


@pytest.fixture
async def log(idle_log: EventLog) -> AsyncIterator[EventLog]:
    """Each of the two event logs, running and empty."""
    await idle_log.start()
    yield idle_log
    await idle_log.stop()


def fix(uid: str, ts: int, metres: float = 0.0, **fields: Any) -> Location:
    """A precise fix so many metres north of the store."""
    return Location(
        **{"id": uuid.uuid4().hex, "uid": uid, "ts": ts, "lat": metres_north(metres), "lng": LNG, "accuracy_m": 5.0}
        | fields
    )


def consent(uid: str, ts: int, scope: Any = "websocket", granted: bool = True) -> Consent:
    return Consent(id=uuid.uuid4().hex, uid=uid, ts=ts, scope=scope, granted=granted)


def cart(uid: str, ts: int, sku: str = "beans") -> Cart:
    return Cart(id=uuid.uuid4().hex, uid=uid, ts=ts, action="add", sku=sku, price_cents=1_299)


async def test_walk_past_with_an_abandoned_cart(redis: Redis, log: EventLog) -> None:
    """Someone with beans in the cart comes near the store that stocks them: one offer, for the beans, in the outbox."""
    bench = Bench(redis, log)
    async with bench.running():
        await bench.send(consent("ann", NOW), cart("ann", NOW + 1))
        await bench.caught_up()
        await bench.send(fix("ann", NOW + 2, metres=500), fix("ann", NOW + 3, metres=80))
        await bench.caught_up()
    found = await committed(redis)
    (decision,) = found.decisions.values()
    assert (decision.outcome, decision.promotion, decision.sku) == ("offer", "abandoned", "beans")
    assert decision.moment.trigger == "walk_past"
    (message,) = found.outbox
    assert isinstance(message, Message)
    assert (message.customer, message.decision, message.store, message.fence) == ("ann", decision.id, "graben", "near")
    assert [sent.message for sent in found.customers[decision.customer].customer.messages] == [message.id]
    assert found.dead_letters == []


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ([cart("ann", NOW)], "no_consent"),
        ([consent("ann", NOW), cart("ann", NOW, "gone")], "out_of_stock"),
        ([consent("ann", NOW), cart("ann", NOW), consent("ann", NOW, "all", granted=False)], None),
        ([consent("ann", NOW), cart("ann", NOW), consent("ann", NOW, "location", granted=False)], None),
    ],
)
async def test_nothing_is_offered(redis: Redis, valkey_url: str, setup: Sequence[Event], reason: str | None) -> None:
    """Without consent or stock the decision is "nothing", with its reason; an opt-out leaves not even a moment."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    bench = Bench(redis, log)
    async with bench.running():
        await bench.send(*setup)
        await bench.caught_up()
        await bench.send(fix("ann", NOW + 3, metres=80))
        await bench.caught_up()
    await log.stop()
    found = await committed(redis)
    assert found.outbox == []
    assert [decision.reason for decision in found.decisions.values()] == ([reason] if reason else [])
    assert all(decision.outcome == "nothing" for decision in found.decisions.values())


async def test_the_rest_of_the_path(redis: Redis, log: EventLog) -> None:
    """Entry coupon, a promoted product within reach, and an alert for someone who dwells: all on one walk."""
    bench = Bench(redis, log)
    async with bench.running():
        await bench.send(consent("ann", NOW), Profile(id="p", uid="ann", ts=NOW, loyalty="gold", name="Ann"))
        await bench.caught_up()
        near = fix("ann", NOW + 120_000, metres=10, accuracy_m=0.5, source="beacon")
        await bench.send(fix("ann", NOW + 2), near)
        await bench.caught_up()
    found = await committed(redis)
    offered = {(d.moment.trigger, d.outcome, d.promotion) for d in found.decisions.values() if d.promotion}
    assert offered == {("enter", "offer", "welcome"), ("near_product", "offer", "grind"), ("dwell", "assist", "help")}
    assert {entry.kind for entry in found.outbox if isinstance(entry, Message)} == {"offer", "assist"}


async def test_bad_records_become_dead_letters(redis: Redis, log: EventLog) -> None:
    """Nothing that a record holds stops its partition; the original bytes are kept, with the reason."""
    bench = Bench(redis, log)
    bad = {
        b"\xff\xfe": "malformed_event",
        b'{"uid":"ann","lat":91,"lng":0}': "malformed_event",
        b'{"uid":"ann","lat":NaN,"lng":0}': "malformed_event",
        b'{"uid":"ann","lat":1,"lng":1,"ts":9999999999999}': "event_from_the_future",
        b" " * 70_000: "event_too_large",
    }
    async with bench.running():
        for value in bad:
            await bench.send_raw(topics.LOCATIONS, "ann", value)
        stray = next(f"c{n}" for n in range(99) if partition_of(f"c{n}", PARTITIONS) != partition_of("ann", PARTITIONS))
        await bench.send_raw(topics.LOCATIONS, "ann", f'{{"uid":"{stray}","lat":1,"lng":1}}'.encode())
        await bench.send(fix("ann", NOW))
        await bench.caught_up()
    found = await committed(redis)
    reasons = {letter[b"value"]: letter[b"reason"].decode() for letter in found.dead_letters}
    assert {value: reasons[value] for value in bad} == bad
    assert sorted(reasons.values()).count("wrong_partition") == 1
    assert len(found.dead_letters) == len(bad) + 1
    (known,) = found.customers.values()
    assert known.presence.last_ms == NOW


async def test_unknown_things_do_no_harm(redis: Redis, log: EventLog) -> None:
    """Unknown customers, SKUs and stores are folded like any other; they are in no catalogue, so nothing follows."""
    bench = Bench(redis, log)
    async with bench.running():
        await bench.send(
            Purchase(id="b", uid="bob", ts=NOW, items=[Line(sku="never-heard-of", amount_cents=1)], store="nowhere"),
            cart("bob", NOW, "never-heard-of"),
            Action(id="v", uid="bob", ts=NOW, action="product_view", sku="never-heard-of"),
            fix("bob", NOW, metres=0),
        )
        await bench.caught_up()
    found = await committed(redis)
    assert found.dead_letters == []
    assert found.customers["bob"].customer.history.baskets == 1  # type: ignore[index]


async def test_sign_in(redis: Redis, log: EventLog) -> None:
    """An identify event sends the anonymous context on its way to the known customer, through the outbox."""
    bench = Bench(redis, log)
    async with bench.running():
        await bench.send(Cart(id="a", anonymous_id="d7", ts=NOW, action="add", sku="beans"))
        await bench.caught_up()
        await bench.send(Identify(id="i", uid="ann", anonymous_id="d7", ts=NOW + 1))
        await bench.caught_up()
        (entry,) = (await committed(redis)).outbox
        assert isinstance(entry, Emitted)
        assert (entry.topic, entry.key) == (topics.FEEDBACK, "ann")
        for _ in range(2):
            await bench.send_raw(entry.topic, entry.key, bytes(entry.value))
        await bench.caught_up()
    customers = (await committed(redis)).customers
    assert {sku: item.quantity for sku, item in customers["ann"].customer.cart.items()} == {"beans": 1}  # type: ignore[index]
    assert customers["anon:d7"].customer.cart == {}  # type: ignore[index]


async def test_erase_removes_every_key(redis: Redis, log: EventLog) -> None:
    """After an erasure no key of the partition names the customer any more; later events start from nothing."""
    bench = Bench(redis, log)
    async with bench.running():
        await bench.send(consent("ann", NOW), cart("ann", NOW))
        await bench.caught_up()
        await bench.send(fix("ann", NOW + 3, metres=80))
        await bench.caught_up()
        assert (await committed(redis)).decisions
        await bench.send(Erase(id="gone", uid="ann", ts=NOW + 4))
        await bench.caught_up()
    assert [key async for key in redis.scan_iter(match=f"{keys.PREFIX}*ann*")] == []
    assert [key async for key in redis.scan_iter(match=f"{keys.PREFIX}*decision:*")] == []


async def test_restart_continues(redis: Redis, log: EventLog) -> None:
    """A second engine goes on after the first one's last commit: nothing twice, nothing missed."""
    events = [fix("ann", NOW + n, metres=400) for n in range(30)]
    first = Bench(redis, log, batch_events=7)
    async with first.running():
        await first.send(*events[:17])
        await first.caught_up()
    second = Bench(redis, log, batch_events=7)
    async with second.running():
        await second.send(*events[17:], cart("ann", NOW + 50))
        await second.caught_up()
    found = await committed(redis)
    (known,) = found.customers.values()
    assert known.presence.last_ms == NOW + 29
    assert known.customer.cart.keys() == {"beans"}


async def test_a_fenced_engine_commits_nothing(redis: Redis) -> None:
    """Once another has taken its partition, an engine's batch is refused as a whole."""
    world = WorldStore(redis)
    await world.put(WORLD)
    slow, quick = engine_on(redis, Playback(), world), engine_on(redis, Playback(), world)
    await slow.follow_assignment()
    await quick.follow_assignment()
    with pytest.raises(Fenced):
        await slow.process(records_of([cart("ann", NOW)], NOW))
    found = await committed(redis)
    assert found.customers == {}
    assert [key async for key in redis.scan_iter(match="*offsets")] == []
    await quick.process(records_of([cart("ann", NOW)], NOW))
    assert (await committed(redis)).customers


@pytest.mark.parametrize("left", [None, "0"])
async def test_a_store_that_lost_writes_is_noticed(redis: Redis, left: str | None) -> None:
    """If the store comes back with older offsets, the next commit is refused, and the log replayed from there."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    records = records_of([cart("ann", NOW + n) for n in range(3)], NOW)
    await engine.process(records[:2])
    offsets = keys.offsets(records[0].partition)
    if left is None:
        await redis.hdel(offsets, topics.CARTS)
    else:
        await redis.hset(offsets, topics.CARTS, left)
    with pytest.raises(Fenced):
        await engine.process(records[2:])
    engine._generation = None
    await engine.follow_assignment()
    await engine.process(records)
    assert await redis.hget(offsets, topics.CARTS) == b"2"


async def test_an_idle_engine_notices_lost_writes(redis: Redis, log: EventLog) -> None:
    """The store goes back to what it was before the last commits, and nobody does anything: the log replays them."""
    bench = Bench(redis, log)
    home = partition_of("ann", PARTITIONS)
    async with bench.running():
        await bench.send(cart("ann", NOW))
        await bench.caught_up()
        wanted = await committed(redis)
        assert wanted.customers
        async with redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.offsets(home), keys.customer(home, "ann"))
            await pipe.execute()
        async with asyncio.timeout(30):
            while (await committed(redis)).customers != wanted.customers:
                await asyncio.sleep(0.05)


async def test_a_stray_record_beside_its_customer(redis: Redis) -> None:
    """A record in the wrong partition is a dead letter also when its customer has events of their own in the batch."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    home, stray = records_of([cart("ann", NOW), cart("ann", NOW + 1, "grinder")], NOW)
    stray = msgspec.structs.replace(stray, partition=(stray.partition + 1) % PARTITIONS)
    await engine.process([home, stray])
    found = await committed(redis)
    assert [letter[b"reason"] for letter in found.dead_letters] == [b"wrong_partition"]
    assert [list(known.customer.cart) for known in found.customers.values()] == [["beans"]]


async def test_one_event_id_for_two_customers(redis: Redis) -> None:
    """Clients number their events as they like: the same id at two customers gives two decisions and two messages."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    events = [
        event for uid in ("ann", "bob") for event in (consent(uid, NOW), cart(uid, NOW), fix(uid, NOW, 80, id="1"))
    ]
    await engine.process(records_of(events, NOW))
    found = await committed(redis)
    assert len(found.decisions) == 2
    assert len({entry.id for entry in found.outbox if isinstance(entry, Message)}) == 2


async def test_defects_of_ours_cost_their_records_only(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that make our code fail become dead letters; everything around them is folded, in order."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    monkeypatch.setattr("nearcast.fold._fold_profile", lambda *_: 1 / 0)
    events: list[Event] = [
        Profile(id=f"p{n}", uid="ann", name="x") if n in (3, 4, 20) else cart("ann", NOW + n) for n in range(25)
    ]
    await engine.process(records_of(events, NOW))
    found = await committed(redis)
    assert [letter[b"position"] for letter in found.dead_letters] == [b"3", b"4", b"20"]
    assert all(letter[b"reason"] == b"internal_error" for letter in found.dead_letters)
    assert all(b"ZeroDivisionError" in letter[b"detail"] for letter in found.dead_letters)
    (known,) = found.customers.values()
    assert known.customer.cart["beans"].quantity == 22  # type: ignore[index]


async def test_a_state_that_cannot_be_encoded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what shows only when the batch is encoded costs the record, not the engine."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()

    def absurd(customer: Any, _: Any) -> None:
        customer.redemptions = 10**30

    monkeypatch.setattr("nearcast.fold._fold_profile", absurd)
    await engine.process(records_of([cart("ann", NOW), Profile(id="p", uid="ann"), cart("ann", NOW + 1)], NOW))
    found = await committed(redis)
    assert [letter[b"reason"] for letter in found.dead_letters] == [b"internal_error"]
    (known,) = found.customers.values()
    assert known.customer.cart["beans"].quantity == 2  # type: ignore[index]


def test_town_is_where_it_says() -> None:
    """A metre in the town's latitudes is a metre."""
    assert metres_north(0) == LAT
    assert (metres_north(1_000) - LAT) * 111_195 == pytest.approx(1_000)
