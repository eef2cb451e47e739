"""The eraser, on a real store: what it removes, what it waits for, and whom it leaves alone."""

import re
from collections.abc import AsyncIterator

import msgspec
import pytest
from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from channels.push import withdraw
from nearcast import keys, topics
from nearcast.clock import ManualClock, SystemClock
from nearcast.events import Cart, Erase, Event, Receipt
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId, partition_of
from nearcast.messages import Emitted, Message, Push, Withdraw, decode_outbox, encode_outbox
from server.announcing import Announcer
from server.coupons import AppliedOffer, CouponBook
from server.eraser import ERASURE_ASKED, Eraser, note_erasure
from server.log.streams import StreamsLog
from server.outbox import ValkeyOutbox
from tests.server.rig import PARTITIONS, Bench

ANN, BOB = CustomerId("ann"), CustomerId("bob")
HOME = partition_of(ANN, PARTITIONS)


@pytest.fixture
def clock() -> ManualClock:
    """Tells the eraser when an erasure has settled."""
    return ManualClock()


@pytest.fixture
def coupons(redis: Redis) -> CouponBook:
    """On the test's store."""
    return CouponBook(redis, b"a coupon secret", SystemClock())


@pytest.fixture
def eraser(redis: Redis, coupons: CouponBook, clock: ManualClock) -> Eraser:
    """For all partitions, with the log in the store."""
    return Eraser(redis, PARTITIONS, lambda: frozenset(range(PARTITIONS)), coupons, clock, log_in_store=True)


@pytest.fixture
async def log(redis: Redis, valkey_url: str) -> AsyncIterator[StreamsLog]:
    """In the same store."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield log
    await log.stop()


async def erased(redis: Redis, customer: CustomerId = ANN) -> None:
    """Leave the note that the engine's commit leaves."""
    await redis.hset(keys.erasures(partition_of(customer, PARTITIONS)), customer, "1795000000000")


async def until_complete(eraser: Eraser, clock: ManualClock) -> int:
    """One look at the notes, and one when they have settled."""
    assert await eraser.sweep(HOME) == 0
    clock.advance(2_000)
    return await eraser.sweep(HOME)


async def pending(redis: Redis) -> list[bytes]:
    """Whose erasure is not complete."""
    return await redis.hkeys(keys.erasures(HOME))


def a_message(customer: CustomerId, decision: str) -> Message:
    return Message(
        id=MessageId(f"m-{decision}"),
        decision=DecisionId(decision),
        kind="offer",
        customer=customer,
        promotion=PromotionId("p"),
        trigger="enter",
        event=EventId("e"),
        at_ms=1,
        deadline_ms=2,
        coupon_expires_ms=3,
        channels=["sms"],
    )


def a_push(message: str) -> Push:
    return Push(
        kind="offer",
        message=MessageId(message),
        decision=DecisionId("d"),
        title="t",
        body="b",
        promotion=PromotionId("p"),
        trigger="enter",
        event=EventId("e"),
        at_ms=1,
        deadline_ms=2,
    )


async def test_asked_is_not_begun(redis: Redis, eraser: Eraser, coupons: CouponBook, clock: ManualClock) -> None:
    """Until the engine has erased the state, the erasure is pending and nothing is touched."""
    await redis.hset(keys.erasures(HOME), ANN, ERASURE_ASKED)
    await apply(coupons, ANN, "d1")
    assert await until_complete(eraser, clock) == 0
    assert await pending(redis) == [b"ann"]
    assert await redis.exists(keys.coupon(coupons.code_of(DecisionId("d1"))))


async def apply(coupons: CouponBook, customer: CustomerId, decision: str) -> str:
    expires_ms = SystemClock().now_ms() + 86_400_000
    offer = AppliedOffer(
        customer=customer, decision=DecisionId(decision), promotion=PromotionId("p"), expires_ms=expires_ms
    )
    return (await coupons.apply(offer)).code


