"""Timers: a cart left alone becomes a moment, once, also across a restart that missed its time."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.events import Cart
from nearcast.ids import partition_of
from nearcast.world import Promotion, Who, Words
from offers.worldfile import WorldFile
from server.intake import Intake
from server.log.streams import StreamsLog
from server.state import StateStore
from server.timers import TimerPump
from tests.server.rig import PARTITIONS, Bench, committed
from tests.server.test_engine import consent
from tests.server.town import WORLD

PARTITION = partition_of("ann", PARTITIONS)
REMINDER = Promotion(
    id="reminder",
    name="You left something",
    trigger="cart_abandoned",
    who=Who(in_cart=True),
    words={"en": Words(title="Still thinking about {{ product }}?")},
)


@pytest.fixture
async def log(redis: Redis, valkey_url: str) -> AsyncIterator[StreamsLog]:
    made = StreamsLog(valkey_url, PARTITIONS)
    await made.start()
    yield made
    await made.stop()


async def test_an_abandoned_cart(redis: Redis, log: StreamsLog) -> None:
    """A second after the last change the cart counts as abandoned: one decision, and only its deadline waits."""
    now_ms = SystemClock().now_ms()
    bench = Bench(redis, log)
    world = WorldFile(stores=WORLD.stores, products=WORLD.products, promotions=[REMINDER])
    async with bench.running(world):
        await bench.send(consent("ann", now_ms), Cart(id="1", uid="ann", ts=now_ms, action="add", sku="beans"))
        await bench.caught_up()
        clock = ManualClock(now_ms + 999)
        pump = TimerPump(StateStore(redis, PARTITIONS), Intake(log, clock), lambda: frozenset({PARTITION}), clock)
        assert await pump.fire(PARTITION) == 0
        clock.advance(1)
        assert await pump.fire(PARTITION) == 1
        assert await pump.fire(PARTITION) == 0
        await bench.caught_up()
    found = await committed(redis)
    (decision,) = found.decisions.values()
    assert (decision.moment.trigger, decision.promotion, decision.at_ms) == (
        "cart_abandoned",
        "reminder",
        now_ms + 1_000,
    )
    assert found.customers[decision.customer].customer.cart_abandoned
    assert await redis.zrange(keys.timers(PARTITION), 0, -1, withscores=True) == [
        (b"deadline\x1fann", decision.deadline_ms)
    ]


async def test_fired_twice(redis: Redis, log: StreamsLog) -> None:
    """A pump that died between the log and the store fires again; the second time nothing happens."""
    now_ms = SystemClock().now_ms() - 60_000
    bench = Bench(redis, log)
    async with bench.running(WorldFile(stores=WORLD.stores, products=WORLD.products, promotions=[REMINDER])):
        await bench.send(consent("ann", now_ms), Cart(id="1", uid="ann", ts=now_ms, action="add", sku="beans"))
        await bench.caught_up()
        row = await redis.zrange(keys.timers(PARTITION), 0, -1, withscores=True)
        clock = SystemClock()
        pump = TimerPump(StateStore(redis, PARTITIONS), Intake(log, clock), lambda: frozenset({PARTITION}), clock)
        for _ in range(2):
            await redis.zadd(keys.timers(PARTITION), dict(row))
            assert await pump.fire(PARTITION) == 1
        await bench.caught_up()
    assert len((await committed(redis)).decisions) == 1


async def test_changed_meanwhile(redis: Redis, log: StreamsLog) -> None:
    """A cart touched again waits anew; the old timer in the log finds it changed."""
    now_ms = SystemClock().now_ms() - 60_000
    bench = Bench(redis, log)
    async with bench.running(WorldFile(stores=WORLD.stores, products=WORLD.products, promotions=[REMINDER])):
        await bench.send(consent("ann", now_ms), Cart(id="1", uid="ann", ts=now_ms, action="add", sku="beans"))
        await bench.caught_up()
        old = await redis.zrange(keys.timers(PARTITION), 0, -1, withscores=True)
        await bench.send(Cart(id="2", uid="ann", ts=now_ms + 500, action="add", sku="grinder"))
        await bench.caught_up()
        await redis.zadd(keys.timers(PARTITION), dict(old))
        clock = ManualClock(now_ms + 1_200)
        pump = TimerPump(StateStore(redis, PARTITIONS), Intake(log, clock), lambda: frozenset({PARTITION}), clock)
        assert await pump.fire(PARTITION) == 1
        await bench.caught_up()
    assert (await committed(redis)).decisions == {}


async def test_the_pump_runs_until_cancelled(redis: Redis, log: StreamsLog) -> None:
    """It looks after the partitions owned at each time."""
    clock = SystemClock()
    await redis.zadd(keys.timers(PARTITION), {"cart_abandoned\x1fann": clock.now_ms() - 1})
    owned: set[int] = set()
    pump = TimerPump(StateStore(redis, PARTITIONS), Intake(log, clock), lambda: frozenset(owned), clock)
    task = asyncio.create_task(pump.run())
    owned.add(PARTITION)
    async with asyncio.timeout(10):
        while await redis.zcard(keys.timers(PARTITION)):
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
