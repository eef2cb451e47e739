"""Customers whose stored record is damaged, or newer than the engine: nothing of them is lost, and others go on."""

import json
from collections.abc import Sequence

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.events import Cart, Consent, Erase, Event, Location, Profile
from nearcast.ids import CustomerId, partition_of
from server.dead_letters import DeadLetters, Letter, Wanted
from server.engine import Engine
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Playback, committed, engine_on, records_of
from tests.server.town import LNG, WORLD, metres_north

NOW = 1_795_000_000_000
ANN, HOME = CustomerId("ann"), partition_of("ann", PARTITIONS)
#: Shares Ann's partition, and every batch.
NEIGHBOUR = next(f"c{n}" for n in range(99) if partition_of(f"c{n}", PARTITIONS) == HOME)
COLD, HOT = keys.customer(HOME, ANN), keys.presence(HOME, ANN)
NEWER_COLD, NEWER_HOT = msgspec.msgpack.encode([99, {"id": "ann"}]), msgspec.json.encode([99, {"place": "x"}])


def cart(uid: str, name: str, sku: str = "beans") -> Cart:
    return Cart(id=f"{uid}-{name}", uid=uid, ts=NOW, action="add", sku=sku)


def fix(uid: str, name: str, ts: int) -> Location:
    return Location(id=f"{uid}-{name}", uid=uid, ts=ts, lat=metres_north(2), lng=LNG, accuracy_m=2.0)


async def fresh_engine(redis: Redis) -> Engine:
    """An engine that has nothing in its cache."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    return engine


async def process(redis: Redis, *events: Event, first: int = 0) -> None:
    """These events through a fresh engine, at log positions from `first` on."""
    records = [
        msgspec.structs.replace(record, position=str(first + place))
        for place, record in enumerate(records_of(events, NOW + first))
    ]
    await (await fresh_engine(redis)).process(records)


async def letters(redis: Redis) -> Sequence[Letter]:
    return [letter async for letter in DeadLetters(redis, PARTITIONS).every(Wanted())]


@pytest.fixture
async def known(redis: Redis) -> None:
    """Ann and her neighbour have a profile, a cart, and are in the store."""
    for place, uid in enumerate(("ann", NEIGHBOUR)):
        await process(
            redis, Profile(id=f"{uid}-p", uid=uid, name=uid), cart(uid, "1"), fix(uid, "1", NOW), first=9 * place
        )


@pytest.mark.parametrize(
    ("key", "damage", "said"),
    [
        (COLD, b"\xc1 no record", "damaged"),
        (COLD, b"", "damaged"),
        (COLD, NEWER_COLD, "version 99"),
        (HOT, b"\xc1 no record", "damaged"),
        (HOT, b'[2,{"last', "damaged"),
        (HOT, NEWER_HOT, "version 99"),
    ],
)
@pytest.mark.usefixtures("known")
async def test_left_alone(redis: Redis, key: str, damage: bytes, said: str) -> None:
    """Not overwritten; the events that need the record become dead letters that say what to do; neighbours go on."""
    other = HOT if key == COLD else COLD
    beside = await redis.get(other)
    await redis.set(key, damage)
    # Both records are wanted: a consent changes the cold one, and says in the hot one whether fixes may be used.
    refused = Consent(id="no", uid="ann", ts=NOW + 1, scope="location", granted=False)
    events = [refused, cart(NEIGHBOUR, "2", "grinder"), fix("ann", "2", NOW + 2), fix(NEIGHBOUR, "2", NOW + 2)]
    await process(redis, *events, first=100)
    assert await redis.get(key) == damage
    found = await letters(redis)
    assert {letter.reason for letter in found} == {"unreadable_state"}
    assert {letter.key for letter in found} == {"ann"}
    for letter in found:
        assert "'ann'" in letter.detail
        assert said in letter.detail
    assert {letter.topic for letter in found} == {topics.ACTIONS, topics.LOCATIONS}
    assert await redis.get(other) == beside
    await redis.delete(key)
    neighbour = (await committed(redis)).customers[CustomerId(NEIGHBOUR)]
    assert list(neighbour.customer.cart) == ["beans", "grinder"]
    assert neighbour.presence.last_ms == NOW + 2


@pytest.mark.usefixtures("known")
async def test_mended_and_replayed(redis: Redis) -> None:
    """Once the record is what it was, the dead letters go through again, and nothing is missing."""
    whole = await redis.get(COLD)
    await redis.set(COLD, NEWER_COLD)
    await process(redis, cart("ann", "2", "grinder"), cart("ann", "3", "grinder"), first=100)
    buried = await letters(redis)
    assert [json.loads(letter.value)["id"] for letter in buried] == ["ann-2", "ann-3"]
    await redis.set(COLD, whole)
    again = [cart("ann", "2", "grinder"), cart("ann", "3", "grinder")]
    assert [record.value for record in records_of(again, NOW)] == [letter.value for letter in buried]
    await process(redis, *again, first=200)
    ann = (await committed(redis)).customers[ANN]
    assert {sku: item.quantity for sku, item in ann.customer.cart.items()} == {"beans": 1, "grinder": 2}
    assert ann.customer.name == "ann"


@pytest.mark.parametrize(("key", "damage"), [(COLD, NEWER_COLD), (HOT, NEWER_HOT)])
@pytest.mark.usefixtures("known")
async def test_erasing_needs_no_reading(redis: Redis, key: str, damage: bytes) -> None:
    """Who asks to be erased is erased, whatever is stored of them."""
    await redis.set(key, damage)
    await process(redis, Erase(id="e", uid="ann"), first=100)
    assert await letters(redis) == []
    assert not await redis.exists(COLD, HOT)
    assert await redis.hexists(keys.erasures(HOME), "ann")