async def test_everything_of_one_customer(
    redis: Redis, eraser: Eraser, coupons: CouponBook, clock: ManualClock, log: StreamsLog
) -> None:
    """Coupons however many, pushes and their marks, dead letters of every kind, outbox entries: hers go, his stay."""
    streams = ChannelStreams(redis, "n", SystemClock())
    for customer in (ANN, BOB):
        for number in range(120):
            await apply(coupons, customer, f"{customer}-{number}")
        for number in range(3):
            push = msgspec.json.encode(a_push(f"m{number}"))
            await streams.publish_once(f"customer:{customer}", f"m{number}", push)
        await redis.set(keys.channel_acked(f"customer:{customer}", "m0"), "phone")
        await redis.set(keys.channel_shown(f"customer:{customer}", "m0"), "1 2")
        await withdraw(streams, f"customer:{customer}", Withdraw(message=MessageId("m0"), reason="elsewhere"))
        await withdraw(streams, f"customer:{customer}", Withdraw(message=MessageId("m1"), reason="dismissed"))
        for partition in range(PARTITIONS):
            letters = keys.dead_letters(partition)
            await redis.xadd(letters, {"topic": topics.CARTS, "key": customer, "value": b"{"})
            await redis.xadd(letters, {"topic": topics.CARTS, "key": "", "value": f'{{"uid":"{customer}"'})
            await redis.xadd(letters, {"topic": "outbox", "key": "", "value": encode_outbox(a_message(customer, "d"))})
            stitch = Emitted(topic=topics.FEEDBACK, key=customer, value=msgspec.Raw(b"{}"))
            for entry in (a_message(customer, "d"), stitch):
                await redis.xadd(keys.outbox(partition), {"e": encode_outbox(entry)})
    await erased(redis)
    assert await until_complete(eraser, clock) == 1
    hers, his = await whose(redis)
    assert hers == []
    # His: 120 coupons, their index and what he applied lately; a channel's stream, meta and what is gone from it; three
    # marks of what was published, two of who acknowledged, two of what was withdrawn.
    assert his == 120 + 2 + 3 + 7
    for partition in range(PARTITIONS):
        assert await redis.xlen(keys.dead_letters(partition)) == 3
        assert await redis.xlen(keys.outbox(partition)) == 2


async def whose(redis: Redis) -> tuple[list[bytes], int]:
    """The keys that name Ann, in their names or values; and how many name Bob."""
    hers, his = [], 0
    async for key in redis.scan_iter():
        kind = await redis.type(key)
        content: object = None
        if kind == b"hash":
            content = await redis.hgetall(key)
        elif kind == b"stream":
            content = await redis.xrange(key)
        elif kind == b"zset":
            content = await redis.zrange(key, 0, -1)
        text = repr((key, content))
        if re.search(r"\bann\b", text):
            hers.append(key)
        his += "bob" in text and "{0}" not in text and b"outbox" not in key and b"dead" not in key
    return hers, his


async def test_what_a_dispatcher_holds_is_waited_for(redis: Redis, eraser: Eraser, clock: ManualClock) -> None:
    """Its end puts a receipt into the log; only then is the erasure complete. What nobody took is gone at once."""
    outbox = ValkeyOutbox(redis, range(PARTITIONS), "d")
    await redis.xadd(keys.outbox(1), {"e": encode_outbox(a_message(ANN, "held"))})
    (held,) = await outbox.read(10, 20)
    await redis.xadd(keys.outbox(1), {"e": encode_outbox(a_message(ANN, "new"))})
    await erased(redis)
    assert await until_complete(eraser, clock) == 0
    assert [entry for entry, _ in await redis.xrange(keys.outbox(1))] == [held.entry_id.encode()]
    assert await pending(redis) == [b"ann"]
    await outbox.done([held])
    assert await eraser.sweep(HOME) == 1
    assert await pending(redis) == []
    await outbox.close()


async def test_the_log_up_to_where_the_engine_is(
    redis: Redis, eraser: Eraser, clock: ManualClock, log: StreamsLog
) -> None:
    """Records that were processed go, in all topics; one that wasn't stays, and the erasure waits for it."""
    neighbour = next(f"c{n}" for n in range(99) if partition_of(f"c{n}", PARTITIONS) == HOME)
    bench = Bench(redis, log)
    events: list[Event] = [
        Erase(id="e", uid="ann"),
        Receipt(id="r", uid="ann", message="m", decision="d", status="sent"),
    ]
    async with bench.running():
        events += [Cart(id=f"c{number}", uid=("ann", neighbour)[number % 2], action="clear") for number in range(1_300)]
        await bench.send(*events)
        await bench.caught_up()
    assert await pending(redis) == [b"ann"]
    await bench.send(Cart(id="unread", uid="ann", action="clear"))
    assert await until_complete(eraser, clock) == 0
    assert await pending(redis) == [b"ann"]
    left = await redis.xrange(keys.log_stream(topics.CARTS, HOME))
    assert [fields[b"k"] for _, fields in left] == [neighbour.encode()] * 650 + [b"ann"]
    for topic in (topics.ACTIONS, topics.FEEDBACK):
        assert await redis.xlen(keys.log_stream(topic, HOME)) == 0
    # The engine reads on.
    unread = left[-1][0]
    await redis.hset(keys.offsets(HOME), topics.CARTS, unread)
    assert await eraser.sweep(HOME) == 1
    assert await redis.xlen(keys.log_stream(topics.CARTS, HOME)) == 650


