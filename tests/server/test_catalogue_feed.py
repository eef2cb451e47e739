"""Catalogue topics into the kept world, through a real log: order, dead letters, restarts and fencing."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date

import msgspec
import pytest
from redis.asyncio import Redis

from geofence.geojson import fences_to_geojson
from nearcast import keys, topics
from nearcast.errors import DeadLettersFull, Fenced
from nearcast.world import Corridor, Fence, OpenHours, Product, Promotion, SpecialDay, Stock, Store, Window, Words
from offers.worldfile import WorldFile
from server.catalogue_feed import CatalogueFeed
from server.log.base import Entry, Record
from server.log.streams import StreamsLog
from server.world import WorldStore
from tests.offers.mistakes import EVERYTHING, MISTAKES, TAKEN
from tests.server.rig import PARTITIONS, Playback
from tests.server.test_world import PROMISE, TEA, fence, stocked

GRABEN = Store(id="graben", name="Graben", lat=48.2, lng=16.3)
TOPIC: dict[type[msgspec.Struct], str] = {
    Store: topics.STORES,
    Fence: topics.FENCES,
    Product: topics.PRODUCTS,
    Promotion: topics.PROMOTIONS,
    Stock: topics.STOCK,
}


@pytest.fixture
async def log(redis: Redis, valkey_url: str) -> AsyncIterator[StreamsLog]:
    """The event log, running and empty."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield log
    await log.stop()


