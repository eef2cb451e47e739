"""Customers whose stored record is damaged, or newer than the engine: nothing of them is lost, and others go on."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.events import Cart, Consent, Erase, Event, Location, Profile
from nearcast.ids import CustomerId, partition_of
from server.dead_letters import DeadLetters, Letter, Wanted
from server.engine import Engine
from server.log.base import Record
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


def numbered(events: Sequence[Event], first: int) -> list[Record]:
    """The log's records of these events, at positions from `first` on."""
    return [
        msgspec.structs.replace(record, position=str(first + place))
        for place, record in enumerate(records_of(events, NOW + first))
    ]


async def process(redis: Redis, *events: Event, first: int = 0) -> None:
    """These events through a fresh engine, at log positions from `first` on."""
    await (await fresh_engine(redis)).process(numbered(events, first))


async def letters(redis: Redis) -> Sequence[Letter]:
    return [letter async for letter in DeadLetters(redis, PARTITIONS).every(Wanted())]


async def timers_of_ann(redis: Redis) -> int:
    found: Any = await redis.zrange(keys.timers(HOME), 0, -1)
    return sum(member.endswith(b"ann") for member in found)


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
@pytest.mark.parametrize("at_once", [True, False], ids=["one batch", "one by one"])
@pytest.mark.usefixtures("known")
async def test_left_alone(redis: Redis, key: str, damage: bytes, said: str, *, at_once: bool) -> None:
    """Not overwritten; the events that need the record become dead letters that say what to do; all others go on."""
    await redis.set(key, damage)
    events = [
        # Both records are wanted: a consent changes the cold one, and says in the hot one whether fixes may be used.
        Consent(id="yes", uid="ann", ts=NOW + 1, scope="sms", granted=True),
        cart(NEIGHBOUR, "2", "grinder"),
        fix("ann", "2", NOW + 2),
        fix(NEIGHBOUR, "2", NOW + 2),
    ]
    engine = await fresh_engine(redis)
    records = numbered(events, 100)
    for batch in [records] if at_once else [[record] for record in records]:
        await engine.process(batch)
    assert await redis.get(key) == damage
    found = await letters(redis)
    assert {letter.reason for letter in found} == {"unreadable_state"}
    assert {letter.key for letter in found} == {"ann"}
    for letter in found:
        assert "'ann'" in letter.detail
        assert said in letter.detail
    wanted = [topics.ACTIONS] if key == COLD else [topics.ACTIONS, topics.LOCATIONS]
    assert sorted(letter.topic for letter in found) == sorted(wanted)
    await redis.delete(key)
    known = (await committed(redis)).customers
    assert known[ANN].presence.last_ms == (NOW + 2 if key == COLD else 0)
    assert list(known[CustomerId(NEIGHBOUR)].customer.cart) == ["beans", "grinder"]
    assert known[CustomerId(NEIGHBOUR)].presence.last_ms == NOW + 2


@pytest.mark.usefixtures("known")
async def test_a_place_is_not_kept_although_the_withdrawal_can_not_be_noted(redis: Redis) -> None:
    """The withdrawal becomes a dead letter, and counts for fixes all the same."""
    await redis.set(COLD, NEWER_COLD)
    refused = Consent(id="no", uid="ann", ts=NOW + 1, scope="location", granted=False)
    await process(redis, refused, fix("ann", "2", NOW + 2), first=100)
    assert [letter.topic for letter in await letters(redis)] == [topics.ACTIONS]
    await redis.delete(COLD)
    ann = (await committed(redis)).customers[ANN]
    assert (ann.presence.allowed, ann.presence.inside, ann.presence.timer_ms) == (False, {}, 0)
    assert ann.presence.last_ms < NOW + 2


@pytest.mark.usefixtures("known")
async def test_an_unknown_consent_is_none(redis: Redis) -> None:
    """Without a hot record the cold one says whether fixes may be used; if it can't be read, they are not."""
    await redis.set(COLD, NEWER_COLD)
    await redis.delete(HOT)
    engine = await fresh_engine(redis)
    for at in (1, 2):
        far = msgspec.structs.replace(fix("ann", f"far{at}", NOW + at), lat=metres_north(50_000))
        await engine.process(numbered([far], 100 + at))
    assert len(await letters(redis)) == 2
    assert not await redis.exists(HOT)


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
    """Who asks to be erased is erased, whatever is stored of them, and nothing comes back with their next steps."""
    assert await timers_of_ann(redis)
    engine = await fresh_engine(redis)
    # Both records are in the engine's cache, as far as they can be read.
    await engine.process(numbered([fix("ann", "2", NOW + 1)], 100))
    await redis.set(key, damage)
    if key == HOT:
        engine = await fresh_engine(redis)
    await engine.process(numbered([Erase(id="e", uid="ann")], 101))
    assert await letters(redis) == []
    assert not await redis.exists(COLD, HOT)
    assert await redis.hexists(keys.erasures(HOME), "ann")
    assert await timers_of_ann(redis) == 0
    await engine.process(numbered([fix("ann", "3", NOW + 5)], 102))
    stays = (await committed(redis)).customers[ANN].presence.inside.values()
    assert [stay.entered_ms for stay in stays] == [NOW + 5] * len(stays)