async def test_what_other_systems_were_told(redis: Redis, eraser: Eraser, clock: ManualClock, log: StreamsLog) -> None:
    """Her records in `customers.promotions` go, those from a message that was still on its way included; his stay."""
    neighbour = next(CustomerId(f"c{n}") for n in range(99) if partition_of(f"c{n}", PARTITIONS) == HOME)
    announcer, stream = Announcer(log), keys.log_stream(topics.SENT, HOME)
    outbox = ValkeyOutbox(redis, range(PARTITIONS), "d")
    for customer in (ANN, neighbour):
        await announcer.sent(customer, a_push("m1"), "sms")
        await announcer.withdrawn(customer, MessageId("m1"))
    await redis.xadd(keys.outbox(1), {"e": encode_outbox(a_message(ANN, "held"))})
    (held,) = await outbox.read(10, 20)
    await erased(redis)
    assert await until_complete(eraser, clock) == 0
    await announcer.sent(ANN, a_push("held"), "sms")
    await outbox.done([held])
    assert await eraser.sweep(HOME) == 1
    assert [fields[b"k"].decode() for _, fields in await redis.xrange(stream)] == [neighbour] * 2
    await outbox.close()


async def test_erased_again_meanwhile(redis: Redis, eraser: Eraser, clock: ManualClock) -> None:
    """A second erasure is a piece of work of its own: it settles anew before it can be complete."""
    await erased(redis)
    assert await eraser.sweep(HOME) == 0
    clock.advance(2_000)
    await redis.hset(keys.erasures(HOME), ANN, "1795000000001")
    assert await eraser.sweep(HOME) == 0
    assert await pending(redis) == [b"ann"]
    clock.advance(2_000)
    assert await eraser.sweep(HOME) == 1


async def test_erased_again_at_the_last_moment(redis: Redis, clock: ManualClock) -> None:
    """A note that changes while the work is done is not taken away with it."""

    class Meanwhile(CouponBook):
        async def forget(self, customer: CustomerId) -> int:
            await redis.hset(keys.erasures(HOME), customer, "1795000000001")
            return await super().forget(customer)

    coupons = Meanwhile(redis, b"a coupon secret", SystemClock())
    eraser = Eraser(redis, PARTITIONS, lambda: frozenset({HOME}), coupons, clock, log_in_store=True)
    await erased(redis)
    await until_complete(eraser, clock)
    assert await pending(redis) == [b"ann"]


async def test_asked_again_meanwhile(redis: Redis, coupons: CouponBook, clock: ManualClock) -> None:
    """A second request while the first one settles: the note waits until the engine has read that one, too."""
    eraser = Eraser(redis, PARTITIONS, lambda: frozenset({HOME}), coupons, clock, log_in_store=False)
    await note_erasure(redis, HOME, ANN, ())
    await erased(redis)
    assert await eraser.sweep(HOME) == 0
    await note_erasure(redis, HOME, ANN, ())
    clock.advance(60_000)
    assert await eraser.sweep(HOME) == 0
    assert await pending(redis) == [b"ann"]
    await erased(redis)
    assert await until_complete(eraser, clock) == 1


async def test_visitors_first(redis: Redis, eraser: Eraser, clock: ManualClock) -> None:
    """A customer's erasure is open while one of a visitor who signed in as them is; then nothing is left of either."""
    visitors = [CustomerId("anon:d1"), CustomerId("anon:d4")]
    assert len({HOME, *(partition_of(visitor, PARTITIONS) for visitor in visitors)}) == 3
    for visitor in visitors:
        await note_erasure(redis, partition_of(visitor, PARTITIONS), visitor, ())
    await note_erasure(redis, HOME, ANN, visitors)
    await erased(redis)
    assert await until_complete(eraser, clock) == 0
    for visitor in visitors:
        assert await redis.hexists(keys.erasures(HOME), ANN)
        await erased(redis, visitor)
        assert await eraser.sweep(partition_of(visitor, PARTITIONS)) == 0
        assert await eraser.sweep(HOME) == 0
        clock.advance(2_000)
        assert await eraser.sweep(partition_of(visitor, PARTITIONS)) == 1
    assert await eraser.sweep(HOME) == 1
    assert [key async for key in redis.scan_iter()] == []


