"""Asking for an erasure, as the API does, with a real engine, log and store: when it is begun, and when complete."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from models.registry import FixedModels
from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.events import Cart, Identify
from nearcast.ids import CustomerId, partition_of
from offers.policy import Policy
from server.api.keyring import KeyRing
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupons import CouponBook
from server.desk import Desk
from server.eraser import Eraser
from server.intake import Intake
from server.log.base import Entry
from server.log.streams import StreamsLog
from server.model_registry import ModelRegistry
from server.outbox import ValkeyOutbox
from server.state import StateStore
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Bench

NOW = 1_795_000_000_000
ANN, VISITOR = CustomerId("ann"), CustomerId("anon:d1")
HOME, ABROAD = partition_of(ANN, PARTITIONS), partition_of(VISITOR, PARTITIONS)


@pytest.fixture
async def log(valkey_url: str) -> AsyncIterator[StreamsLog]:
    """In the test's store."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield log
    await log.stop()


@pytest.fixture
def coupons(redis: Redis) -> CouponBook:
    """On the test's store."""
    return CouponBook(redis, b"a coupon secret", SystemClock())


@pytest.fixture
def desk(redis: Redis, log: StreamsLog, coupons: CouponBook, tmp_path: Path) -> Desk:
    """What the API asks."""
    clock = SystemClock()
    return Desk(
        redis=redis,
        state=StateStore(redis, PARTITIONS),
        world=WorldStore(redis),
        intake=Intake(log, clock),
        log=log,
        coupons=coupons,
        opt_outs=OptOuts(redis, PARTITIONS),
        streams=ChannelStreams(redis, "n", clock),
        tokens=Tokens(b"a token secret".ljust(32), clock),
        keyring=KeyRing([]),
        links=LinkSigner(b"a link secret"),
        models=ModelRegistry(redis, SystemClock()),
        live_models=FixedModels(),
        policy=Policy(),
        clock=clock,
        public_url="https://offers.example",
        sms_auth_token="",
        demo=False,
        web_root=tmp_path,
    )


async def signed_in(bench: Bench) -> None:
    """A visitor signs in, as far as the known customer's state."""
    await bench.send(Cart(id="c", anonymous_id="d1", ts=NOW, action="add", sku="beans"))
    await bench.caught_up()
    await bench.send(Identify(id="i", uid=ANN, anonymous_id="d1", ts=NOW + 1))
    await bench.caught_up()
    outbox = ValkeyOutbox(bench.redis, range(PARTITIONS), "d")
    taken = await outbox.read(10, 20)
    await bench.log.append([Entry(one.entry.topic, one.entry.key, bytes(one.entry.value)) for one in taken])  # type: ignore[union-attr]
    await outbox.done(taken)
    await outbox.close()
    await bench.caught_up()


async def test_pending_while_a_visitor_is(redis: Redis, log: StreamsLog, coupons: CouponBook, desk: Desk) -> None:
    """The customer's erasure is complete after those of their visitors, whoever looks after which partition."""
    assert HOME != ABROAD
    clock, bench = ManualClock(), Bench(redis, log)
    eraser = Eraser(redis, PARTITIONS, lambda: frozenset(range(PARTITIONS)), coupons, clock, log_in_store=True)
    async with bench.running():
        await signed_in(bench)
        assert (await StateStore(redis, PARTITIONS).load(HOME, [ANN]))[0].customer.visitors == ["d1"]
        await desk.erase(ANN)
        assert await desk.erasing(ANN)
        assert await desk.erasing(VISITOR)
        await bench.caught_up()
    # Each visitor once: the engine has nothing to add to what was asked for.
    assert [await redis.xlen(keys.outbox(partition)) for partition in range(PARTITIONS)] == [0] * PARTITIONS
    for _ in range(3):
        assert await eraser.sweep(HOME) == 0
        clock.advance(2_000)
    assert await desk.erasing(ANN)
    assert await eraser.sweep(ABROAD) == 0
    clock.advance(2_000)
    assert await eraser.sweep(ABROAD) == 1
    assert not await desk.erasing(VISITOR)
    assert await desk.erasing(ANN)
    assert await eraser.sweep(HOME) == 1
    assert not await desk.erasing(ANN)
    assert await redis.hgetall(keys.erasures(HOME)) == {}
    for name in (ANN, VISITOR):
        assert await desk.customer(name) is None


async def test_asked_twice(redis: Redis, log: StreamsLog, coupons: CouponBook, desk: Desk) -> None:
    """Asked for again while the first one settles: pending until the engine has read the second, also where the
    eraser doesn't look into the log (Kafka)."""
    clock = ManualClock()
    eraser = Eraser(redis, PARTITIONS, lambda: frozenset({HOME}), coupons, clock, log_in_store=False)
    first = Bench(redis, log)
    async with first.running():
        await desk.erase(ANN)
        await first.caught_up()
    assert await eraser.sweep(HOME) == 0
    await desk.erase(ANN)
    clock.advance(2_000)
    assert await eraser.sweep(HOME) == 0
    assert await desk.erasing(ANN)
    second = Bench(redis, log)
    async with second.running():
        await second.caught_up()
    assert await eraser.sweep(HOME) == 0
    clock.advance(2_000)
    assert await eraser.sweep(HOME) == 1
    assert not await desk.erasing(ANN)


async def test_a_state_that_nobody_can_read(redis: Redis, log: StreamsLog, coupons: CouponBook, desk: Desk) -> None:
    """It can be erased all the same."""
    await redis.set(keys.customer(HOME, ANN), b"\xff rubbish")
    clock, bench = ManualClock(), Bench(redis, log)
    eraser = Eraser(redis, PARTITIONS, lambda: frozenset({HOME}), coupons, clock, log_in_store=True)
    async with bench.running():
        await desk.erase(ANN)
        await bench.caught_up()
    assert await eraser.sweep(HOME) == 0
    clock.advance(2_000)
    assert await eraser.sweep(HOME) == 1
    assert await desk.customer(ANN) is None