@asynccontextmanager
async def feeding(
    redis: Redis, log: StreamsLog, group: str = "catalogue"
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A feed at work on a world of its own; gives a function to wait until it has read everything."""
    consumer = log.consumer(group, topics.CATALOGUE_TOPICS)
    await consumer.start()
    feed = CatalogueFeed(consumer, WorldStore(redis), redis)
    task = asyncio.create_task(feed.run(), name="feed under test")

    async def caught_up() -> None:
        async with asyncio.timeout(30):
            while len(lag := await consumer.lag()) < PARTITIONS * len(TOPIC) or any(lag.values()):
                await asyncio.sleep(0.02)

    try:
        yield caught_up
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()


def entry(item: Store | Fence | Product | Promotion | Stock) -> Entry:
    key = item.sku if isinstance(item, Product | Stock) else item.id
    return Entry(TOPIC[type(item)], key, msgspec.json.encode(item))


async def follow(redis: Redis, log: StreamsLog, *entries: Entry) -> WorldStore:
    """The world after a feed has worked off these entries and whatever was before them."""
    await log.append(entries)
    async with feeding(redis, log) as caught_up:
        await caught_up()
    world = WorldStore(redis)
    await world.refresh()
    return world


async def dead_letters(redis: Redis) -> list[Mapping[bytes, bytes]]:
    found = []
    for partition in range(PARTITIONS):
        found += [fields for _, fields in await redis.xrange(keys.dead_letters(partition))]
    return found


async def positions(redis: Redis) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for partition in range(PARTITIONS):
        found |= await redis.hgetall(keys.catalogue_offsets(partition))
    return found


async def test_every_kind_of_change(redis: Redis, log: StreamsLog) -> None:
    """Stores, fences, products, promotions and stock arrive, in whatever order the topics are read."""
    in_stock = Stock(store="graben", sku="tea", quantity=4)
    world = await follow(redis, log, *map(entry, [PROMISE, in_stock, fence("a", parent="b"), TEA, fence("b"), GRABEN]))
    assert world.current.items == WorldFile(
        stores=[GRABEN], fences=[fence("a", parent="b"), fence("b")], products=[TEA], promotions=[PROMISE]
    )
    assert await stocked(world, "tea") == 4
    assert await dead_letters(redis) == []


async def test_fences_with_all_they_can_have(redis: Redis, log: StreamsLog) -> None:
    """Every field arrives, and a GeoJSON Feature is the same as the fence in nearcast's own form."""
    whole = Fence(
        id="whole",
        store="graben",
        kind="product",
        geometry=Corridor([(16.37, 48.2), (16.371, 48.2)], 2.5),
        name="Käse",
        parent="a",
        sku="tea",
        floor=-1,
        dwell_s=30.5,
        exit_margin_m=2.0,
        enter_fixes=2,
        enter_s=1.5,
        exit_fixes=3,
        exit_s=4.0,
        approach_m=20.0,
        hours=[OpenHours(weekday=6, opens=600, closes=60)],
        special_days=[SpecialDay(date(2026, 12, 24), [Window(600, 120)])],
        valid_from_ms=1_700_000_000_000,
        valid_until_ms=1_900_000_000_000,
        beacons=["b1"],
        access_points=["ap1"],
        codes=["qr1"],
    )
    assert all(getattr(whole, name) not in (None, [], "") for name in Fence.__struct_fields__)
    store = msgspec.structs.replace(GRABEN, special_days=[SpecialDay(date(2026, 12, 31), [Window(600, 120)])])
    twin = msgspec.structs.replace(whole, id="twin")
    (feature,) = json.loads(fences_to_geojson([twin]))["features"]
    as_feature = Entry(topics.FENCES, "twin", json.dumps(feature).encode())
    world = await follow(redis, log, entry(store), entry(fence("a")), entry(whole), as_feature)
    assert world.current.items.fences == [fence("a"), twin, whole]
    assert world.current.items.stores == [store]
    assert await dead_letters(redis) == []


async def test_order_of_one_key(redis: Redis, log: StreamsLog) -> None:
    """The last change of a thing counts, also when the ones before it stand in the same batch."""
    named = [msgspec.structs.replace(TEA, name=f"tea {n}") for n in range(5)]
    counts = [Stock(store="graben", sku="tea", quantity=n) for n in range(5)]
    gone = Entry(topics.PRODUCTS, "tea", b"")
    world = await follow(redis, log, *map(entry, named), *map(entry, counts))
    assert world.current.items.products == [named[-1]]
    assert await stocked(world, "tea") == 4
    world = await follow(redis, log, entry(named[0]), gone, entry(named[1]), gone, entry(named[2]))
    assert world.current.items.products == [named[2]]
    world = await follow(redis, log, entry(named[0]), gone)
    assert world.current.items.products == []
    assert await dead_letters(redis) == []


async def test_removal(redis: Redis, log: StreamsLog) -> None:
    """An empty value removes, whatever still refers to it; removing what isn't there does nothing."""
    world = await follow(redis, log, *map(entry, [GRABEN, fence("a"), fence("b"), TEA, PROMISE]))
    assert len(world.current.items.fences) == 2
    world = await follow(
        redis,
        log,
        Entry(topics.FENCES, "a", b""),
        Entry(topics.FENCES, "never", b""),
        Entry(topics.STORES, "graben", b""),
        Entry(topics.PRODUCTS, "tea", b""),
        Entry(topics.PROMOTIONS, "early", b""),
    )
    assert world.current.items == WorldFile(fences=[fence("b")])
    assert await dead_letters(redis) == []


async def test_bad_records_become_dead_letters(redis: Redis, log: StreamsLog) -> None:
    """What can't be used is set aside with its reason and its bytes; everything around it is applied."""
    ring = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
    bow_tie = {"id": "bow-tie", "store": "graben", "kind": "shelf", "geometry": ring}
    line = bow_tie | {"geometry": {"type": "LineString", "coordinates": [[0, 0]], "buffer_m": 5}}
    feature = {"type": "Feature", "geometry": ring, "properties": {"id": "f", "store": "graben", "kind": "shelf"}}
    broken = msgspec.structs.replace(PROMISE, id="broken", words={"en": Words(title="{{ who }}")})
    bad = {
        Entry(topics.STORES, "s", b"\xff{"): "malformed_catalogue_change",
        Entry(topics.STORES, "s", b'{"id":"s","name":"S","lat":91,"lng":0}'): "malformed_catalogue_change",
        Entry(topics.PRODUCTS, "p", b'{"sku":"p","name":"P","segment":"x","colour":1}'): "malformed_catalogue_change",
        Entry(topics.PRODUCTS, "p", b"[" * 100_000): "malformed_catalogue_change",
        Entry(topics.STOCK, "tea", b""): "malformed_catalogue_change",
        Entry(topics.FENCES, "bow-tie", msgspec.json.encode(bow_tie)): "invalid_geometry",
        Entry(topics.FENCES, "line", msgspec.json.encode(line)): "invalid_geometry",
        Entry(topics.FENCES, "line", msgspec.json.encode(line | {"geometry": None})): "malformed_catalogue_change",
        Entry(topics.FENCES, "f", msgspec.json.encode(feature)): "invalid_geometry",
        Entry(topics.FENCES, "f", msgspec.json.encode(feature | {"properties": {}})): "invalid_geojson",
        Entry(topics.FENCES, "f", b"5"): "malformed_catalogue_change",
        entry(fence("own", parent="own")): "cyclic_parents",
        entry(broken): "broken_template",
    }
    good = [msgspec.structs.replace(TEA, sku=f"tea-{n}") for n in range(20)]
    mixed = [entry(each) for each in [GRABEN, fence("a"), PROMISE, *good]]
    for place, each in enumerate(bad):
        mixed.insert(2 * place + 1, each)
    world = await follow(redis, log, *mixed)
    assert world.current.items.products == sorted(good, key=lambda each: each.sku)
    assert world.current.items.fences == [fence("a")]
    assert world.current.items.promotions == [PROMISE]
    letters = await dead_letters(redis)
    assert {(letter[b"topic"].decode(), letter[b"value"]): letter[b"reason"].decode() for letter in letters} == {
        (each.topic, each.value): reason for each, reason in bad.items()
    }
    assert len(letters) == len(bad)
    assert all(letter[b"detail"] and letter[b"position"] and letter[b"key"] for letter in letters)
    assert [letter[b"detail"] for letter in letters if b"fence bow-tie" in letter[b"detail"]]


async def test_a_bad_version_hides_behind_no_good_one(redis: Redis, log: StreamsLog) -> None:
    """A bad change of a thing is found also when the same batch holds a good one after it."""
    bad = msgspec.structs.replace(fence("a"), parent="a")
    world = await follow(redis, log, entry(fence("a")), entry(bad), entry(fence("a", parent="b")))
    assert world.current.items.fences == [fence("a", parent="b")]
    assert [letter[b"reason"] for letter in await dead_letters(redis)] == [b"cyclic_parents"]


async def test_restart_continues(redis: Redis, log: StreamsLog) -> None:
    """A feed goes on after the positions that the last one stored: what was changed otherwise since stays so."""
    await follow(redis, log, entry(TEA), entry(GRABEN), Entry(topics.STORES, "x", b"nonsense"))
    before = await positions(redis)
    world = WorldStore(redis)
    await world.put(WorldFile(products=[msgspec.structs.replace(TEA, name="by hand")]))
    world = await follow(redis, log)
    assert await positions(redis) == before
    assert world.current.version == 2
    world = await follow(redis, log, entry(msgspec.structs.replace(TEA, sku="green")))
    assert [(each.sku, each.name) for each in world.current.items.products] == [("green", "Tea"), ("tea", "by hand")]
    assert len(await dead_letters(redis)) == 1


async def owning(redis: Redis, max_dead_letters: int = 1_000) -> CatalogueFeed:
    """A feed that has just taken all partitions over; tests hand it records directly."""
    feed = CatalogueFeed(Playback(), WorldStore(redis), redis, max_dead_letters)
    await feed._follow_assignment()
    return feed


def records(*items: Store | Fence | Product | Promotion | Stock, first: int = 1) -> list[Record]:
    return [
        Record(each.topic, 0, str(first + place), each.key, each.value, 0)
        for place, each in enumerate(map(entry, items))
    ]


@pytest.mark.parametrize("late", [[TEA], [Stock(store="graben", sku="tea", quantity=1)]], ids=["item", "stock"])
async def test_a_fenced_feed_changes_nothing(redis: Redis, late: Sequence[Product | Stock]) -> None:
    """A worker whose partition was taken over changes neither the world nor positions nor dead letters."""
    slow = await owning(redis)
    quick = await owning(redis)
    newer = msgspec.structs.replace(TEA, name="newer")
    await quick.process(records(TEA, newer, Stock(store="graben", sku="tea", quantity=2)))
    before = await positions(redis)
    with pytest.raises(Fenced):
        await slow.process(records(*late))
    with pytest.raises(Fenced):
        await slow.process([Record(topics.PRODUCTS, 0, "1", "tea", b"nonsense", 0)])
    world = WorldStore(redis)
    await world.refresh()
    assert world.current.items.products == [newer]
    assert await stocked(world, "tea") == 2
    assert await positions(redis) == before == {topics.PRODUCTS.encode(): b"2", topics.STOCK.encode(): b"3"}
    assert await dead_letters(redis) == []


async def test_a_feed_that_was_stopped_while_it_wrote(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a worker that was overtaken after it had asked for its epoch puts an old item over a newer one."""
    slow = await owning(redis)
    newer = msgspec.structs.replace(TEA, name="newer")
    check = slow._check_epochs
    asked = []

    async def overtaken(partitions: set[int]) -> None:
        await check(partitions)
        asked.append(partitions)
        await (await owning(redis)).process(records(TEA, newer))

    monkeypatch.setattr(slow, "_check_epochs", overtaken)
    with pytest.raises(Fenced):
        await slow.process(records(TEA))
    assert asked == [{0}]
    world = WorldStore(redis)
    await world.refresh()
    assert world.current.items.products == [newer]
    assert await positions(redis) == {topics.PRODUCTS.encode(): b"2"}


async def test_records_of_other_partitions_are_left_alone(redis: Redis) -> None:
    """What a feed was handed for a partition that it doesn't own is not applied."""
    feed = await owning(redis)
    (record,) = records(TEA)
    await feed.process([msgspec.structs.replace(record, partition=PARTITIONS)])
    world = WorldStore(redis)
    await world.refresh()
    assert world.current.version == 0
    assert [key async for key in redis.scan_iter(match="*catalogue-offsets")] == []


async def test_stops_before_it_would_throw_dead_letters_away(redis: Redis) -> None:
    """A producer of nothing but nonsense stops the feed, and what it could not keep stays unread in the log."""
    feed = await owning(redis, max_dead_letters=700)
    batches = [[Record(topics.STORES, 0, str(start + n), "s", b"?", 0) for n in range(500)] for start in (0, 500)]
    await feed.process(batches[0])
    with pytest.raises(DeadLettersFull, match=r"partition 0.*NEARCAST_DEAD_LETTERS_LIMIT"):
        await feed.process(batches[1])
    assert await redis.xlen(keys.dead_letters(0)) == 500
    assert await redis.hget(keys.catalogue_offsets(0), topics.STORES) == b"499"


async def test_a_promotion_with_everything_and_mistakes_in_it(redis: Redis, log: StreamsLog) -> None:
    """It is taken as it is; each mistake becomes a dead letter in the words that a file would be refused with."""
    wrong = [json.dumps(EVERYTHING | change).encode() for change, _, _ in MISTAKES]
    entries = [Entry(topics.PROMOTIONS, "everything", value) for value in (json.dumps(EVERYTHING).encode(), *wrong)]
    world = await follow(redis, log, *entries)
    assert world.current.items.promotions == [TAKEN]
    told = {letter[b"value"]: letter[b"detail"].decode() for letter in await dead_letters(redis)}
    for value, (_, field, words) in zip(wrong, MISTAKES, strict=True):
        assert told[value].startswith(words)
        assert f"({field}" in told[value] or not field