async def test_what_they_do_afterwards(
    redis: Redis, eraser: Eraser, coupons: CouponBook, clock: ManualClock, log: StreamsLog
) -> None:
    """However long an erasure is open: what comes after it, into outbox, letters, coupons and pushes, stays."""
    visitor, streams = CustomerId("anon:d1"), ChannelStreams(redis, "n", SystemClock())
    outbox, letters, channel = keys.outbox(0), keys.dead_letters(0), f"customer:{ANN}"

    async def does(what: str) -> str:
        """A message, a letter, a coupon and a push; the coupon's code."""
        await redis.xadd(outbox, {"e": encode_outbox(a_message(ANN, what))})
        await redis.xadd(letters, {"topic": topics.CARTS, "key": ANN, "value": what})
        await streams.publish_once(channel, what, msgspec.json.encode(a_push(what)))
        return await apply(coupons, ANN, what)

    async def left() -> tuple[list[str], list[bytes], int]:
        messages = [decode_outbox(fields[b"e"]) for _, fields in await redis.xrange(outbox)]
        values = [fields[b"value"] for _, fields in await redis.xrange(letters)]
        return (
            [str(one.id) for one in messages if isinstance(one, Message)],
            values,
            await redis.xlen(keys.channel_stream(channel)),
        )

    await note_erasure(redis, HOME, ANN, [visitor])
    await note_erasure(redis, partition_of(visitor, PARTITIONS), visitor, ())
    await does("before")
    await erased(redis)
    assert await eraser.sweep(HOME) == 0
    seen_ms = await store_ms(redis)
    while await store_ms(redis) <= seen_ms:
        pass
    await redis.xadd(outbox, {"e": encode_outbox(a_message(ANN, "after"))})
    await redis.xadd(letters, {"topic": topics.CARTS, "key": ANN, "value": "after"})
    # Written before the erasure, and buried by a dispatcher that had it in its hands then.
    await redis.xadd(letters, {"topic": "outbox", "key": ANN, "value": "late", "arrived_ms": seen_ms - 9})
    clock.advance(2_000)
    assert await eraser.sweep(HOME) == 0
    assert await left() == (["m-after"], [b"after"], 0)
    code = await does("later")
    carts = keys.log_stream(topics.CARTS, HOME)
    processed = await redis.xadd(carts, {"k": ANN, "v": "{}"}, id=f"{await store_ms(redis) + 1}-0")
    await redis.hset(keys.offsets(HOME), topics.CARTS, processed)
    await redis.xadd(carts, {"k": ANN, "v": "{}"}, id=f"{await store_ms(redis) + 2}-0")
    for _ in range(3):
        assert await eraser.sweep(HOME) == 0
    await redis.hdel(keys.erasures(partition_of(visitor, PARTITIONS)), visitor)
    assert await eraser.sweep(HOME) == 1
    assert await left() == (["m-after", "m-later"], [b"after", b"later"], 1)
    assert (await coupons.validate(code)).code == code
    assert await redis.xlen(carts) == 2


async def store_ms(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * 1_000 + microseconds // 1_000


async def test_a_message_on_its_way_leaves_nothing(
    redis: Redis, eraser: Eraser, coupons: CouponBook, clock: ManualClock, log: StreamsLog
) -> None:
    """The push and the coupon of a message that a dispatcher still had in its hands go once it is through."""
    outbox = ValkeyOutbox(redis, range(PARTITIONS), "d")
    await redis.xadd(keys.outbox(1), {"e": encode_outbox(a_message(ANN, "held"))})
    (held,) = await outbox.read(10, 20)
    await erased(redis)
    assert await until_complete(eraser, clock) == 0
    streams = ChannelStreams(redis, "n", SystemClock())
    await streams.publish_once(f"customer:{ANN}", "held", msgspec.json.encode(a_push("held")))
    await apply(coupons, ANN, "held")
    await outbox.done([held])
    assert await eraser.sweep(HOME) == 1
    assert await whose(redis) == ([], 0)
    await outbox.close()


async def test_with_kafka_the_log_is_not_looked_for(redis: Redis, coupons: CouponBook, clock: ManualClock) -> None:
    """Kafka's records go with its retention: nothing waits for them."""
    eraser = Eraser(redis, PARTITIONS, lambda: frozenset({HOME}), coupons, clock, log_in_store=False)
    await redis.xadd(keys.log_stream(topics.CARTS, HOME), {"k": "ann", "v": "{}"})
    await erased(redis)
    assert await until_complete(eraser, clock) == 1
